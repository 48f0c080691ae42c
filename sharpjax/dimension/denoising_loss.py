r"""Dimension from the denoising loss alone.

**D1.** Of $x = \alpha x_0 + \sigma\varepsilon$ and the exact score, at every level,

$$
E \|\varepsilon - \hat\varepsilon(x)\|^2 = E\, \mathrm{tr} K(x), \qquad \hat\varepsilon = -\sigma s,
$$

means over $x_0$ and $\varepsilon$.  Proof: $\hat\varepsilon(x) = E[\varepsilon \mid x]$ by Tweedie,
so the left side is $E\, \mathrm{tr}\, \mathrm{Cov}[\varepsilon \mid x]$; given $x$,
$\sigma\varepsilon = x - \alpha x_0$, so $\mathrm{Cov}[\varepsilon \mid x] =
(\alpha^2/\sigma^2)\, \mathrm{Cov}[x_0 \mid x] = K$.  `sharpjax verify` checks it.

At *one* clean point, the mean over $\varepsilon$ alone, it is another number: of a Gaussian
$\varepsilon + \sigma s = K\varepsilon + \sigma s(\alpha x_0)$, so the loss is
$\mathrm{tr} K^2 + \sigma^2 \|s\|^2$.  On a manifold $K$ is a projection and both are its dimension.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._checks import positive_integer, prng_key
from sharpjax._types import Array, ArrayLike, Key, Score
from sharpjax.curvature.estimate import Estimate
from sharpjax.curvature.programs import as_pytree, compiled
from sharpjax.dimension.level import at_level
from sharpjax.mesh.loops import chunked_map, varying_as
from sharpjax.score import score_at


def denoising_loss(
    score: Score,
    x0: ArrayLike,
    *,
    alpha: ArrayLike,
    sigma: ArrayLike,
    key: Key | None = None,
    num_samples: int = 32,
    batch_size: int = 32,
) -> Estimate:
    r"""The mean of $\|\varepsilon + \sigma s(\alpha x_0 + \sigma\varepsilon)\|^2$ over noises.

    Args:
        score: of the noised data at this level.
        x0: the clean point, any shape.
        alpha: signal, > 0.
        sigma: noise, > 0.
        key: PRNG key of the noises.  Noise i depends on `(key, i)` only.
        num_samples: noises, an evaluation of the score each; two at least, for an error.
        batch_size: noises at once.

    Returns:
        An `Estimate`; no products with the Jacobian.

    Raises:
        ValueError: counts that are not positive integers, a score that is not finite at a noise
            (named); `alpha = 0`; and as `sharpjax.curvature.jacobian`.

    References:
        E. Yeats et al., A connection between score matching and local intrinsic dimension, 2025,
        arXiv:2510.12975.

    >>> import jax, jax.numpy as jnp
    >>> S = jnp.array([1.0, 1.0, 0.0]) + 0.01**2
    >>> options = {"alpha": 1.0, "sigma": 0.01, "key": jax.random.key(0), "num_samples": 4096}
    >>> print(f"{denoising_loss(lambda x: -x / S, jnp.zeros(3), **options).value:.0f}")
    2
    """
    x0, alpha, sigma = at_level("denoising_loss", x0, alpha, sigma)
    key = prng_key(key, "Noises are random")
    num_samples = positive_integer("num_samples", num_samples, least=2)
    batch_size = positive_integer("batch_size", batch_size)
    level = {"alpha": alpha, "sigma": sigma}
    losses = _losses(as_pytree(score, x0), x0, key, level, num=num_samples, batch_size=batch_size)
    name_the_noise(losses)
    return Estimate.from_samples(losses, num_matvecs=0)


def noised(x0: Array, key: Key, i: Any, level: dict[str, Any]) -> tuple[Array, Array]:
    """Noise i, and the point with it."""
    noise = jax.random.normal(jax.random.fold_in(key, i), x0.shape, x0.dtype)
    noise = varying_as(noise, x0)
    return noise, level["alpha"] * x0 + level["sigma"] * noise


def name_the_noise(values: Array) -> None:
    """Where it is known that the score is not finite at a noise, an error that says which.

    Raises:
        ValueError: a value of the first axis is not finite.
    """
    if isinstance(values, jax.core.Tracer):
        return
    bad = ~np.isfinite(np.asarray(values)).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f"The score is not finite at noise {int(bad.argmax())} of {len(bad)}; {int(bad.sum())} "
            "of them fail"
        )


@compiled(static_argnames=("num", "batch_size"))
def _losses(
    score: Score, x0: Array, key: Key, level: dict[str, Any], *, num: int, batch_size: int
) -> Array:
    def one(i: Array) -> Array:
        noise, x = noised(x0, key, i, level)
        return jnp.sum((noise + level["sigma"] * score_at(score, x)) ** 2)

    return chunked_map(one, jnp.arange(num), batch_size)
