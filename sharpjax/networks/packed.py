"""Networks that want more than a text, under conditions of one array each.

The text is `(tokens, width)`, and what else the network is told fills the first entries of one row
more.  Everything that works on one array, batches, derivatives in the condition, files, works on
these too.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def pack(text: jax.Array, told: Sequence[jax.Array]) -> jax.Array:
    """Texts `(n, tokens, width)` and vectors `(n, k)` to `(n, tokens + 1, width)`."""
    row = jnp.concatenate([jnp.asarray(one, text.dtype) for one in told], axis=-1)
    width = max(text.shape[-1], row.shape[-1])

    def widened(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])

    return jnp.concatenate([widened(text), widened(row)[:, None]], axis=1)


class Packed(nnx.Module):
    """A network that takes packed conditions.

    Args:
        net: what it stands for.
        width: of the text that `net` takes.
        sizes: of the vectors, in their order.
    """

    def __init__(self, net: Any, *, width: int, sizes: tuple[int, ...]):
        self.net, self.width, self.sizes = net, width, sizes

    @property
    def config(self) -> dict[str, Any]:
        """Of the network."""
        return self.net.config

    def unpacked(self, conditions: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """The texts and the vectors of packed conditions `(n, tokens + 1, ...)`."""
        row, told, start = conditions[:, -1], [], 0
        for size in self.sizes:
            told.append(row[:, start : start + size])
            start += size
        return conditions[:, :-1, : self.width], told


class PackedXL(Packed):
    """Stable Diffusion XL's: a pooled text and six numbers of the image's size."""

    def __call__(self, x: jax.Array, t: jax.Array, conditions: jax.Array) -> jax.Array:
        """`(n, c, h, w)`, time and packed conditions to `(n, c, h, w)`."""
        text, (pooled, sizes) = self.unpacked(conditions)
        return self.net(x, t, text, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes})


class Packed3(Packed):
    """Stable Diffusion 3's: a pooled text."""

    def __call__(self, x: jax.Array, t: jax.Array, conditions: jax.Array) -> jax.Array:
        """`(n, c, h, w)`, time and packed conditions to `(n, c, h, w)`."""
        text, (pooled,) = self.unpacked(conditions)
        dtype = x.dtype
        return self.net(x, t, text.astype(dtype), pooled.astype(dtype))
