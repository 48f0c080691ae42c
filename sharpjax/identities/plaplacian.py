r"""P1 to P4: p-Laplacians, their flux form and its error bounds. Proofs: `docs/identities.md`.

`F = |s|^{p-2} s` and `div F` is the p-Laplacian of `log p`. The flux and the ball mean are plain
Monte Carlo here, written without the estimators of `sharpjax.curvature`, which they thereby check.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array
from sharpjax.curvature.plaplacian_bounds import (
    radius_bias_bound,
    sampling_bound,
    score_error_bound,
)
from sharpjax.densities import Gaussian, GaussianMixture
from sharpjax.identities.compare import (
    bounds_every_draw,
    bounds_the_mean,
    equal_at_every_draw,
    equal_means,
)
from sharpjax.identities.drawing import (
    WEIGHTS,
    from_density,
    random_covariance,
    random_data_set,
    random_direction,
)
from sharpjax.identities.identity import Identity, Printed

EIGENVALUES = (0.5, 1.0)  # of the covariances
RADIUS = 0.75
NUM_DIRECTIONS = 64
PROBABILITY = 0.05
BOUNDS_NOT_SEEN = Printed("Brokman et al., bounds of arXiv:2505.08246v2: text not seen")


class Ball(NamedTuple):
    """A ball, a density and a p."""

    density: Any
    centre: np.ndarray  # (d,)
    radius: np.float64
    p: np.float64


class Learned(NamedTuple):
    """A density, and the error of a learned score, a multiple of `sin(W^T x)`."""

    density: Any
    weights: np.ndarray  # W, (d, d)
    radius: np.float64


# --- Settings -------------------------------------------------------------------------------------


def _mixture(rng: np.random.Generator, dim: int) -> GaussianMixture:
    """A mixture whose score has all its zeros within 2 of the origin.

    Where `s = 0`, `(sum_k r_k S_k^{-1}) x = sum_k r_k S_k^{-1} mu_k`. The smallest eigenvalue of
    the matrix on the left is at least 1, the vector on the right is at most 1/0.5 long.
    """
    covariances = np.array([random_covariance(rng, dim, EIGENVALUES) for _ in range(3)])
    return GaussianMixture(WEIGHTS, random_direction(rng, 3, dim), covariances)


def _gaussian(rng: np.random.Generator, dim: int) -> Gaussian:
    return Gaussian(np.zeros(dim), random_covariance(rng, dim, EIGENVALUES))


def _isotropic(rng: np.random.Generator, dim: int) -> Gaussian:
    return Gaussian(np.zeros(dim), rng.uniform(*EIGENVALUES) * np.eye(dim))


def _ball(rng: np.random.Generator, dim: int, density: Gaussian | GaussianMixture) -> Ball:
    """A ball that holds no zero of the score, so that F is smooth in it, and p = 1."""
    return Ball(density, 3.0 * random_direction(rng, dim), np.float64(RADIUS), np.float64(1))


def _densities(rng: np.random.Generator, dim: int) -> dict[str, Any]:
    return {
        "Gaussian": _gaussian(rng, dim),
        "mixture": _mixture(rng, dim),
        "noised data set": random_data_set(rng, dim),
    }


def _balls(rng: np.random.Generator, dim: int) -> dict[str, Ball]:
    ball = _ball(rng, dim, _mixture(rng, dim))
    return {f"mixture, p = {p}": ball._replace(p=np.float64(p)) for p in (1, 2, 3)}


def _balls_of_later_code(rng: np.random.Generator, dim: int) -> dict[str, Ball]:
    return {f"{name} (later)": ball for name, ball in _balls(rng, dim).items()}


def _isotropic_at_mode(rng: np.random.Generator, dim: int) -> dict[str, Ball]:
    ball = _ball(rng, dim, _isotropic(rng, dim))
    return {"isotropic, at the mode": ball._replace(centre=np.zeros(dim))}


def _balls_for_bias(rng: np.random.Generator, dim: int) -> dict[str, Ball]:
    ball = _ball(rng, dim, _isotropic(rng, dim))
    attained = ball._replace(p=np.float64(4))  # the laplacian is constant
    return {"bias: isotropic, p = 1": ball, "bias: isotropic, p = 4": attained}


def _learned(rng: np.random.Generator, dim: int) -> dict[str, Learned]:
    weights = rng.normal(size=(dim, dim))
    return {"score error: Gaussian": Learned(_gaussian(rng, dim), weights, np.float64(RADIUS))}


# --- Draws ----------------------------------------------------------------------------------------


def _in_ball(ball: Ball, rng: np.random.Generator, num: int) -> np.ndarray:
    """`v` uniform in the ball about 0: a direction, and a radius whose d-th power is uniform."""
    dim = ball.centre.size
    return RADIUS * rng.uniform(size=(num, 1)) ** (1 / dim) * random_direction(rng, num, dim)


def _direction(ball: Ball, rng: np.random.Generator, num: int) -> np.ndarray:
    return random_direction(rng, num, ball.centre.size)


def _point_and_p(density: Gaussian | GaussianMixture, rng: np.random.Generator, num: int) -> Any:
    """A point of the density, and p = 1, 1.5, 2 or 3."""
    return from_density(density, rng, num), rng.choice([1.0, 1.5, 2.0, 3.0], size=num)


def _learned_at_centre(learned: Learned, rng: np.random.Generator, num: int) -> Any:
    """A centre, directions about it, and a size of the score's error from 0.01 to 1."""
    centres = from_density(learned.density, rng, num)
    directions = random_direction(rng, num, NUM_DIRECTIONS, centres.shape[1])
    return centres, directions, 10.0 ** rng.uniform(-2.0, 0.0, size=num)


# --- Left sides -----------------------------------------------------------------------------------


def _field(density: Gaussian | GaussianMixture, p: Any, x: Array) -> Array:
    """`F(x) = |s|^{p-2} s`."""
    s = density.score(x)
    return jnp.linalg.norm(s) ** (p - 2) * s


def _divergence(density: Gaussian | GaussianMixture, x: Array, p: Any) -> Array:
    """The trace of the Jacobian of F by forward mode: d tangents of the definition."""
    return jnp.trace(jax.jacfwd(functools.partial(_field, density, p))(x))


def _value_in_ball(ball: Ball, v: Array) -> Array:
    """`div F` at a point of the ball."""
    return ball.density.p_laplacian(ball.centre + v, ball.p)


def _through_sphere(ball: Ball, n: Array) -> Array:
    """`(d/R) F(x + R n) . n`, whose mean over directions n is the flux form."""
    field = _field(ball.density, ball.p, jnp.asarray(ball.centre) + ball.radius * n)
    return n.size / ball.radius * jnp.dot(field, n)


def _both_ways(function: Callable[[Array], Array], n: Array) -> Array:
    """Its mean at n and -n: the same expectation, without the large odd part."""
    return 0.5 * (function(n) + function(-n))


def _bias_in_ball(ball: Ball, v: Array) -> Array:
    """`div F(x ± v) - div F(x)`, whose mean over the ball is the bias of the radius."""
    value = functools.partial(_value_in_ball, ball)
    return _both_ways(value, v) - value(jnp.zeros_like(v))


def _scores_on_sphere(learned: Learned, draw: Any) -> tuple[Array, Array]:
    centre, directions, size = draw
    points = centre + learned.radius * directions
    scores = jax.vmap(learned.density.score)(points)
    return scores, scores + size * jnp.sin(points @ learned.weights)


def _flux_error(learned: Learned, draw: Any) -> Array:
    """The difference of the fluxes of the score and the learned score, same directions."""
    _, directions, _ = draw
    s, t = (v / jnp.linalg.norm(v, axis=1)[:, None] for v in _scores_on_sphere(learned, draw))
    difference = jnp.mean(jnp.sum((t - s) * directions, axis=1))
    return directions.shape[1] / learned.radius * jnp.abs(difference)


# --- Closed forms, correct and as printed ---------------------------------------------------------


def _flux_form(ball: Ball, draw: Any) -> Array:
    _, n = draw
    return _both_ways(functools.partial(_through_sphere, ball), n)


def _first_public_code(ball: Ball, draw: Any) -> Array:
    """`cos`, between score and direction, and for p != 1 `cos |s|^{p-2}`; times d/R."""

    def through_sphere(n: Array) -> Array:
        s = ball.density.score(ball.centre + ball.radius * n)
        norm = jnp.linalg.norm(s)
        power = jnp.where(ball.p == 1, 1.0, norm ** (ball.p - 2))
        return n.size / ball.radius * jnp.dot(s, n) / norm * power

    return _both_ways(through_sphere, draw[1])


def _radius_bias_bound(ball: Ball, v: Array) -> Array:
    """The bound, with the laplacian of `g = div F` in closed form.

    For `N(0, c I)`, `F = -|x|^{p-2} x / c^{p-1}` and `g = -(d+p-2) r^{p-2} / c^{p-1}`, and the
    laplacian of `r^k` is `k (k+d-2) r^{k-2}`: a power of r, largest at the point of the ball that
    is nearest to the mode or at the farthest.
    """
    dim, p, variance = v.size, ball.p, ball.density.covariance[0, 0]
    distance = jnp.linalg.norm(ball.centre - ball.density.mean)
    radii = jnp.stack([distance - ball.radius, distance + ball.radius])
    factor = (dim + p - 2) * (p - 2) * (p + dim - 4) / variance ** (p - 1)
    largest = jnp.max(jnp.abs(factor) * radii ** (p - 4))
    return radius_bias_bound(largest, radius=ball.radius, dim=dim)


def _score_error_bound(learned: Learned, draw: Any) -> Array:
    scores, others = _scores_on_sphere(learned, draw)
    norms = (jnp.linalg.norm(v, axis=1) for v in (scores, others, others - scores))
    return score_error_bound(*norms, radius=learned.radius, dim=scores.shape[1])


def _sampling_bound(ball: Ball, directions: Array) -> Array:
    num, dim = directions.shape
    return sampling_bound(dim=dim, radius=ball.radius, num_directions=num, probability=PROBABILITY)


# --- The table ------------------------------------------------------------------------------------

# Printed by two versions of one code.
_ball_mean = functools.partial(
    Identity,
    name="P2",
    statement="ball mean of Δ_p u = (d/R) E_n[F(x + Rn)·n]",
    draw=lambda ball, rng, num: (_in_ball(ball, rng, num), _direction(ball, rng, num)),
    left=lambda ball, draw: _value_in_ball(ball, draw[0]),
    closed_form=_flux_form,
    compare=functools.partial(equal_means, printed_mean=True),
)

_at_every_draw = functools.partial(Identity, compare=equal_at_every_draw, num_draws=256)
_bound = functools.partial(Identity, name="P4", printed=BOUNDS_NOT_SEEN)

IDENTITIES = (
    _at_every_draw(
        name="P1",
        statement="Δ_p u = ‖s‖^{p-2} (tr H + (p-2) ŝᵀHŝ), ŝ = s/‖s‖",
        settings=_densities,
        draw=_point_and_p,
        left=lambda density, draw: _divergence(density, *draw),
        closed_form=lambda density, draw: density.p_laplacian(*draw),
        points_per_draw=lambda dim: dim,
    ),
    _ball_mean(
        settings=_balls,
        printed=Printed(
            "Brokman et al., first code, p_laplace_core.py (1e35509b)",
            "E_n[cos] for p = 1, else E_n[cos ‖s‖^{p-2}]; × d/R",
            _first_public_code,
        ),
    ),
    _ball_mean(
        settings=_balls_of_later_code,
        printed=Printed(
            "Brokman et al., later code, core/p_laplace.py (6922e7aa)",
            "E_n[‖s‖^{p-2} s·n]; × d/R",
            _flux_form,
        ),
    ),
    _at_every_draw(
        name="P3",
        statement="Δ_1 u = -(d-1)/r",
        settings=lambda rng, dim: {"isotropic, at radius r": _isotropic(rng, dim)},
        draw=lambda density, rng, num: (
            random_direction(rng, num, density.mean.size),
            rng.uniform(0.5, 3.0, size=num),
        ),
        left=lambda density, draw: _divergence(density, density.mean + draw[1] * draw[0], 1.0),
        closed_form=lambda density, draw: -(draw[0].size - 1) / draw[1],
        points_per_draw=lambda dim: dim,
    ),
    _at_every_draw(
        name="P3",
        statement="(d/R) E_n[F(Rn)·n] = -d/R, p = 1",
        settings=_isotropic_at_mode,
        draw=_direction,
        left=_through_sphere,
        closed_form=lambda ball, n: jnp.asarray(-n.size / ball.radius),
    ),
    _bound(
        statement="|ball mean of Δ_p u - Δ_p u(x)| ≤ R²/(2(d+2)) max |ΔΔ_p u|",
        settings=_balls_for_bias,
        draw=_in_ball,
        left=_bias_in_ball,
        closed_form=_radius_bias_bound,
        compare=bounds_the_mean,
        num_draws=2**14,
    ),
    _bound(
        statement="|flux of t - flux of s| ≤ (d/R) E[2‖t - s‖/(‖s‖ + ‖t‖)], t learned",
        settings=_learned,
        draw=_learned_at_centre,
        left=_flux_error,
        closed_form=_score_error_bound,
        compare=bounds_every_draw,
        num_draws=256,
        points_per_draw=lambda dim: NUM_DIRECTIONS,
    ),
    _bound(
        statement="|flux, N directions - flux| ≤ (d/R) √(2 ln(2/q)/N), but for a share q",
        settings=lambda rng, dim: {
            f"sampling: N={NUM_DIRECTIONS}, q={PROBABILITY}": _ball(rng, dim, _gaussian(rng, dim))
        },
        draw=lambda ball, rng, num: random_direction(rng, num, NUM_DIRECTIONS, ball.centre.size),
        left=lambda ball, v: jnp.mean(jax.vmap(functools.partial(_through_sphere, ball))(v)),
        closed_form=_sampling_bound,
        compare=functools.partial(bounds_every_draw, share=PROBABILITY, centred=True),
        num_draws=1024,
        points_per_draw=lambda dim: NUM_DIRECTIONS,
    ),
)
