r"""L1 to L5: second moments of scores. Proofs: `docs/identities.md`.

`p = N(mu, S)` and `p_c = N(mu_c, S_c)` stand for the unconditional and the conditional density;
`H = -S^{-1}` and `H_c = -S_c^{-1}` are their Hessians, `D = H_c - H`, `m = mu - mu_c`.

L2 to L5 are one lemma. With `y = x - mu_c`, `x ~ p_c`, an affine map of y has the second moment
`E|A y + b|^2 = tr(A S_c A^T) + |b|^2`, and `S_c = -H_c^{-1}` is where the minus comes from.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array, Score
from sharpjax.densities import Gaussian, GaussianMixture
from sharpjax.identities.compare import equal_means
from sharpjax.identities.drawing import (
    WEIGHTS,
    from_density,
    random_basis,
    random_covariance,
    random_data_set,
    random_direction,
)
from sharpjax.identities.identity import Identity

__all__ = ["IDENTITIES"]

# Eigenvalues of covariances. The conditional density is the sharper one, and the two ranges are
# apart: no printed form can come near the right one by chance. Condition numbers are at most 2, so
# that a few thousand draws know each mean to a few percent.
WIDE, NARROW = (1.2, 2.4), (0.4, 0.8)


class Pair(NamedTuple):
    """An unconditional and a conditional normal density."""

    p: Gaussian
    p_c: Gaussian


class CommutingPair(NamedTuple):
    """A pair whose covariances have the same eigenvectors, the columns of `basis`."""

    p: Gaussian
    p_c: Gaussian
    basis: np.ndarray


# --- Settings and draws ---------------------------------------------------------------------------


def _gaussian(rng: np.random.Generator, dim: int) -> dict[str, Any]:
    return {"Gaussian": Gaussian(rng.normal(size=dim), random_covariance(rng, dim, WIDE))}


def _densities(rng: np.random.Generator, dim: int) -> dict[str, Any]:
    """A Gaussian, and two densities whose Hessian varies with x."""
    means = 2.0 * random_direction(rng, 3, dim)
    covariances = np.array([random_covariance(rng, dim, e) for e in (WIDE, NARROW, NARROW)])
    return _gaussian(rng, dim) | {
        "mixture": GaussianMixture(WEIGHTS, means, covariances),
        "noised data set": random_data_set(rng, dim),
    }


def _pair(rng: np.random.Generator, dim: int, *, basis: np.ndarray | None, shift: float) -> Pair:
    """With common eigenvectors if a basis is given, and `|m| = shift`."""
    mean = rng.normal(size=dim)
    mean_c = mean - shift * random_direction(rng, dim)
    p = Gaussian(mean, random_covariance(rng, dim, WIDE, basis))
    return Pair(p, Gaussian(mean_c, random_covariance(rng, dim, NARROW, basis)))


def _pairs(rng: np.random.Generator, dim: int) -> dict[str, Pair]:
    return {
        "commuting, m ≠ 0": _pair(rng, dim, basis=random_basis(rng, dim), shift=1.0),
        "not commuting, m = 0": _pair(rng, dim, basis=None, shift=0.0),
        "not commuting, m ≠ 0": _pair(rng, dim, basis=None, shift=1.0),
    }


def _commuting_pair(rng: np.random.Generator, dim: int) -> dict[str, CommutingPair]:
    basis = random_basis(rng, dim)
    return {"commuting, m = 0": CommutingPair(*_pair(rng, dim, basis=basis, shift=0.0), basis)}


def _from_p_c(pair: Pair, rng: np.random.Generator, num: int) -> np.ndarray:
    return from_density(pair.p_c, rng, num)


# --- Left sides: scores and their tangents, no theory ---------------------------------------------


def _product(score: Score, x: Array) -> Array:
    """`H(x) s(x)`: the tangent of a score along itself."""
    value, tangent_map = jax.linearize(score, x)
    result: Array = tangent_map(value)
    return result


def _score(p: Any, x: Array) -> Array:
    return jnp.sum(p.score(x) ** 2)


def _hessian_score(p: Any, x: Array) -> Array:
    return jnp.sum(_product(p.score, x) ** 2)


def _score_difference(pair: Pair, x: Array) -> Array:
    return jnp.sum((pair.p_c.score(x) - pair.p.score(x)) ** 2)


def _difference_of_products(pair: Pair, x: Array) -> Array:
    return jnp.sum((_product(pair.p_c.score, x) - _product(pair.p.score, x)) ** 2)


def _product_of_differences(pair: Pair, x: Array) -> Array:
    return jnp.sum(_product(lambda y: pair.p_c.score(y) - pair.p.score(y), x) ** 2)


# --- Closed forms, correct and as printed ---------------------------------------------------------


def _matrices(pair: Pair | CommutingPair) -> tuple[Array, Array, Array, Array]:
    """`H, H_c, H_c^{-1}, m`."""
    H, H_c = (density.hessian(density.mean) for density in (pair.p, pair.p_c))
    return H, H_c, -pair.p_c.covariance, pair.p.mean - pair.p_c.mean


def _eigenvalues(pair: CommutingPair) -> Iterator[Array]:
    """`lambda` of `H` and `lambda_c` of `H_c`, paired by their common eigenvectors."""
    H, H_c, _, _ = _matrices(pair)
    return (jnp.sum(pair.basis * (A @ pair.basis), axis=0) for A in (H, H_c))


def _minus_trace(p: Any, x: Array) -> Array:
    return -jnp.trace(p.hessian(x))


def _minus_trace_of_cube(p: Any, x: Array) -> Array:
    H = p.hessian(x)
    return -jnp.trace(H @ H @ H)


def _with_covariance_for_hessian(p: Any, x: Array) -> Array:
    H = -p.covariance
    return -jnp.trace(H @ H @ H)


def _l2(pair: Pair, x: Array) -> Array:
    H, H_c, H_c_inverse, m = _matrices(pair)
    D = H_c - H
    return jnp.sum((H @ m) ** 2) - jnp.trace(D @ D @ H_c_inverse)


def _l2_printed(pair: Pair, x: Array) -> Array:
    H, H_c, H_c_inverse, m = _matrices(pair)
    D = H_c - H
    return jnp.sum((H @ m) ** 2) + jnp.trace(D @ D @ H_c_inverse)


def _l2_sum(pair: CommutingPair, x: Array) -> Array:
    λ, λ_c = _eigenvalues(pair)
    return -jnp.sum((λ - λ_c) ** 2 / λ_c)


def _l2_sum_printed(pair: CommutingPair, x: Array) -> Array:
    return -_l2_sum(pair, x)


def _l4(pair: Pair, x: Array) -> Array:
    H, H_c, H_c_inverse, m = _matrices(pair)
    A = H_c @ H_c - H @ H
    return jnp.sum((H @ H @ m) ** 2) - jnp.trace(A @ A @ H_c_inverse)


def _l4_sum(pair: CommutingPair, x: Array) -> Array:
    λ, λ_c = _eigenvalues(pair)
    return -jnp.sum((λ_c**2 - λ**2) ** 2 / λ_c)


def _l4_sum_printed(pair: CommutingPair, x: Array) -> Array:
    λ, λ_c = _eigenvalues(pair)
    return jnp.sum((λ - λ_c) ** 4 / λ_c**4)


def _l5(pair: Pair, x: Array) -> Array:
    H, H_c, H_c_inverse, m = _matrices(pair)
    D = H_c - H
    return jnp.sum((D @ H @ m) ** 2) - jnp.trace(D @ D @ D @ D @ H_c_inverse)


def _l5_sum(pair: CommutingPair, x: Array) -> Array:
    λ, λ_c = _eigenvalues(pair)
    return -jnp.sum((λ - λ_c) ** 4 / λ_c)


def _l5_sum_printed(pair: CommutingPair, x: Array) -> Array:
    return -_l5_sum(pair, x)


# --- The table ------------------------------------------------------------------------------------

IDENTITIES = (
    Identity(
        name="L1",
        statement="E‖s‖² = -E[tr H(x)]",
        settings=_densities,
        draw=from_density,
        left=_score,
        closed_form=_minus_trace,
        printed_statement="-tr H(x)",
        printed=_minus_trace,
        compare=equal_means,
    ),
    Identity(
        name="L2",
        statement="E_c‖s_c - s‖² = ‖Hm‖² - tr((H - H_c)² H_c⁻¹)",
        settings=_pairs,
        draw=_from_p_c,
        left=_score_difference,
        closed_form=_l2,
        printed_statement="‖Hm‖² + tr((H - H_c)² H_c⁻¹)",
        printed=_l2_printed,
        compare=equal_means,
    ),
    Identity(
        name="L2",
        statement="E_c‖s_c - s‖² = -Σ (λ - λ_c)²/λ_c",
        settings=_commuting_pair,
        draw=_from_p_c,
        left=_score_difference,
        closed_form=_l2_sum,
        printed_statement="Σ (λ - λ_c)²/λ_c",
        printed=_l2_sum_printed,
        compare=equal_means,
    ),
    Identity(
        name="L3",
        statement="E‖Hs‖² = -tr(H³)",
        settings=_gaussian,
        draw=from_density,
        left=_hessian_score,
        closed_form=_minus_trace_of_cube,
        printed_statement="-tr(H³)",
        printed=_minus_trace_of_cube,
        compare=equal_means,
    ),
    Identity(
        name="L3",
        statement="E‖Hs‖² = -tr(H³)",
        settings=_gaussian,
        draw=from_density,
        left=_hessian_score,
        closed_form=_minus_trace_of_cube,
        printed_statement="-tr(H³) with H = -S",
        printed=_with_covariance_for_hessian,
        compare=equal_means,
    ),
    Identity(
        name="L4",
        statement="E_c‖H_c s_c - H s‖² = ‖H²m‖² - tr((H_c² - H²)² H_c⁻¹)",
        settings=_pairs,
        draw=_from_p_c,
        left=_difference_of_products,
        closed_form=_l4,
        compare=equal_means,
    ),
    Identity(
        name="L4",
        statement="E_c‖H_c s_c - H s‖² = -Σ (λ_c² - λ²)²/λ_c",
        settings=_commuting_pair,
        draw=_from_p_c,
        left=_difference_of_products,
        closed_form=_l4_sum,
        printed_statement="Σ (λ - λ_c)⁴/λ_c⁴",
        printed=_l4_sum_printed,
        compare=equal_means,
    ),
    Identity(
        name="L5",
        statement="E_c‖H_D s_D‖² = ‖DHm‖² - tr(D⁴ H_c⁻¹)",
        settings=_pairs,
        draw=_from_p_c,
        left=_product_of_differences,
        closed_form=_l5,
        compare=equal_means,
    ),
    Identity(
        name="L5",
        statement="E_c‖H_D s_D‖² = -Σ (λ - λ_c)⁴/λ_c",
        settings=_commuting_pair,
        draw=_from_p_c,
        left=_product_of_differences,
        closed_form=_l5_sum,
        printed_statement="Σ (λ - λ_c)⁴/λ_c",
        printed=_l5_sum_printed,
        compare=equal_means,
    ),
)
