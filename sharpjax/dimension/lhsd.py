r"""Dimension as the number of small eigenvalues of the Hessian.

On a smooth manifold $-H$ has eigenvalues about 0 along it and about $1/\sigma^2$ across it.  A
filter counts the first,

$$
\mathrm{tr} f(-H), \qquad f(l) = \frac{1}{1 + (|l|/\kappa)^p}, \qquad \kappa = c/\sigma^2,
$$

by stochastic Lanczos quadrature on the symmetric part.  Of each of the $D - n$ directions across
the filter leaves $f(1/\sigma^2) = c^p/(1 + c^p)$, no small number among thousands of them (of
$D = 3072$: 0.3 at $c = 0.1$, 180 at $c = 0.5$).  It is known, so it is removed:

$$
n = \frac{\mathrm{tr} f(-H) - D f(1/\sigma^2)}{1 - f(1/\sigma^2)} .
$$

What is left is right where the eigenvalues along the manifold are well below the cutoff,
$\sigma^2 l \ll c \ll 1$, and none lies near it: the *transition mass*, the mean of $4 f (1 - f)$
over all eigenvalues, is 1 for an eigenvalue at the cutoff and small for one well off it.
"""

from typing import Any, cast

import jax.numpy as jnp

from sharpjax._checks import positive_integer, positive_number
from sharpjax._types import Array, ArrayLike, Key, Score
from sharpjax.curvature.density import products_with_J, quadrature_options, quadrature_rules
from sharpjax.curvature.estimate import Estimate
from sharpjax.curvature.operators import jacobian
from sharpjax.curvature.spectra import eigenvalues
from sharpjax.dimension.level import at_level

FEWEST_PRODUCTS = 8


def lhsd(
    score: Score,
    x0: ArrayLike,
    *,
    alpha: ArrayLike,
    sigma: ArrayLike,
    key: Key | None = None,
    power: float = 4.0,
    cutoff: float = 0.1,
    method: str = "slq",
    num_probes: int = 8,
    num_matvecs: int = 20,
    symmetric: bool = False,
    batch_size: int = 8,
) -> Estimate:
    r"""LHSD, the filtered count of small eigenvalues of $-H$ at $\alpha x_0$.

    The share that the filter leaves of directions across the manifold is removed, which the paper
    does not: see the head of this module.

    Args:
        score: of the noised data at this level.
        x0: the clean point, any shape.
        alpha: signal, > 0.
        sigma: noise, > 0.
        key: PRNG key of the probes.
        power: $p$ of the filter, > 0.
        cutoff: $c$, at which $f = 1/2$, in units of $1/\sigma^2$, > 0.
        method: "slq", by Lanczos quadrature; "exact", by all eigenvalues, without an error: d
            tangents.
        num_probes: start vectors, two at least.
        num_matvecs: products for each, a tangent and a cotangent; 8 at least, or d: with fewer the
            quadrature's error, which the standard error does not hold, is larger than that.
        symmetric: take the Jacobian for symmetric: tangents alone.
        batch_size: probes at once.

    Returns:
        An `Estimate`.  Its standard error is the spread over the probes; it does not hold the error
        of the quadrature, which falls with `num_matvecs`.

    Raises:
        ValueError: an unknown method, fewer probes or products than an error needs; as
            `sharpjax.curvature.spectral_density`; `alpha = 0`.

    References:
        G. Osada, Local Hessian spectral filtering for robust intrinsic dimension estimation, ICML
        2026, arXiv:2605.01221.

    >>> import jax, jax.numpy as jnp
    >>> S = jnp.where(jnp.arange(30) < 7, 1.0, 0.0) + 0.01**2  # 7 directions of 30, noised
    >>> options = {"alpha": 1.0, "sigma": 0.01, "key": jax.random.key(0), "num_probes": 64}
    >>> print(f"{lhsd(lambda x: -x / S, jnp.zeros(30), **options).value:.0f}")
    7
    """
    return filtered(
        score, x0, alpha=alpha, sigma=sigma, key=key, power=power, cutoff=cutoff, method=method,
        num_probes=num_probes, num_matvecs=num_matvecs, symmetric=symmetric, batch_size=batch_size,
    )[0]  # fmt: skip


def transition_mass(score: Score, x0: ArrayLike, **options: Any) -> Estimate:
    r"""The mean over eigenvalues of $4 f (1 - f)$: how many of them the cutoff of `lhsd` cuts.

    Between 0 and 1, less what the directions across the manifold have of it at any cutoff; it may
    be below 0 by its error.  The arguments are those of `lhsd`.
    """
    return filtered(score, x0, **options)[1]


def filtered(
    score: Score,
    x0: ArrayLike,
    *,
    alpha: ArrayLike,
    sigma: ArrayLike,
    key: Key | None = None,
    power: float = 4.0,
    cutoff: float = 0.1,
    method: str = "slq",
    num_probes: int = 8,
    num_matvecs: int = 20,
    symmetric: bool = False,
    batch_size: int = 8,
) -> tuple[Estimate, Estimate]:
    """The dimension and the transition mass, from the same products; arguments as of `lhsd`."""
    x0, alpha, sigma = at_level("lhsd", x0, alpha, sigma)
    p = positive_number("power", power, x0.dtype)
    c = positive_number("cutoff", cutoff, x0.dtype)
    if method not in ("slq", "exact"):
        raise ValueError(f"method must be 'slq' or 'exact', got {method!r}")
    across = 1 / (1 + (1 / c) ** p)  # f(1/sigma^2)
    x, d = alpha * x0, x0.size
    if method == "exact":
        values = eigenvalues(score, x, chunk_size=batch_size)
        count, mass = _means(values, jnp.full_like(values, 1 / d), sigma, p, c)
    else:
        positive_integer("num_probes", num_probes, least=2)  # one has no error
        positive_integer("num_matvecs", num_matvecs, least=min(FEWEST_PRODUCTS, d))
        key, probes = quadrature_options(key, num_probes, num_matvecs, symmetric, batch_size)
        J = jacobian(score, x)
        rules = quadrature_rules(J, key, **probes)
        count, mass = _means(rules.values, cast(Array, rules.weights), sigma, p, c)
    dimension = d * (count - across) / (1 - across)
    mass = mass - 4 * across * (1 - across)
    if method == "exact":
        zero = jnp.zeros_like(dimension)
        return Estimate(dimension, zero, 0, d), Estimate(mass, zero, 0, d)
    cost = products_with_J(J, **probes)
    return (
        Estimate.from_samples(dimension, num_matvecs=cost),
        Estimate.from_samples(mass, num_matvecs=cost),
    )


def _means(
    values: Array, weights: Array, sigma: ArrayLike, p: ArrayLike, c: ArrayLike
) -> tuple[Array, Array]:
    """Weighted means of `f` and of `4 f (1 - f)` over eigenvalues, which are the last axis."""
    f = 1 / (1 + (sigma**2 * jnp.abs(values) / c) ** p)
    return jnp.sum(weights * f, axis=-1), jnp.sum(weights * 4 * f * (1 - f), axis=-1)
