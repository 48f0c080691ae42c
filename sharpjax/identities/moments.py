r"""L1 to L5: second moments of scores. Proofs: `docs/identities.md`.

`p = N(mu, S)` and `p_c = N(mu_c, S_c)` stand for the unconditional and the conditional density;
`H = -S^{-1}` and `H_c = -S_c^{-1}` are their Hessians, `D = H_c - H`, `m = mu - mu_c`.

L2 to L5 are one lemma. With `y = x - mu_c`, `x ~ p_c`, an affine map of y has the second moment
`E|A y + b|^2 = tr(A S_c A^T) + |b|^2`, and `S_c = -H_c^{-1}` is where the minus comes from.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array, Score
from sharpjax.densities import Gaussian, GaussianMixture
from sharpjax.identities.drawing import (
    WEIGHTS,
    from_density,
    random_basis,
    random_covariance,
    random_data_set,
    random_direction,
)
from sharpjax.identities.identity import Identity, Printed

# Eigenvalues of covariances. The conditional density is the sharper one, and the two ranges are
# apart: no printed form can come near the right one by chance. Condition numbers are at most 2, so
# that a few thousand draws know each mean to a few percent.
WIDE, NARROW = (1.2, 2.4), (0.4, 0.8)

# Of the printed forms: Jeon, Kim and No, in Proceedings of Machine Learning Research 267, 27091.
ICML = "Jeon et al., ICML 2025, "


class Pair(NamedTuple):
    """An unconditional and a conditional normal density, and their common eigenvectors, if any."""

    p: Gaussian
    p_c: Gaussian
    basis: np.ndarray | None = None  # columns


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


def _commuting_pair(rng: np.random.Generator, dim: int) -> dict[str, Pair]:
    basis = random_basis(rng, dim)
    pair = _pair(rng, dim, basis=basis, shift=0.0)
    return {"commuting, m = 0": pair._replace(basis=basis)}


def _from_p_c(pair: Pair, rng: np.random.Generator, num: int) -> np.ndarray:
    return from_density(pair.p_c, rng, num)


# --- Left sides: scores and their tangents, no theory ---------------------------------------------


def _product(score: Score, x: Array) -> Array:
    """`H(x) s(x)`: the tangent of a score along itself."""
    value, tangent_map = jax.linearize(score, x)
    return tangent_map(value)


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

_Matrix = Callable[[Array, Array], Array]  # of H and H_c, or of their eigenvalues


def _lemma(mean: _Matrix, square: _Matrix, sign: int = -1) -> Callable[[Pair, Array], Array]:
    """`‖mean m‖² + sign tr(square H_c⁻¹)`, where the sign of the lemma is minus."""

    def closed_form(pair: Pair, x: Array) -> Array:
        H, H_c = (density.hessian(density.mean) for density in (pair.p, pair.p_c))
        m, H_c_inverse = pair.p.mean - pair.p_c.mean, -pair.p_c.covariance
        trace = jnp.trace(square(H, H_c) @ H_c_inverse)
        return jnp.sum((mean(H, H_c) @ m) ** 2) + sign * trace

    return closed_form


def _sum(term: _Matrix, sign: int = -1) -> Callable[[Pair, Array], Array]:
    """`sign Σ term(λ, λ_c)` over the eigenvectors that `H` and `H_c` have in common."""

    def closed_form(pair: Pair, x: Array) -> Array:
        H, H_c = (density.hessian(density.mean) for density in (pair.p, pair.p_c))
        λ, λ_c = (jnp.sum(pair.basis * (A @ pair.basis), axis=0) for A in (H, H_c))
        return sign * jnp.sum(term(λ, λ_c))

    return closed_form


def _minus_trace(p: Any, x: Array) -> Array:
    return -jnp.trace(p.hessian(x))


def _minus_trace_of_cube(p: Any, x: Array) -> Array:
    H = p.hessian(x)
    return -jnp.trace(H @ H @ H)


def _with_covariance_for_hessian(p: Any, x: Array) -> Array:
    H = -p.covariance
    return -jnp.trace(H @ H @ H)


def _square(A: Array) -> Array:
    return A @ A


_l2 = functools.partial(_lemma, lambda H, H_c: H, lambda H, H_c: _square(H_c - H))
_l2_sum = functools.partial(_sum, lambda λ, λ_c: (λ - λ_c) ** 2 / λ_c)
_l5_sum = functools.partial(_sum, lambda λ, λ_c: (λ - λ_c) ** 4 / λ_c)


# --- The table ------------------------------------------------------------------------------------

_of_densities = functools.partial(Identity, draw=from_density)
_of_pairs = functools.partial(Identity, settings=_pairs, draw=_from_p_c)
_of_commuting = functools.partial(Identity, settings=_commuting_pair, draw=_from_p_c)
_l3 = functools.partial(
    _of_densities,
    name="L3",
    statement="E‖Hs‖² = -tr(H³)",
    settings=_gaussian,
    left=_hessian_score,
    closed_form=_minus_trace_of_cube,
)

IDENTITIES = (
    _of_densities(
        name="L1",
        statement="E‖s‖² = -E[tr H(x)]",
        settings=_densities,
        left=_score,
        closed_form=_minus_trace,
        printed=Printed(ICML + "Lemma 4.1, of Gaussians", "-tr H(x)", _minus_trace, ("Gaussian",)),
    ),
    _of_pairs(
        name="L2",
        statement="E_c‖s_c - s‖² = ‖Hm‖² - tr((H - H_c)² H_c⁻¹)",
        left=_score_difference,
        closed_form=_l2(),
        printed=Printed(ICML + "Lemma 4.2", "‖Hm‖² + tr((H - H_c)² H_c⁻¹)", _l2(sign=+1)),
    ),
    _of_commuting(
        name="L2",
        statement="E_c‖s_c - s‖² = -Σ (λ - λ_c)²/λ_c",
        left=_score_difference,
        closed_form=_l2_sum(),
        printed=Printed(ICML + "Lemma 4.2, commuting, m = 0", "Σ (λ - λ_c)²/λ_c", _l2_sum(sign=+1)),
    ),
    _l3(printed=Printed(ICML + "Lemma 4.3, as proved (B.4)", "-tr(H³)", _minus_trace_of_cube)),
    _l3(
        printed=Printed(
            ICML + "Lemma 4.3, as stated", "-tr(H³) with H = -S", _with_covariance_for_hessian
        ),
    ),
    _of_pairs(
        name="L4",
        statement="E_c‖H_c s_c - H s‖² = ‖H²m‖² - tr((H_c² - H²)² H_c⁻¹)",
        left=_difference_of_products,
        closed_form=_lemma(lambda H, H_c: H @ H, lambda H, H_c: _square(_square(H_c) - _square(H))),
    ),
    _of_commuting(
        name="L4",
        statement="E_c‖H_c s_c - H s‖² = -Σ (λ_c² - λ²)²/λ_c",
        left=_difference_of_products,
        closed_form=_sum(lambda λ, λ_c: (λ_c**2 - λ**2) ** 2 / λ_c),
        printed=Printed(
            "a summary of another version of Jeon et al. (text not seen)",
            "Σ (λ - λ_c)⁴/λ_c⁴",
            _sum(lambda λ, λ_c: (λ - λ_c) ** 4 / λ_c**4, sign=+1),
        ),
    ),
    _of_pairs(
        name="L5",
        statement="E_c‖H_D s_D‖² = ‖DHm‖² - tr(D⁴ H_c⁻¹)",
        left=_product_of_differences,
        closed_form=_lemma(
            lambda H, H_c: (H_c - H) @ H, lambda H, H_c: functools.reduce(jnp.matmul, [H_c - H] * 4)
        ),
    ),
    _of_commuting(
        name="L5",
        statement="E_c‖H_D s_D‖² = -Σ (λ - λ_c)⁴/λ_c",
        left=_product_of_differences,
        closed_form=_l5_sum(),
        printed=Printed(
            ICML + "section 4.4, after Lemma 4.3", "Σ (λ - λ_c)⁴/λ_c", _l5_sum(sign=+1)
        ),
    ),
)
