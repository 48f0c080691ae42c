r"""Dimension as what is left when the directions across are counted.

Close to a smooth manifold and at little noise the score points back to it: scores at points around
$\alpha x_0$ span the directions across, and their singular values fall from about
$\sqrt{m}/\sigma$ to little after as many of them as there are such directions.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax._checks import positive_integer, prng_key
from sharpjax._reprs import one_line
from sharpjax._types import Array, ArrayLike, Key, Score
from sharpjax.curvature.programs import as_pytree, compiled
from sharpjax.dimension.denoising_loss import name_the_noise, noised
from sharpjax.dimension.level import at_level
from sharpjax.mesh.loops import chunked_map
from sharpjax.score import score_at


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NormalBundle:
    """The dimension, and how clear the drop is that it is read from.

    Attributes:
        dimension: from 1 to d - 1: a drop is between two singular values, so neither 0 nor d can be
            said.
        gap: the largest drop over the largest singular value, from 0 to 1. There is no error of a
            rank; a gap near 1 says that it is clear, one near 0 that there is none.
        singular_values: of the scores, `(d,)`, descending, units 1/sigma.
    """

    dimension: Array
    gap: Array
    singular_values: Array

    __repr__ = one_line


def normal_bundle(
    score: Score,
    x0: ArrayLike,
    *,
    alpha: ArrayLike,
    sigma: ArrayLike,
    key: Key | None = None,
    num_samples: int | None = None,
    batch_size: int = 32,
) -> NormalBundle:
    """The dimension d less the rank of scores at noised copies of the point.

    The rank is where the singular values drop most, as in the public code.

    Args:
        score: of the noised data at this level.
        x0: the clean point, any shape, at least 2 coordinates.
        alpha: signal, > 0.
        sigma: noise, > 0.
        key: PRNG key of the noises.  Noise i depends on `(key, i)` only.
        num_samples: noises, at least d; 4 d by default, as in the paper.  An evaluation of the
            score each, and a matrix of so many rows and d columns.
        batch_size: noises at once.

    Raises:
        ValueError: a point of one coordinate, fewer than d noises, a score that is not finite at a
            noise (named); `alpha = 0`; and as `sharpjax.curvature.jacobian`.

    References:
        J. Stanczuk et al., Diffusion models encode the intrinsic dimension of data manifolds, ICML
        2024, arXiv:2212.12611.

    >>> import jax, jax.numpy as jnp
    >>> S = jnp.array([1.0, 1.0, 0.0, 0.0]) + 0.01**2
    >>> options = {"alpha": 1.0, "sigma": 0.01, "key": jax.random.key(0)}
    >>> found = normal_bundle(lambda x: -x / S, jnp.zeros(4), **options)
    >>> print(found.dimension, found.gap > 0.5)
    2 True
    """
    x0, alpha, sigma = at_level("normal_bundle", x0, alpha, sigma)
    d = x0.size
    if d < 2:
        raise ValueError("normal_bundle needs a point of at least 2 coordinates, got 1")
    key = prng_key(key, "Noises are random")
    num = 4 * d if num_samples is None else positive_integer("num_samples", num_samples, least=d)
    batch_size = positive_integer("batch_size", batch_size)
    level = {"alpha": alpha, "sigma": sigma}
    scores = _scores(as_pytree(score, x0), x0, key, level, num=num, batch_size=batch_size)
    name_the_noise(scores)
    values = jnp.linalg.svd(scores, compute_uv=False)
    drops = values[:-1] - values[1:]
    rank = jnp.argmax(drops) + 1
    return NormalBundle(d - rank, drops.max() / values[0], values)


@compiled(static_argnames=("num", "batch_size"))
def _scores(
    score: Score, x0: Array, key: Key, level: dict[str, Any], *, num: int, batch_size: int
) -> Array:
    """At so many noised copies, flattened, `(num, d)`."""

    def one(i: Array) -> Array:
        return score_at(score, noised(x0, key, i, level)[1]).ravel()

    return chunked_map(one, jnp.arange(num), batch_size)
