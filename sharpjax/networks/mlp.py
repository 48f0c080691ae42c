r"""A small score network on `R^d`, smooth, so that its Hessians mean something."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial

from sharpjax._checks import level, positive_integer
from sharpjax._types import Array, ArrayLike, Score
from sharpjax.score import score_from_prediction

__all__ = ["ScoreMLP"]

_FREQUENCIES = (0.5, 1.0, 2.0)  # of log sigma, which runs over about five e-folds


class ScoreMLP(nnx.Module):
    r"""A multilayer perceptron that predicts the noise in `x = alpha x_0 + sigma eps`.

    With `x = alpha x_0 + sigma eps` and `v = alpha eps - sigma x_0`,
    `sigma x + alpha v = (sigma^2 + alpha^2) eps = eps`. So the prediction is
    `sigma x + alpha F(x, level)`: the perceptron F has only v to learn, which is of order 1 at
    every level for data of variance about 1. Its last layer starts at zero, so an untrained
    network is exactly the score of `N(0, I)`, `-x`.

    Each hidden layer is `silu((1 + a) (W h + b) + c)`, with `a` and `c` computed from the level:
    near an isolated point the noise has slope `1/sigma`, which a gain can follow and a shift
    cannot. SiLU is smooth, and so are the score and its Jacobian.

    Args:
        dim: `d`, the number of coordinates of a point.
        width: units of a hidden layer.
        depth: hidden layers.
        rngs: of the initial weights.

    Raises:
        ValueError: `dim`, `width` or `depth` not a positive integer.

    References:
        The v-prediction: T. Salimans and J. Ho, Progressive distillation for fast sampling of
        diffusion models, ICLR 2022, arXiv:2202.00512.

    >>> network = ScoreMLP(2, rngs=nnx.Rngs(0))
    >>> network.score(0.6, 0.8)(jnp.array([1.0, 2.0]))
    Array([-1., -2.], dtype=float32)
    """

    def __init__(self, dim: int, *, width: int = 64, depth: int = 3, rngs: nnx.Rngs):
        self.dim = positive_integer("dim", dim)
        width, depth = positive_integer("width", width), positive_integer("depth", depth)
        features = 2 + 2 * len(_FREQUENCIES)
        self.level = nnx.Linear(features, width, rngs=rngs)
        self.modulations = nnx.List([nnx.Linear(width, 2 * width, rngs=rngs) for _ in range(depth)])
        self.hidden = nnx.List(
            [nnx.Linear(width if i else dim, width, rngs=rngs) for i in range(depth)]
        )
        self.out = nnx.Linear(width, dim, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: Array, alpha: Array, sigma: Array) -> Array:
        """The noise in one point, `(d,) -> (d,)`, dimensionless.

        Raises:
            ValueError: `x` has another shape than `(d,)`.
        """
        if jnp.shape(x) != (self.dim,):
            raise ValueError(
                f"x must be one point of shape ({self.dim},), got shape {jnp.shape(x)}; use "
                "jax.vmap for a batch"
            )
        level = jax.nn.silu(self.level(_features(alpha, sigma)))
        h = x
        for layer, modulation in zip(self.hidden, self.modulations, strict=True):
            gain, shift = jnp.split(modulation(level), 2)
            h = jax.nn.silu((1 + gain) * layer(h) + shift)
        return sigma * x + alpha * self.out(h)

    def score(self, alpha: ArrayLike, sigma: ArrayLike) -> Score:
        """The score at one noise level, `x -> s(x)`, both `(d,)`; units 1/sigma.

        The twin of `density.noised(alpha, sigma).score`. A pytree callable: another level or other
        weights do not compile again.

        Raises:
            ValueError: `alpha < 0`, `sigma <= 0`, or either not a scalar.
        """
        return Partial(_score, self, *level("score", alpha, sigma, self.out.kernel.dtype))


def _features(alpha: Array, sigma: Array) -> Array:
    """What the network sees of the level; `log sigma` because it resolves the small ones."""
    log_sigma = jnp.log(sigma)
    waves = [wave(k * log_sigma) for k in _FREQUENCIES for wave in (jnp.sin, jnp.cos)]
    return jnp.stack([0.5 * log_sigma, alpha, *waves])


def _score(network: ScoreMLP, alpha: Array, sigma: Array, x: Array) -> Array:
    return score_from_prediction(
        network(x, alpha, sigma), x, alpha=alpha, sigma=sigma, prediction_type="epsilon"
    )
