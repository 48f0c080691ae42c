"""Attention over the pixels of an image and the tokens of a text: what conditions a UNet.

Names are diffusers' (``Transformer2DModel``, ``BasicTransformerBlock``); the architecture is that
of Rombach et al. 2022 (arXiv:2112.10752), section 3.3.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from sharpjax.models.attention import attention
from sharpjax.models.layers import conv, group_norm


class CrossAttention(nnx.Module):
    """Multi-head attention from tokens to a context, or to themselves; no bias on its inputs."""

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        head_dim: int,
        context_channels: int | None = None,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        inner, source = num_heads * head_dim, context_channels or channels
        self.to_q = nnx.Linear(channels, inner, use_bias=False, rngs=rngs)
        self.to_k = nnx.Linear(source, inner, use_bias=False, rngs=rngs)
        self.to_v = nnx.Linear(source, inner, use_bias=False, rngs=rngs)
        # a list of one, because diffusers keeps (projection, dropout) there
        self.to_out = nnx.List([nnx.Linear(inner, channels, rngs=rngs)])

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """``(b, n, channels)`` and ``(b, m, context_channels)`` to ``(b, n, channels)``."""
        source = x if context is None else context
        q, k, v = (
            y.reshape(*y.shape[:2], self.num_heads, -1)
            for y in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        out = attention(q, k, v)
        return self.to_out[0](out.reshape(*x.shape[:2], -1))


class GEGLU(nnx.Module):
    """Gated linear unit, ``a gelu(b)`` with ``(a, b)`` one projection (arXiv:2002.05202)."""

    def __init__(self, c_in: int, c_out: int, *, rngs: nnx.Rngs):
        self.proj = nnx.Linear(c_in, 2 * c_out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., c_in)`` to ``(..., c_out)``."""
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * jax.nn.gelu(gate, approximate=False)


class NoDropout(nnx.Module):
    """Holds a place: diffusers counts a dropout among the layers of a feed-forward network."""


class FeedForward(nnx.Module):
    """A gated layer of four times the width, and a linear one back."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.net = nnx.List(
            [
                GEGLU(channels, 4 * channels, rngs=rngs),
                NoDropout(),
                nnx.Linear(4 * channels, channels, rngs=rngs),
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape out."""
        result: jax.Array = self.net[2](self.net[0](x))
        return result


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward; each normalized before and added.

    ``only_cross_attention`` makes the first attend to the context too.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        head_dim: int,
        context_channels: int,
        only_cross_attention: bool,
        rngs: nnx.Rngs,
    ):
        def attention(source: int | None) -> CrossAttention:
            return CrossAttention(
                channels, num_heads=num_heads, head_dim=head_dim, context_channels=source, rngs=rngs
            )

        self.only_cross_attention = only_cross_attention
        self.norm1 = layer_norm(channels, rngs=rngs)
        self.attn1 = attention(context_channels if only_cross_attention else None)
        self.norm2 = layer_norm(channels, rngs=rngs)
        self.attn2 = attention(context_channels)
        self.norm3 = layer_norm(channels, rngs=rngs)
        self.ff = FeedForward(channels, rngs=rngs)

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """``(b, n, channels)``, same shape out."""
        x = x + self.attn1(self.norm1(x), context if self.only_cross_attention else None)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the pixels, between two projections, added to the input.

    The heads together are ``num_heads * (channels // num_heads)`` wide, less than ``channels``
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
        only_cross_attention: bool,
        rngs: nnx.Rngs,
    ):
        head_dim = channels // num_heads
        inner = num_heads * head_dim

        def projection(c_in: int, c_out: int) -> nnx.Module:
            if linear_projection:
                return nnx.Linear(c_in, c_out, rngs=rngs)
            return conv(c_in, c_out, 1, padding=0, rngs=rngs)

        self.norm = group_norm(channels, groups, eps=1e-6, rngs=rngs)
        self.proj_in = projection(channels, inner)
        self.transformer_blocks = nnx.List(
            BasicTransformerBlock(
                inner,
                num_heads=num_heads,
                head_dim=head_dim,
                context_channels=context_channels,
                only_cross_attention=only_cross_attention,
                rngs=rngs,
            )
            for _ in range(num_layers)
        )
        self.proj_out = projection(inner, channels)

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """``(b, h, w, channels)`` and ``(b, m, context_channels)``; shape of the first out."""
        b, h, w, _ = x.shape
        tokens = self.proj_in(self.norm(x))
        inner = tokens.shape[-1]
        tokens = tokens.reshape(b, h * w, inner)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        result: jax.Array = x + self.proj_out(tokens.reshape(b, h, w, inner))
        return result


class AddedKVAttention(nnx.Module):
    """Attention from pixels to pixels and the tokens of a text at once (``SimpleCrossAttn``).

    ``only_cross_attention`` leaves the pixels out.
    """

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int,
        context_channels: int,
        groups: int,
        only_cross_attention: bool,
        normalize_context: bool,
        rngs: nnx.Rngs,
    ):
        if channels % head_dim:
            raise ValueError(
                f"attention_head_dim={head_dim} must divide the number of channels, got {channels}"
            )
        self.head_dim = head_dim
        self.only_cross_attention = only_cross_attention
        self.group_norm = group_norm(channels, groups, eps=1e-5, rngs=rngs)
        if normalize_context:  # 32 groups, whatever the network's are
            self.norm_cross = group_norm(context_channels, 32, eps=1e-5, rngs=rngs)
        self.to_q = nnx.Linear(channels, channels, rngs=rngs)
        if not only_cross_attention:
            self.to_k = nnx.Linear(channels, channels, rngs=rngs)
            self.to_v = nnx.Linear(channels, channels, rngs=rngs)
        self.add_k_proj = nnx.Linear(context_channels, channels, rngs=rngs)
        self.add_v_proj = nnx.Linear(context_channels, channels, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(channels, channels, rngs=rngs)])

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """``(b, h, w, channels)`` and ``(b, m, context_channels)``; shape of the first out."""
        b, h, w, c = x.shape
        if hasattr(self, "norm_cross"):
            context = self.norm_cross(context[:, None])[:, 0]  # as an image of one row
        pixels = self.group_norm(x).reshape(b, h * w, c)
        k, v = self.add_k_proj(context), self.add_v_proj(context)
        if not self.only_cross_attention:
            k = jnp.concatenate([k, self.to_k(pixels)], axis=1)
            v = jnp.concatenate([v, self.to_v(pixels)], axis=1)
        q, k, v = (y.reshape(b, y.shape[1], -1, self.head_dim) for y in (self.to_q(pixels), k, v))
        out = attention(q, k, v).reshape(b, h * w, c)
        return x + self.to_out[0](out).reshape(b, h, w, c)


def layer_norm(channels: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """PyTorch's ``LayerNorm``: epsilon 1e-5, and the variance in two passes, in float32."""
    return nnx.LayerNorm(channels, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
