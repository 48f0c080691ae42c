"""Stable Diffusion's network with random weights, and its pair of scores: of two benchmarks."""

import jax
import numpy as np
from flax import nnx
from jax.tree_util import Partial

from sharpjax import ScorePair
from sharpjax.models import diffusion
from sharpjax.networks import UNet2DConditionModel


def random_weights(config):
    """By NumPy, the same everywhere: variance 1 over the fan-in, norms and biases near theirs."""
    rng = np.random.default_rng(0)
    abstract = nnx.eval_shape(lambda: UNet2DConditionModel(**config, rngs=nnx.Rngs(0)))

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape, dtype=np.float32)
        if leaf.ndim > 1:
            return values * np.float32(np.prod(leaf.shape[:-1]) ** -0.5)
        return np.float32(0.1) * values + np.float32("scale" in jax.tree_util.keystr(path))

    return jax.tree_util.tree_map_with_path(draw, abstract)


def pair_of(unet, schedule, text, t):
    """The scores of a text `(2, tokens, width)`, unconditional and conditional."""
    bound = unet, schedule, t
    return ScorePair(
        Partial(diffusion._score, *bound, text[0]),
        Partial(diffusion._score, *bound, text[1]),
        alpha=schedule.alpha(t),
        sigma=schedule.sigma(t),
        stacked=Partial(diffusion._scores, *bound, text),
    )
