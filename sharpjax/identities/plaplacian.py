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
from sharpjax.identities.identity import Identity

__all__ = ["IDENTITIES"]

EIGENVALUES = (0.5, 1.0)  # of the covariances
RADIUS = 0.75
NUM_DIRECTIONS = 64
PROBABILITY = 0.05


class Ball(NamedTuple):
    """A ball, a density, a p, and what the printed flux is multiplied by."""

    density: Any
    centre: np.ndarray  # (d,)
    radius: np.float64
    p: np.float64
    printed_factor: np.float64  # d/R gives the printed form what it lacks; its power stays wrong


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
    return Ball(
        density,
        3.0 * random_direction(rng, dim),
        np.float64(RADIUS),
        np.float64(1),
        np.float64(1),
    )


def _densities(rng: np.random.Generator, dim: int) -> dict[str, Any]:
    return {
        "Gaussian": _gaussian(rng, dim),
        "mixture": _mixture(rng, dim),
        "noised data set": random_data_set(rng, dim),
    }


def _balls(rng: np.random.Generator, dim: int) -> dict[str, Ball]:
    ball = _ball(rng, dim, _mixture(rng, dim))
    rescaled = ball._replace(printed_factor=np.float64(dim / RADIUS))
    return {
        "Gaussian, p = 1": _ball(rng, dim, _gaussian(rng, dim)),
        "mixture, p = 1": ball,
        "mixture, p = 2": rescaled._replace(p=np.float64(2)),
        "mixture, p = 3": rescaled._replace(p=np.float64(3)),
    }


def _isotropic_at_radius(rng: np.random.Generator, dim: int) -> dict[str, Gaussian]:
    return {"isotropic, at radius r": _isotropic(rng, dim)}


def _isotropic_at_mode(rng: np.random.Generator, dim: int) -> dict[str, Ball]:
    ball = _ball(rng, dim, _isotropic(rng, dim))
    return {"isotropic, at the mode": ball._replace(centre=np.zeros(dim))}


def _balls_for_bias(rng: np.random.Generator, dim: int) -> dict[str, Ball]:
    ball = _ball(rng, dim, _isotropic(rng, dim))
    return {
        "bias: isotropic, p = 1": ball,
        "bias: isotropic, p = 4": ball._replace(
            p=np.float64(4)
        ),  # attained: the laplacian is constant
    }


def _learned(rng: np.random.Generator, dim: int) -> dict[str, Learned]:
    weights = rng.normal(size=(dim, dim))
    return {"score error: Gaussian": Learned(_gaussian(rng, dim), weights, np.float64(RADIUS))}


def _ball_for_sampling(rng: np.random.Generator, dim: int) -> dict[str, Ball]:
    return {f"sampling: N={NUM_DIRECTIONS}, q={PROBABILITY}": _ball(rng, dim, _gaussian(rng, dim))}


# --- Draws ----------------------------------------------------------------------------------------


def _in_ball(ball: Ball, rng: np.random.Generator, num: int) -> np.ndarray:
    """`v` uniform in the ball about 0: a direction, and a radius whose d-th power is uniform."""
    dim = ball.centre.size
    result: np.ndarray = (
        RADIUS * rng.uniform(size=(num, 1)) ** (1 / dim) * random_direction(rng, num, dim)
    )
    return result


def _direction(ball: Ball, rng: np.random.Generator, num: int) -> np.ndarray:
    return random_direction(rng, num, ball.centre.size)


def _in_ball_and_direction(
    ball: Ball, rng: np.random.Generator, num: int
) -> tuple[np.ndarray, np.ndarray]:
    return _in_ball(ball, rng, num), _direction(ball, rng, num)


def _many_directions(ball: Ball, rng: np.random.Generator, num: int) -> np.ndarray:
    return random_direction(rng, num, NUM_DIRECTIONS, ball.centre.size)


def _point_and_p(density: Gaussian | GaussianMixture, rng: np.random.Generator, num: int) -> Any:
    """A point of the density, and p = 1, 1.5, 2 or 3."""
    return from_density(density, rng, num), rng.choice([1.0, 1.5, 2.0, 3.0], size=num)


def _direction_and_radius(density: Gaussian, rng: np.random.Generator, num: int) -> Any:
    return random_direction(rng, num, density.mean.size), rng.uniform(0.5, 3.0, size=num)


def _learned_at_centre(learned: Learned, rng: np.random.Generator, num: int) -> Any:
    """A centre, directions about it, and a size of the score's error from 0.01 to 1."""
    centres = from_density(learned.density, rng, num)
    directions = random_direction(rng, num, NUM_DIRECTIONS, centres.shape[1])
    return centres, directions, 10.0 ** rng.uniform(-2.0, 0.0, size=num)


# --- Left sides -----------------------------------------------------------------------------------


def _field(density: Gaussian | GaussianMixture, p: Any, x: Array) -> Array:
    """`F(x) = |s|^{p-2} s`."""
    s = density.score(x)
    result: Array = jnp.linalg.norm(s) ** (p - 2) * s
    return result


def _divergence(density: Gaussian | GaussianMixture, p: Any, x: Array) -> Array:
    """The trace of the Jacobian of F by forward mode: d tangents of the definition."""
    return jnp.trace(jax.jacfwd(functools.partial(_field, density, p))(x))


def _divergence_at_point(density: Gaussian | GaussianMixture, draw: Any) -> Array:
    x, p = draw
    return _divergence(density, p, x)


def _divergence_at_radius(density: Gaussian, draw: Any) -> Array:
    n, radius = draw
    return _divergence(density, 1.0, density.mean + radius * n)


def _value_in_ball(ball: Ball, draw: Any) -> Array:
    """`div F` at a point of the ball, whose mean over the ball is the left side of P2."""
    v, _ = draw
    result: Array = ball.density.p_laplacian(ball.centre + v, ball.p)
    return result


def _through_sphere(ball: Ball, n: Array) -> Array:
    """`(d/R) F(x + R n) . n`, whose mean over directions n is the flux form."""
    field = _field(ball.density, ball.p, jnp.asarray(ball.centre) + ball.radius * n)
    return n.size / ball.radius * jnp.dot(field, n)


def _both_ways(function: Callable[[Array], Array], n: Array) -> Array:
    """Its mean at n and -n: the same expectation, without the large odd part."""
    return 0.5 * (function(n) + function(-n))


def _bias_in_ball(ball: Ball, v: Array) -> Array:
    """`div F(x ± v) - div F(x)`, whose mean over the ball is the bias of the radius."""

    def value(v: Array) -> Array:
        result: Array = ball.density.p_laplacian(ball.centre + v, ball.p)
        return result

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
    result: Array = directions.shape[1] / learned.radius * jnp.abs(difference)
    return result


def _flux(ball: Ball, directions: Array) -> Array:
    return jnp.mean(jax.vmap(functools.partial(_through_sphere, ball))(directions))


# --- Closed forms, correct and as printed ---------------------------------------------------------


def _p_laplacian(density: Gaussian | GaussianMixture, draw: Any) -> Array:
    x, p = draw
    result: Array = density.p_laplacian(x, p)
    return result


def _flux_form(ball: Ball, draw: Any) -> Array:
    _, n = draw
    return _both_ways(functools.partial(_through_sphere, ball), n)


def _public_code(ball: Ball, draw: Any) -> Array:
    """`cos |s|^{p-2}`, cos between the score and the direction."""

    def through_sphere(n: Array) -> Array:
        s = ball.density.score(ball.centre + ball.radius * n)
        norm = jnp.linalg.norm(s)
        result: Array = jnp.dot(s, n) / norm * norm ** (ball.p - 2)
        return result

    return ball.printed_factor * _both_ways(through_sphere, draw[1])


def _at_radius(density: Gaussian, draw: Any) -> Array:
    n, radius = draw
    result: Array = -(n.size - 1) / radius
    return result


def _at_mode(ball: Ball, n: Array) -> Array:
    return jnp.asarray(-n.size / ball.radius)


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

IDENTITIES = (
    Identity(
        name="P1",
        statement="Δ_p u = ‖s‖^{p-2} (tr H + (p-2) ŝᵀHŝ), ŝ = s/‖s‖",
        settings=_densities,
        draw=_point_and_p,
        left=_divergence_at_point,
        closed_form=_p_laplacian,
        compare=equal_at_every_draw,
        num_draws=256,
        points_per_draw=lambda dim: dim,
    ),
    Identity(
        name="P2",
        statement="ball mean of Δ_p u = (d/R) E_n[F(x + Rn)·n]",
        settings=_balls,
        draw=_in_ball_and_direction,
        left=_value_in_ball,
        closed_form=_flux_form,
        printed_statement="E_n[cos ‖s‖^{p-2}]; × d/R added for p > 1",
        printed=_public_code,
        compare=functools.partial(equal_means, printed_mean=True),
    ),
    Identity(
        name="P3",
        statement="Δ_1 u = -(d-1)/r",
        settings=_isotropic_at_radius,
        draw=_direction_and_radius,
        left=_divergence_at_radius,
        closed_form=_at_radius,
        compare=equal_at_every_draw,
        num_draws=256,
        points_per_draw=lambda dim: dim,
    ),
    Identity(
        name="P3",
        statement="(d/R) E_n[F(Rn)·n] = -d/R, p = 1",
        settings=_isotropic_at_mode,
        draw=_direction,
        left=_through_sphere,
        closed_form=_at_mode,
        compare=equal_at_every_draw,
        num_draws=256,
    ),
    Identity(
        name="P4",
        statement="|ball mean of Δ_p u - Δ_p u(x)| ≤ R²/(2(d+2)) max |ΔΔ_p u|",
        settings=_balls_for_bias,
        draw=_in_ball,
        left=_bias_in_ball,
        closed_form=_radius_bias_bound,
        compare=bounds_the_mean,
        num_draws=2**14,
    ),
    Identity(
        name="P4",
        statement="|flux of t - flux of s| ≤ (d/R) E[2‖t - s‖/(‖s‖ + ‖t‖)], t learned",
        settings=_learned,
        draw=_learned_at_centre,
        left=_flux_error,
        closed_form=_score_error_bound,
        compare=bounds_every_draw,
        num_draws=256,
        points_per_draw=lambda dim: NUM_DIRECTIONS,
    ),
    Identity(
        name="P4",
        statement="|flux, N directions - flux| ≤ (d/R) √(2 ln(2/q)/N), but for a share q",
        settings=_ball_for_sampling,
        draw=_many_directions,
        left=_flux,
        closed_form=_sampling_bound,
        compare=functools.partial(bounds_every_draw, share=PROBABILITY, centred=True),
        num_draws=1024,
        points_per_draw=lambda dim: NUM_DIRECTIONS,
    ),
)
