"""The exact score of a mixture, in the place of a network: what perfect training would give."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sharpjax._types import Array, ArrayLike
from sharpjax.densities import LowRankMixture
from sharpjax.schedules import Schedule


class MixtureDenoiser(nnx.Module):
    r"""Predicts `epsilon = -sigma s` with the exact score $s$ of a noised mixture.

    A label is another set of weights of the same components, the last one those of all data.  It
    stands where a class-conditional `UNet2DModel` does, so that whatever is computed of a network
    is computed of the exact score by the same program.

    Args:
        mixture: of clean examples `(channels, height, width)`, as many rows as columns.
        shares: `(labels + 1, k)` weights of the components under each label, then without one.
        schedule: of the noise.
    """

    def __init__(self, mixture: LowRankMixture, shares: ArrayLike, schedule: Schedule):
        self.mixture = nnx.data(mixture)
        self.shares = nnx.Param(jnp.asarray(shares))
        self.schedule = nnx.data(schedule)

    @property
    def config(self) -> dict[str, Any]:
        """What a model asks of its network."""
        channels, height, _ = self.mixture.shape
        return {
            "in_channels": channels,
            "out_channels": channels,
            "sample_size": height,
            "num_class_embeds": len(self.shares[...]),
        }

    def __call__(self, x: Array, t: Array, labels: Array) -> Array:
        """`(n, channels, height, width)`, timesteps `()` or `(n,)` and labels `(n,)`."""
        mixture, shares, schedule = self.mixture, self.shares[...], self.schedule

        def one(own: tuple[Array, Array, Array]) -> Array:
            x, t, label = own
            sigma = schedule.sigma(t)
            density = mixture.reweighted(shares[label]).noised(schedule.alpha(t), sigma)
            return -sigma * density.score(x)

        # one at a time: a batch would hold the distances to all components of every example
        return jax.lax.map(one, (x, jnp.broadcast_to(t, (len(x),)), labels), batch_size=16)
