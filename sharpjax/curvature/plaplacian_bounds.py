r"""How far the flux form of the p-Laplacian may be from the truth, and why.

The flux with a learned score and finitely many directions differs from `div F(x)` by at most

`radius_bias_bound + score_error_bound + sampling_bound`,

the mean over a ball instead of the value at its centre (any p), another score (p = 1), and
directions that were drawn (p = 1, with a probability). All in the units of a p-Laplacian,
sigma^{-p}. `docs/p_laplacian.md` has the proofs at length, and where each bound is attained.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._checks import positive_integer, positive_number
from sharpjax._types import Array, ArrayLike


def radius_bias_bound(max_laplacian: ArrayLike, *, radius: ArrayLike, dim: int) -> Array:
    r"""`|mean of g over B_R(x) - g(x)| <= R^2/(2(d+2)) max_{B_R} |laplacian g|`, `g = div F`.

    Proof, for g in C^2 on the closed ball. The mean `M(r)` over the sphere of radius r has
    `M'(r) = E_n[dg/dn] = (r/d) mean_{B_r}(laplacian g)` by the divergence theorem, so that
    `|M(r) - g(x)| <= L r^2/(2d)` with L the maximum. The ball is made of spheres,
    `mean_{B_R} g = (d/R^d) int_0^R r^{d-1} M(r) dr`, and
    `(d/R^d) int_0^R r^{d-1} L r^2/(2d) dr = L R^2/(2(d+2))`. Equality where `laplacian g` is
    constant. For p < 4 other than 2 the ball must hold no zero of the score: `|s|^{p-2}` is not
    C^2 there.

    Args:
        max_laplacian: the largest `|laplacian of div F|` in the ball, >= 0, units sigma^{-p-2}.
        radius: R > 0.
        dim: d, the number of coordinates.

    Raises:
        ValueError: `max_laplacian < 0`, `radius <= 0`, `dim` not a positive integer.

    For `g = |y|^2` (laplacian 2d) the mean over the ball is `d R^2/(d+2)`, and so is the bound:

    >>> print(f"{radius_bias_bound(2.0 * 3, radius=0.5, dim=3):.4f} {3 * 0.5**2 / 5:.4f}")
    0.1500 0.1500
    """
    dim = positive_integer("dim", dim)
    positive_number("radius", radius)
    _check_norms(max_laplacian=max_laplacian)
    return jnp.asarray(radius) ** 2 / (2 * (dim + 2)) * max_laplacian


def score_error_bound(
    score_norms: ArrayLike,
    learned_norms: ArrayLike,
    error_norms: ArrayLike,
    *,
    radius: ArrayLike,
    dim: int,
) -> Array:
    r"""`|flux of s - flux of t| <= (d/R) E[2 |t - s|/(|s| + |t|)]` at p = 1, t a learned score.

    Proof: the two differ by `(d/R) |E[(s/|s| - t/|t|) . n]| <= (d/R) E|s/|s| - t/|t||`. With
    `a = |s|`, `b = |t|`, `w = |s/|s| - t/|t||`, `|s - t|^2 = (a - b)^2 + a b w^2`, and as `w <= 2`,
    `(a + b)^2 w^2/4 = a b w^2 + (a - b)^2 w^2/4 <= |s - t|^2` (Dunkl and Williams). Where one of
    the two vanishes, F = 0 there and the term is 2, above the true 1; where both do, 0. The same
    holds for the mean over any finite set of directions, so at given directions the bound is
    certain, not probable. Attained by `t = -s` when s is along n.

    Args:
        score_norms: `|s|` at points of the sphere, any shape, units 1/sigma; their mean is E.
        learned_norms: `|t|` at the same points.
        error_norms: `|t - s|` at the same points.
        radius: R > 0.
        dim: d, the number of coordinates.

    Raises:
        ValueError: norms that are negative or not finite or of different shapes, `radius <= 0`,
            `dim` not a positive integer.

    References:
        C. F. Dunkl and K. S. Williams, A simple norm inequality, Amer. Math. Monthly 71 (1964),
        doi:10.2307/2311304.

    >>> print(score_error_bound([1.0, 1.0], [1.0, 1.0], [0.1, 0.3], radius=0.5, dim=10).round(4))
    4.0
    """
    dim = positive_integer("dim", dim)
    positive_number("radius", radius)
    norms = {
        "score_norms": score_norms,
        "learned_norms": learned_norms,
        "error_norms": error_norms,
    }
    _check_norms(**norms)
    shapes = {name: np.shape(value) for name, value in norms.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"The norms must be at the same points, of one shape; got {shapes}")
    # Halved before the sum, which could overflow; 0/0 where both scores vanish is no error.
    mean_norm = 0.5 * jnp.asarray(score_norms) + 0.5 * jnp.asarray(learned_norms)
    error = jnp.asarray(error_norms)
    terms = jnp.where(error == 0, 0.0, error / jnp.where(mean_norm == 0, 1.0, mean_norm))
    return dim / jnp.asarray(radius) * jnp.mean(terms)


def sampling_bound(
    *, dim: int, radius: ArrayLike, num_directions: int, probability: float
) -> Array:
    r"""`(d/R) sqrt(2 ln(2/q)/N)`: the flux's error from N directions at p = 1, but for a chance q.

    Proof: the N samples `F . n` are independent and in [-1, 1], as `|F| <= 1`. Hoeffding:
    `P(|mean - E| >= t) <= 2 exp(-2 N t^2/2^2) = q` for `t = sqrt(2 ln(2/q)/N)`. It asks nothing of
    the score. Where samples are as spread as they can be (`F . n = -1` or `1`, as in d = 1) it is
    nearly attained; where F is smooth they are about `1/sqrt(d)`, and the standard error of the
    estimate is far below this bound.

    Args:
        dim: d, the number of coordinates.
        radius: R > 0.
        num_directions: N independent samples. Antithetic pairs count once each.
        probability: q, that the bound fails, between 0 and 1.

    Raises:
        ValueError: `dim` or `num_directions` not a positive integer, `radius <= 0`, `probability`
            outside (0, 1).

    References:
        W. Hoeffding, Probability inequalities for sums of bounded random variables, J. Amer.
        Statist. Assoc. 58 (1963), doi:10.1080/01621459.1963.10500830.

    >>> print(f"{sampling_bound(dim=1, radius=1.0, num_directions=128, probability=0.05):.4f}")
    0.2401
    """
    dim = positive_integer("dim", dim)
    num_directions = positive_integer("num_directions", num_directions)
    positive_number("radius", radius)
    if not 0 < probability < 1:
        raise ValueError(
            f"probability (that the bound fails) must be between 0 and 1, got {probability!r}"
        )
    return dim / jnp.asarray(radius) * math.sqrt(2 * math.log(2 / probability) / num_directions)


def _check_norms(**values: ArrayLike) -> None:
    """Finite and >= 0, where that is known."""
    for name, value in values.items():
        if isinstance(value, jax.core.Tracer):
            continue
        host = np.asarray(value)
        if host.size == 0 or not (np.isfinite(host) & (host >= 0)).all():
            raise ValueError(f"{name} must be finite and >= 0, at one point at least; got {value}")
