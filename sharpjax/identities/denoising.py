r"""D1: what the denoising loss of the exact score is.  Proof: `sharpjax.dimension.denoising_loss`.

`x = alpha x_0 + sigma eps`, and the score is that of the law of `x`: the loss of the best denoiser
is the mean effective dimension, whatever the density and the level.  At one clean point, the mean
over the noise alone, it is another number.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array
from sharpjax.densities import Empirical, Gaussian, GaussianMixture
from sharpjax.identities.drawing import WEIGHTS, from_density, random_covariance, random_direction
from sharpjax.identities.identity import Identity

ALPHA, SIGMA = 0.8, 0.6


class Noised(NamedTuple):
    """Clean data, and their law at the level."""

    clean: Any
    noised: Any


def _densities(rng: np.random.Generator, dim: int) -> dict[str, Any]:
    means = 2.0 * random_direction(rng, 3, dim)
    covariances = np.array([random_covariance(rng, dim, (0.2, 2.0)) for _ in range(3)])
    clean: dict[str, Any] = {
        "Gaussian": _gaussian(rng, dim),
        "mixture": GaussianMixture(WEIGHTS, means, covariances),
        "data set": Empirical(1.5 * random_direction(rng, 4, dim)),
    }
    return {name: Noised(p, p.noised(ALPHA, SIGMA)) for name, p in clean.items()}


def _gaussian(rng: np.random.Generator, dim: int) -> Gaussian:
    return Gaussian(rng.normal(size=dim), random_covariance(rng, dim, (0.2, 2.0)))


def _at_a_point(rng: np.random.Generator, dim: int) -> dict[str, Any]:
    p = _gaussian(rng, dim)
    return {"Gaussian, one point": (Noised(p, p.noised(ALPHA, SIGMA)), rng.normal(size=dim))}


def _draw(setting: Noised, rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Clean points and noises."""
    if isinstance(setting.clean, Empirical):
        points, weights = np.asarray(setting.clean.points), np.asarray(setting.clean.weights)
        x0 = points[rng.choice(len(points), size=num, p=weights)]
    else:
        x0 = from_density(setting.clean, rng, num)
    return x0, rng.normal(size=x0.shape)


def _draw_noise(
    setting: tuple[Noised, np.ndarray], rng: np.random.Generator, num: int
) -> tuple[np.ndarray, np.ndarray]:
    x0 = np.asarray(setting[1])
    return np.broadcast_to(x0, (num, *x0.shape)), rng.normal(size=(num, *x0.shape))


def _loss(setting: Noised, draw: tuple[Array, Array]) -> Array:
    x0, noise = draw
    return jnp.sum((noise + SIGMA * setting.noised.score(ALPHA * x0 + SIGMA * noise)) ** 2)


def _curvature(p: Any, x: Array) -> Array:
    hessian = jax.jacfwd(p.score)(x)
    return jnp.eye(x.size) + SIGMA**2 * hessian


def _effective_dimension(setting: Noised, draw: tuple[Array, Array]) -> Array:
    x0, noise = draw
    return jnp.trace(_curvature(setting.noised, ALPHA * x0 + SIGMA * noise))


def _of_one_point(setting: tuple[Noised, Array], draw: Any) -> Array:
    p, x = setting[0].noised, ALPHA * setting[1]
    K = _curvature(p, x)
    return jnp.trace(K @ K) + SIGMA**2 * jnp.sum(p.score(x) ** 2)


IDENTITIES = (
    Identity(
        name="D1",
        statement="E‖ε - ε̂(x)‖² = E[tr K(x)]",
        settings=_densities,
        draw=_draw,
        left=_loss,
        closed_form=_effective_dimension,
    ),
    Identity(
        name="D1",
        statement="E[‖ε - ε̂(x)‖² | x₀] = tr K² + σ²‖s(αx₀)‖²",
        settings=_at_a_point,
        draw=_draw_noise,
        left=lambda setting, draw: _loss(setting[0], draw),
        closed_form=_of_one_point,
    ),
)
