"""Attention over the pixels of an image and the tokens of a text: what conditions a UNet.

Names are diffusers' (`Transformer2DModel`, `BasicTransformerBlock`); the architecture is that
of Rombach et al. 2022 (arXiv:2112.10752), section 3.3.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sharpjax.networks.layers import CrossAttention, conv, group_norm, layer_norm


class GEGLU(nnx.Module):
    """Gated linear unit, `a gelu(b)` with `(a, b)` one projection (arXiv:2002.05202)."""

    def __init__(self, c_in: int, c_out: int, *, rngs: nnx.Rngs):
        self.proj = nnx.Linear(c_in, 2 * c_out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`(..., c_in)` to `(..., c_out)`."""
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * jax.nn.gelu(gate, approximate=False)


class GELU(nnx.Module):
    """A projection and the GELU, by its tanh form."""

    def __init__(self, c_in: int, c_out: int, *, rngs: nnx.Rngs):
        self.proj = nnx.Linear(c_in, c_out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`(..., c_in)` to `(..., c_out)`."""
        return jax.nn.gelu(self.proj(x), approximate=True)


class NoDropout(nnx.Module):
    """Holds a place: diffusers counts a dropout among the layers of a feed-forward network."""


class FeedForward(nnx.Module):
    """A layer of four times the width, gated or not, and a linear one back."""

    def __init__(self, channels: int, *, gated: bool = True, rngs: nnx.Rngs):
        wide = GEGLU if gated else GELU
        self.net = nnx.List(
            [
                wide(channels, 4 * channels, rngs=rngs),
                NoDropout(),
                nnx.Linear(4 * channels, channels, rngs=rngs),
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape out."""
        return self.net[2](self.net[0](x))


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward; each normalized before and added."""

    def __init__(self, channels: int, *, context_channels: int, heads: Any, rngs: nnx.Rngs):
        self.norm1 = layer_norm(channels, rngs=rngs)
        self.attn1 = CrossAttention(channels, **heads, rngs=rngs)
        self.norm2 = layer_norm(channels, rngs=rngs)
        self.attn2 = CrossAttention(channels, context_channels=context_channels, **heads, rngs=rngs)
        self.norm3 = layer_norm(channels, rngs=rngs)
        self.ff = FeedForward(channels, rngs=rngs)

    def __call__(self, x: jax.Array, context: Any = None) -> jax.Array:
        """`(b, n, channels)`, same shape out."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the pixels, between two projections, added to the input.

    The heads together are `num_heads * (channels // num_heads)` wide, less than `channels`
    when these do not divide, as in diffusers.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        num_layers: int,
        context_channels: int,
        groups: int,
        linear_projection: bool,
        rngs: nnx.Rngs,
    ):
        heads = {"num_heads": num_heads, "head_dim": channels // num_heads}
        inner = num_heads * heads["head_dim"]

        def projection(c_in: int, c_out: int) -> nnx.Module:
            if linear_projection:
                return nnx.Linear(c_in, c_out, rngs=rngs)
            return conv(c_in, c_out, 1, padding=0, rngs=rngs)

        self.norm = group_norm(channels, groups, eps=1e-6, rngs=rngs)
        self.proj_in = projection(channels, inner)
        self.transformer_blocks = nnx.List(
            BasicTransformerBlock(inner, context_channels=context_channels, heads=heads, rngs=rngs)
            for _ in range(num_layers)
        )
        self.proj_out = projection(inner, channels)

    def __call__(self, x: jax.Array, context: Any = None) -> jax.Array:
        """`(b, h, w, channels)` and a text `(b, m, context_channels)`; shape of the first out."""
        b, h, w, _ = x.shape
        tokens = self.proj_in(self.norm(x))
        inner = tokens.shape[-1]
        tokens = tokens.reshape(b, h * w, inner)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.reshape(b, h, w, inner))
