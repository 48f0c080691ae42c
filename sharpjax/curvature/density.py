r"""The spectral density of a score's Jacobian by stochastic Lanczos quadrature."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from sharpjax._checks import check_finite, one_array, positive_integer, positive_number, prng_key
from sharpjax._reprs import one_line
from sharpjax._types import Array, ArrayLike, Key, Score
from sharpjax.curvature.estimate import Estimate
from sharpjax.curvature.krylov import Ritz, flat_matvec, symmetric_ritz
from sharpjax.curvature.operators import Jacobian, jacobian
from sharpjax.curvature.programs import compiled
from sharpjax.mesh.loops import chunked_map, varying_as

_NUM_POINTS = 256
_TAIL = 5.0  # bandwidths beyond the outermost Ritz values: 3e-7 of a normal kernel lies further out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SpectralDensity:
    """How many eigenvalues lie where, smoothed by a normal kernel.

    Attributes:
        grid: where, `(g,)`, units 1/sigma^2.
        density: eigenvalues per unit of `grid`, an `Estimate` of `(g,)` values with integral d.
        cumulative: eigenvalues below each grid point, an `Estimate` of `(g,)` values from 0 to d.
        bandwidth: standard deviation of the kernel, units 1/sigma^2.
    """

    grid: Array
    density: Estimate
    cumulative: Estimate
    bandwidth: Array

    __repr__ = one_line


def spectral_density(
    score: Score,
    x: ArrayLike,
    *,
    key: Key,
    num_probes: int = 16,
    num_matvecs: int = 40,
    grid: ArrayLike | None = None,
    bandwidth: ArrayLike | None = None,
    symmetric: bool = False,
    batch_size: int = 8,
) -> SpectralDensity:
    r"""The density of the eigenvalues of `A = (J + J^T)/2` at `x`, with a standard error.

    `sum_j f(lambda_j) = tr f(A) = d E[v^T f(A) v]` for v uniform on the unit sphere, and Lanczos
    from v gives `v^T f(A) v` by Gauss quadrature: nodes theta, weights w. With `f` a normal
    density of standard deviation h about t,

    `density(t) = d mean over probes of sum_i w_i normal(t; theta_i, h^2)`,

    and the normal distribution function likewise gives the cumulative form.

    The standard error is the spread over the probes. It does not hold what is the same for all of
    them: the smoothing, and the quadrature's error, which falls exponentially with
    `h num_matvecs / (largest - smallest eigenvalue)`. With the default h the kernel is as wide as
    the gaps between nodes are on average; a much smaller h shows the nodes, not the spectrum.

    Args:
        score: maps one point to its score, same shape out.
        x: the point, any shape; `d = x.size`.
        key: PRNG key of the probes. Probe i depends on `(key, i)` only.
        num_probes: start vectors. One is allowed, and then there is no standard error.
        num_matvecs: products with A at most for each, one tangent and one cotangent each.
        grid: where to evaluate, `(g,)`; 256 points over the Ritz values and 5 bandwidths on
            either side by default.
        bandwidth: h > 0, units 1/sigma^2; by default the range of the Ritz values over
            `num_matvecs`, and at least 1e-3 of the largest |Ritz value| (1e-3 if all are 0).
        symmetric: take J for symmetric: tangents alone, half the cost, as in `lanczos`.
        batch_size: probes at once by `vmap`.

    Returns:
        A `SpectralDensity`. The estimates count the products allowed; a probe whose Krylov space
        is exhausted earlier spends fewer, and its quadrature is exact.

    Raises:
        ValueError: a count that is not a positive integer, a grid that is not a finite vector,
            `bandwidth <= 0`, a product that is not finite; and as `jacobian`.

    References:
        S. Ubaru, J. Chen, Y. Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature,
        SIAM J. Matrix Anal. Appl. 38 (2017), doi:10.1137/16M1104974. L. Lin, Y. Saad, C. Yang,
        Approximating spectral densities of large matrices, SIAM Rev. 58 (2016),
        doi:10.1137/130934283.

    Three eigenvalues at -4 and one at -1:

    >>> import jax, jax.numpy as jnp
    >>> result = spectral_density(
    ...     lambda x: jnp.array([-4.0, -4.0, -4.0, -1.0]) * x,
    ...     jnp.zeros(4),
    ...     key=jax.random.key(0),
    ...     num_probes=400,
    ...     grid=jnp.array([-2.5, 0.0]),
    ... )
    >>> print(result.cumulative.value.round())
    [3. 4.]
    """
    key, probes = quadrature_options(key, num_probes, num_matvecs, symmetric, batch_size)
    J = jacobian(score, x)
    if bandwidth is not None:
        bandwidth = positive_number("bandwidth", bandwidth, J.point.dtype)
    if grid is not None:
        grid = one_array("grid", grid).astype(J.point.dtype)
        if grid.ndim != 1 or grid.size == 0:
            raise ValueError(f"grid must have shape (g,) with g >= 1, got {grid.shape}")
        check_finite("grid", grid)
    rules = quadrature_rules(J, key, **probes)
    points, width, density, cumulative = _smoothed(
        rules, grid, bandwidth, d=J.point.size, num_matvecs=num_matvecs
    )
    cost = products_with_J(J, **probes)
    return SpectralDensity(
        grid=points,
        density=Estimate.from_samples(density, num_matvecs=cost),
        cumulative=Estimate.from_samples(cumulative, num_matvecs=cost),
        bandwidth=width,
    )


def quadrature_options(
    key: Key | None, num_probes: int, num_matvecs: int, symmetric: bool, batch_size: int
) -> tuple[Array, dict[str, Any]]:
    """The key and the static options of `quadrature_rules`, once they are known to be valid."""
    return prng_key(key, "The probes are random"), {
        "num_probes": positive_integer("num_probes", num_probes),
        "num_matvecs": positive_integer("num_matvecs", num_matvecs),
        "symmetric": bool(symmetric),
        "batch_size": positive_integer("batch_size", batch_size),
    }


def quadrature_rules(J: Jacobian, key: Key, **options: Any) -> Ritz:
    """Gauss quadratures of the symmetric part, one for each probe (the first axis).

    Probes are uniform on the sphere, so that the weights of a rule, which sum to 1, need no
    correction and counts sum to d exactly. Unlike signs they have a part in every eigenspace.

    Raises:
        ValueError: a product that is not finite.
    """
    rules: Ritz = _quadrature_rules(J, key, **options)
    check_finite("A Ritz value of a product with the Jacobian", rules.values)
    return rules


def products_with_J(
    J: Jacobian, *, num_probes: int, num_matvecs: int, symmetric: bool, batch_size: int
) -> int:
    """The products with J or its transpose that the rules may spend."""
    return num_probes * min(num_matvecs, J.point.size) * (1 if symmetric else 2)


@compiled(static_argnames=("num_probes", "num_matvecs", "symmetric", "batch_size"))
def _quadrature_rules(
    J: Jacobian, key: Key, *, num_probes: int, num_matvecs: int, symmetric: bool, batch_size: int
) -> Ritz:
    matvec = flat_matvec(J, symmetric=symmetric)

    def rule(i: Array) -> Ritz:
        start = jax.random.normal(jax.random.fold_in(key, i), J.point.shape, J.point.dtype)
        start = varying_as(start, J)
        ritz, *_ = symmetric_ritz(matvec, start.ravel(), num_matvecs, vectors=False)
        return ritz

    return chunked_map(rule, jnp.arange(num_probes), batch_size)


@compiled(static_argnames=("d", "num_matvecs"))
def _smoothed(
    rules: Ritz, grid: Array | None, bandwidth: ArrayLike | None, *, d: int, num_matvecs: int
) -> tuple[Array, Array, Array, Array]:
    """The grid, the bandwidth, and both functions for each probe, `(num_probes, g)`."""
    low, high = jnp.min(rules.values), jnp.max(rules.values)
    if bandwidth is None:
        largest = jnp.maximum(jnp.abs(low), jnp.abs(high))
        least = 1e-3 * jnp.where(largest > 0, largest, 1.0)
        bandwidth = jnp.maximum((high - low) / num_matvecs, least)
    if grid is None:
        tail = _TAIL * bandwidth
        grid = jnp.linspace(low - tail, high + tail, _NUM_POINTS, dtype=rules.values.dtype)
    points, width = grid, jnp.asarray(bandwidth)

    def of_probe(rule: Ritz) -> tuple[Array, Array]:
        z, weights = (points[:, None] - rule.values) / width, cast(Array, rule.weights)
        with jax.default_matmul_precision("highest"):
            return d * norm.pdf(z) @ weights / width, d * norm.cdf(z) @ weights

    return points, width, *jax.vmap(of_probe)(rules)
