r"""`SD3Transformer2DModel`: the network of Stable Diffusion 3 and 3.5.

Architecture: Esser et al. 2024 (arXiv:2403.03206): tokens of the image and of the text have weights
of their own and one attention over both.  3.5 normalizes queries and keys (`qk_norm`), and its
medium size has a second attention over the image alone in some layers
(`dual_attention_layers`).  Tested number for number against the PyTorch module.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sharpjax.checkpoints.configuration import check
from sharpjax.networks.attention import attention
from sharpjax.networks.dit_transformer_2d import PatchEmbed, plain_norm
from sharpjax.networks.layers import TimestepEmbedding, silu, timestep_features
from sharpjax.networks.network import Network, check_choices
from sharpjax.networks.transformer_2d import FeedForward

_FEATURES = 256  # sinusoids of a timestep
_EPS = 1e-6


class RMSNorm(nnx.Module):
    """`scale x / sqrt(mean x^2 + eps)` over the last axis, the mean in float32."""

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(size))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape out."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(square + _EPS)).astype(x.dtype) * self.scale[...]


class JointAttention(nnx.Module):
    """One attention over the tokens of the image and, if there is one, of the text."""

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        head_dim: int,
        qk_norm: bool,
        context: bool,
        context_out: bool,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        inner = num_heads * head_dim

        def linear(c_in: int, c_out: int) -> nnx.Linear:
            return nnx.Linear(c_in, c_out, rngs=rngs)

        self.to_q, self.to_k, self.to_v = (linear(channels, inner) for _ in range(3))
        self.to_out = nnx.List([linear(inner, channels)])
        if qk_norm:
            self.norm_q, self.norm_k = (RMSNorm(head_dim, rngs=rngs) for _ in range(2))
        if context:
            projections = (linear(channels, inner) for _ in range(3))
            self.add_q_proj, self.add_k_proj, self.add_v_proj = projections
            if qk_norm:
                norms = (RMSNorm(head_dim, rngs=rngs) for _ in range(2))
                self.norm_added_q, self.norm_added_k = norms
        if context_out:
            self.to_add_out = linear(inner, channels)

    def __call__(
        self, x: jax.Array, context: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """`(b, n, channels)` and `(b, m, channels)`, same shapes out; None where none is wanted."""

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:2], self.num_heads, -1)

        q, k, v = (heads(layer(x)) for layer in (self.to_q, self.to_k, self.to_v))
        if hasattr(self, "norm_q"):
            q, k = self.norm_q(q), self.norm_k(k)
        if context is not None:
            layers = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
            more = [heads(layer(context)) for layer in layers]
            if hasattr(self, "norm_added_q"):
                more[:2] = self.norm_added_q(more[0]), self.norm_added_k(more[1])
            q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip((q, k, v), more, strict=True))
        out = attention(q, k, v).reshape(*q.shape[:2], -1)
        told = self.to_add_out(out[:, x.shape[1] :]) if hasattr(self, "to_add_out") else None
        return self.to_out[0](out[:, : x.shape[1]]), told


class AdaNorm(nnx.Module):
    """A norm, and what the conditioning vector says: so many shifts, scales and gates."""

    def __init__(self, channels: int, *, count: int, rngs: nnx.Rngs):
        self.count = count
        self.linear = nnx.Linear(channels, count * channels, rngs=rngs)
        self.norm = plain_norm(channels, eps=_EPS, rngs=rngs)

    def __call__(self, told: jax.Array) -> list[jax.Array]:
        """`(b, channels)` to `count` of `(b, 1, channels)`."""
        return jnp.split(self.linear(silu(told))[:, None], self.count, axis=-1)


class JointTransformerBlock(nnx.Module):
    """Joint attention and feed-forwards; the last block does not go on with the text."""

    def __init__(
        self, channels: int, *, heads: Any, last: bool, dual: bool, qk_norm: bool, rngs: nnx.Rngs
    ):
        self.norm1 = AdaNorm(channels, count=9 if dual else 6, rngs=rngs)
        self.norm1_context = AdaNorm(channels, count=2 if last else 6, rngs=rngs)
        options: Any = {**heads, "qk_norm": qk_norm, "rngs": rngs}
        self.attn = JointAttention(channels, context=True, context_out=not last, **options)
        if dual:
            self.attn2 = JointAttention(channels, context=False, context_out=False, **options)
        self.norm2 = plain_norm(channels, eps=_EPS, rngs=rngs)
        self.ff = FeedForward(channels, gated=False, rngs=rngs)
        if not last:
            self.norm2_context = plain_norm(channels, eps=_EPS, rngs=rngs)
            self.ff_context = FeedForward(channels, gated=False, rngs=rngs)

    def __call__(
        self, x: jax.Array, context: jax.Array, told: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens of the image and of the text, and the conditioning vector."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff, *dual = self.norm1(told)
        plain = self.norm1.norm(x)
        own = self.norm1_context(told)
        text = self.norm1_context.norm(context)
        louder, later = (own[0], own[1]) if len(own) == 2 else (own[1], own[0])
        text = text * (1 + louder) + later
        seen, heard = self.attn(plain * (1 + scale) + shift, text)
        x = x + gate * seen
        if dual:
            shift_2, scale_2, gate_2 = dual
            x = x + gate_2 * self.attn2(plain * (1 + scale_2) + shift_2)[0]
        x = x + gate_ff * self.ff(self.norm2(x) * (1 + scale_ff) + shift_ff)
        if heard is None:
            return x, context
        context = context + own[2] * heard
        spoken = self.norm2_context(context) * (1 + own[4]) + own[3]
        return x, context + own[5] * self.ff_context(spoken)


class _TimeAndText(nnx.Module):
    """Embedding of a timestep and of the pooled text, their sum."""

    def __init__(self, channels: int, *, pooled: int, rngs: nnx.Rngs):
        self.timestep_embedder = TimestepEmbedding(_FEATURES, channels, rngs=rngs)
        self.text_embedder = TimestepEmbedding(pooled, channels, rngs=rngs)

    def __call__(self, t: jax.Array, pooled: jax.Array) -> jax.Array:
        """`(b,)` and `(b, pooled)` to `(b, channels)`."""
        features = timestep_features(t, _FEATURES).astype(pooled.dtype)
        return self.timestep_embedder(features) + self.text_embedder(pooled)


class SD3Transformer2DModel(Network):
    """diffusers' `SD3Transformer2DModel` in flax NNX: same configuration, same numbers.

    Keyword arguments are keys of the diffusers `config.json` with the same defaults.

    Raises:
        ValueError: a `qk_norm` that this port does not have, or sizes that do not fit.

    >>> model = SD3Transformer2DModel(sample_size=8, in_channels=4, out_channels=4, num_layers=1,
    ...     attention_head_dim=8, num_attention_heads=2, joint_attention_dim=6,
    ...     caption_projection_dim=16, pooled_projection_dim=5, pos_embed_max_size=4,
    ...     rngs=nnx.Rngs(0))
    >>> text, pooled = jnp.zeros((2, 3, 6)), jnp.zeros((2, 5))
    >>> model(jnp.zeros((2, 4, 8, 8)), 500.0, text, pooled).shape
    (2, 4, 8, 8)
    """

    def __init__(
        self,
        *,
        sample_size: int = 128,
        patch_size: int = 2,
        in_channels: int = 16,
        num_layers: int = 18,
        attention_head_dim: int = 64,
        num_attention_heads: int = 18,
        joint_attention_dim: int = 4096,
        caption_projection_dim: int = 1152,
        pooled_projection_dim: int = 2048,
        out_channels: int | None = 16,
        pos_embed_max_size: int = 96,
        dual_attention_layers: tuple[int, ...] = (),
        qk_norm: str | None = None,
        rngs: nnx.Rngs,
    ):
        self._remember(locals())
        check_choices(("qk_norm", qk_norm, (None, "rms_norm")))
        channels = num_attention_heads * attention_head_dim
        check(
            channels % 4 == 0 and caption_projection_dim == channels,
            "num_attention_heads * attention_head_dim must be a multiple of 4, and that of "
            f"caption_projection_dim, got {num_attention_heads} * {attention_head_dim} and "
            f"{caption_projection_dim}",
        )
        check(
            patch_size >= 1 and sample_size % patch_size == 0,
            f"patch_size must divide sample_size, got {patch_size} and {sample_size}",
        )
        check(
            all(0 <= layer < num_layers for layer in dual_attention_layers),
            f"dual_attention_layers must be of 0..{num_layers - 1}, got {dual_attention_layers}",
        )
        self.patch_size = patch_size
        self.pos_embed = PatchEmbed(
            channels,
            in_channels=in_channels,
            patch_size=patch_size,
            base=sample_size // patch_size,
            max_size=pos_embed_max_size,
            rngs=rngs,
        )
        self.time_text_embed = _TimeAndText(channels, pooled=pooled_projection_dim, rngs=rngs)
        self.context_embedder = nnx.Linear(joint_attention_dim, caption_projection_dim, rngs=rngs)
        heads = {"num_heads": num_attention_heads, "head_dim": attention_head_dim}
        self.transformer_blocks = nnx.List(
            JointTransformerBlock(
                channels,
                heads=heads,
                last=i == num_layers - 1,
                dual=i in dual_attention_layers,
                qk_norm=qk_norm is not None,
                rngs=rngs,
            )
            for i in range(num_layers)
        )
        self.norm_out = AdaNorm(channels, count=2, rngs=rngs)
        outputs = in_channels if out_channels is None else out_channels
        self.proj_out = nnx.Linear(channels, patch_size**2 * outputs, rngs=rngs)

    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array | int | float,
        encoder_hidden_states: jax.Array,
        pooled_projections: jax.Array,
    ) -> jax.Array:
        """Evaluate a batch.

        Args:
            sample: `(batch, in_channels, height, width)`.
            timestep: a scalar or `(batch,)`, a thousand times sigma.
            encoder_hidden_states: the text, `(batch, tokens, joint_attention_dim)`.
            pooled_projections: of it, `(batch, pooled_projection_dim)`.

        Returns:
            `(batch, out_channels, height, width)`.

        Raises:
            ValueError: sides that the patches do not divide, or larger than the table of places.
        """
        b, _, height, width = sample.shape
        p = self.patch_size
        check(
            height % p == 0 and width % p == 0,
            f"height and width must be multiples of patch_size {p}, got {height} and {width}",
        )
        t = jnp.broadcast_to(jnp.asarray(timestep), (b,))
        x = self.pos_embed(sample.transpose(0, 2, 3, 1))
        told = self.time_text_embed(t, pooled_projections)
        context = self.context_embedder(encoder_hidden_states)
        for block in self.transformer_blocks:
            x, context = block(x, context, told)
        scale, shift = self.norm_out(told)
        x = self.proj_out(self.norm_out.norm(x) * (1 + scale) + shift)
        patches = x.reshape(b, height // p, width // p, p, p, -1)
        return patches.transpose(0, 5, 1, 3, 2, 4).reshape(b, -1, height, width)
