"""Eigenvalues, their signs, and symmetry of a score's Jacobian: exact or with error bars."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp

from sharpjax._checks import check_finite, positive_integer, positive_number, prng_key
from sharpjax._linalg import eigvalsh, safe_norm, scale_of
from sharpjax._reprs import one_line
from sharpjax._types import Array, ArrayLike, Key, Score
from sharpjax.curvature.density import products_with_J, quadrature_options, quadrature_rules
from sharpjax.curvature.estimate import Estimate
from sharpjax.curvature.krylov import Ritz
from sharpjax.curvature.operators import Jacobian, hessian, jacobian
from sharpjax.curvature.programs import compiled
from sharpjax.mesh.loops import chunked_map


def eigenvalues(score: Score, x: ArrayLike, *, chunk_size: int | None = None) -> Array:
    """All eigenvalues of `(J + J^T)/2` at `x`, ascending, shape `(d,)`, units 1/sigma^2.

    Costs d tangents, O(d^2) memory and O(d^3) time. For an exact score at noise level sigma none
    is below `-1/sigma^2`, as `K = I + sigma^2 H` is positive semidefinite.

    The arguments are those of `hessian`, and so are the errors.

    >>> import jax.numpy as jnp
    >>> eigenvalues(lambda x: -jnp.array([4.0, 1.0]) * x, jnp.zeros(2))
    Array([-4., -1.], dtype=float32)
    """
    J = hessian(score, x, chunk_size=chunk_size)
    return eigvalsh(0.5 * (J + J.T))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Inertia:
    """How many eigenvalues are negative, near zero and positive; the three sum to d.

    Attributes:
        negative: how many are below `-tolerance`.
        zero: how many are within it.
        positive: how many are above it.
        tolerance: what is taken for zero, units 1/sigma^2.
        quadrature_error: `(3,)`, for the three counts: a bound on the part of the error that the
            standard errors do not hold; 0 if exact.
    """

    negative: Estimate
    zero: Estimate
    positive: Estimate
    tolerance: Array
    quadrature_error: Array

    __repr__ = one_line


def inertia(
    score: Score,
    x: ArrayLike,
    *,
    tolerance: ArrayLike | None = None,
    method: str = "exact",
    key: Key | None = None,
    num_probes: int = 32,
    num_matvecs: int = 40,
    symmetric: bool = False,
    batch_size: int = 8,
) -> Inertia:
    r"""How many eigenvalues of `A = (J + J^T)/2` at `x` are negative, near zero and positive.

    "exact" counts `eigenvalues`. "slq" counts the nodes of stochastic Lanczos quadratures by
    their weights, as `spectral_density` without smoothing. Its standard errors hold the spread
    over the probes; that a quadrature of few nodes misplaces a part of the weight at `±tolerance`
    is the same for all of them, and is bounded by `quadrature_error`: small where no eigenvalues
    lie near `±tolerance`, useless in the middle of a continuum.

    Args:
        score: maps one point to its score, same shape out.
        x: the point, any shape; `d = x.size`.
        tolerance: |eigenvalues| up to this count as zero, units 1/sigma^2, > 0. By default
            `d eps` of the largest |eigenvalue| (or |Ritz value|): an eigenvalue solver's rounding,
            below which a sign means nothing. A learned score's own error is larger, and so is the
            rounding of its tangents; give the level that matters.
        method: "exact" (d tangents) or "slq".
        key: PRNG key of the probes, for "slq"; all the rest as in `spectral_density`.
        num_probes: start vectors.
        num_matvecs: products with A at most for each.
        symmetric: take J for symmetric.
        batch_size: probes at once by `vmap`.

    Raises:
        ValueError: an unknown method, `tolerance <= 0`; "slq" without a key, or as
            `spectral_density`; "exact" as `eigenvalues`.

    References:
        As `spectral_density`. The bound: T. Chen, T. Trogdon, S. Ubaru, Analysis of stochastic
        Lanczos quadrature for spectrum approximation, 2021, arXiv:2105.06595.

    >>> import jax.numpy as jnp
    >>> counts = inertia(lambda x: jnp.array([-4.0, 0.0, 1.0, 2.0]) * x, jnp.ones(4))
    >>> print(counts.negative.value, counts.zero.value, counts.positive.value)
    1.0 1.0 2.0
    """
    if method not in ("exact", "slq"):
        raise ValueError(f"method must be 'exact' or 'slq', got {method!r}")
    if tolerance is not None:
        tolerance = positive_number("tolerance", tolerance)
    if method == "exact":
        values = eigenvalues(score, x)
        tolerance = _tolerance(tolerance, values, values.size)
        counts = _three_parts(values, jnp.ones_like(values), tolerance)
        zero = jnp.zeros_like(counts)
        parts = [Estimate(counts[i], zero[i], 0, values.size) for i in range(3)]
        return Inertia(parts[0], parts[1], parts[2], tolerance, quadrature_error=zero)
    key, probes = quadrature_options(key, num_probes, num_matvecs, symmetric, batch_size)
    J = jacobian(score, x)
    rules = quadrature_rules(J, key, **probes)
    tolerance = _tolerance(tolerance, rules.values, J.point.size)
    counts, errors = _count_nodes(rules, tolerance, d=J.point.size)
    cost = products_with_J(J, **probes)
    parts = [Estimate.from_samples(samples, num_matvecs=cost) for samples in counts.T]
    return Inertia(
        parts[0], parts[1], parts[2], tolerance, quadrature_error=jnp.mean(errors, axis=0)
    )


def stochastic_asymmetry(
    score: Score,
    x: ArrayLike,
    *,
    key: Key,
    num_probes: int = 32,
    batch_size: int = 32,
) -> Estimate:
    r"""`||J - J^T||_F / ||J + J^T||_F` from random probes: `asymmetry` without the matrix.

    For probes of random signs `E ||B v||^2 = ||B||_F^2`. With `a` and `b` the means of
    `||J v - J^T v||^2` and `||J v + J^T v||^2` over the same probes, the value is `sqrt(a/b)`, and
    by the delta method its standard error is `sqrt(a/b)/2` times that of `a_i/a - b_i/b`. The
    value has a bias of the order of `1/num_probes`.

    Args:
        score: maps one point to its score, same shape out.
        x: the point, any shape.
        key: PRNG key of the probes. Probe i depends on `(key, i)` only.
        num_probes: one tangent and one cotangent each. One is allowed, and then there is no
            standard error.
        batch_size: probes at once by `vmap`.

    Returns:
        An `Estimate`: 0 exactly for a symmetric J (and for J = 0) if its products are so to the
        last bit, infinite for `J = -J^T`.

    Raises:
        ValueError: `num_probes` or `batch_size` not a positive integer; a product that is not
            finite; and as `jacobian`.

    >>> import jax, jax.numpy as jnp
    >>> J = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    >>> stochastic_asymmetry(lambda x: J @ x, jnp.ones(2), key=jax.random.key(1), num_probes=500)
    Estimate(0.4465 ± 0.008, num_samples=500, num_matvecs=1000)
    """
    num_probes = positive_integer("num_probes", num_probes)
    batch_size = positive_integer("batch_size", batch_size)
    key = prng_key(key, "Probes are random")
    J = jacobian(score, x)
    norms = _odd_and_even(J, key, num_probes=num_probes, batch_size=batch_size)
    check_finite("A product with the Jacobian", norms)
    value, error = _ratio(norms)
    return Estimate(value, error if num_probes > 1 else None, num_probes, 2 * num_probes)


def _tolerance(tolerance: ArrayLike | None, values: Array, d: int) -> Array:
    if tolerance is not None:
        return jnp.asarray(tolerance, values.dtype)
    return d * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))


def _three_parts(values: Array, weights: Array, tolerance: Array) -> Array:
    """The weight below, within and above the tolerance, `(3,)`; NaN if a value is."""
    below, above = values < -tolerance, values > tolerance
    parts = [jnp.sum(jnp.where(w, weights, 0)) for w in (below, ~below & ~above, above)]
    known = jnp.all(jnp.isfinite(values)) & jnp.isfinite(tolerance)
    return jnp.where(known, jnp.stack(parts), jnp.nan)


@compiled(static_argnames=("d",))
def _count_nodes(rules: Ritz, tolerance: Array, *, d: int) -> tuple[Array, Array]:
    """For each probe the three counts and the bounds on their quadrature errors."""

    def of_probe(rule: Ritz) -> tuple[Array, Array]:
        low, high = (_misplaced(rule, t) for t in (-tolerance, tolerance))
        bounds = jnp.stack([low, low + high, high])
        return d * _three_parts(rule.values, cast(Array, rule.weights), tolerance), d * bounds

    return jax.vmap(of_probe)(rules)


def _misplaced(rule: Ritz, t: Array) -> Array:
    r"""A bound on the spectral weight of the start vector on the wrong side of `t`.

    The less of two:

    1. Chebyshev, Markov, Stieltjes: with F(t) the start's weight below t, and W_i the sum of the
       first i quadrature weights, `W_{i-1} <= F(theta_i) <= W_i`. So between nodes i and i+1,
       `-w_i <= F(t) - W_i <= w_{i+1}`.
    2. The start is `q = sum_i c_i y_i`, `c_i^2 = w_i`. Of a Ritz vector with theta_i < t the part
       above t is at most `r_i/(t - theta_i)`, since `A - theta_i` is at least `t - theta_i`
       there; and likewise the other way round. So of `q_<`, the sum over theta_i < t, at most e
       lies above, of `q_>` at most e below, `e = sum_i |c_i| r_i/|theta_i - t|`, and
       `||P_> q||^2 = ||q_>||^2 - ||P_< q_>||^2 + 2 <P_> q_>, P_> q_<> + ||P_> q_<||^2` differs
       from the weight `||q_>||^2` by at most `2 e + e^2`.
    """
    i = jnp.sum((rule.values < t) & (jnp.arange(rule.values.size) < rule.num_valid))
    weights = cast(Array, rule.weights)  # of Lanczos, which has some
    around = jnp.pad(weights, 1)[jnp.stack([i, i + 1])]
    distance = jnp.abs(rule.values - t)
    parts = jnp.where(rule.residuals > 0, rule.residuals / distance, 0.0)
    e = jnp.sum(jnp.sqrt(weights) * parts)
    return jnp.fmin(jnp.max(around), 2 * e + e**2)


@compiled(static_argnames=("num_probes", "batch_size"))
def _odd_and_even(J: Jacobian, key: Key, *, num_probes: int, batch_size: int) -> Array:
    """`||J v - J^T v||` and `||J v + J^T v||` of each probe, `(num_probes, 2)`."""

    def sample(i: Array) -> Array:
        v = jax.random.rademacher(jax.random.fold_in(key, i), J.point.shape, J.point.dtype)
        Jv, JTv = J.mv(v).ravel(), J.rmv(v).ravel()
        return jnp.stack([safe_norm(Jv - JTv), safe_norm(Jv + JTv)])

    return chunked_map(sample, jnp.arange(num_probes), batch_size)


@jax.jit
def _ratio(norms: Array) -> tuple[Array, Array]:
    """`sqrt(a/b)` for the means of both squares, and its standard error."""
    scales = scale_of(norms, axis=0)  # of each: the odd part may be far below the even one
    odd, even = (norms / scales).T ** 2
    a, b = jnp.mean(odd), jnp.mean(even)
    value = jnp.where(a == 0, 0.0, jnp.sqrt(a / b) * (scales[0, 0] / scales[0, 1]))
    # Where a or b is 0 all its samples are, and so is the spread of their ratio to it.
    relative = odd / jnp.where(a > 0, a, 1.0) - even / jnp.where(b > 0, b, 1.0)
    # Divided by n - 1, and by 0 for a single sample, whose error is not asked for.
    spread = jnp.sqrt(jnp.var(relative) / (len(norms) - 1))
    error = jnp.where(a == 0, 0.0, 0.5 * value * spread)
    # Of an infinite value (0 if J is) no error is known.
    return value, jnp.where(b == 0, value, error)
