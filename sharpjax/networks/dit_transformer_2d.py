r"""`DiTTransformer2DModel`: a transformer over patches of a latent, with classes.

Architecture: Peebles & Xie 2023 (arXiv:2212.09748).  Time and class enter through the norms only,
each block with a table of classes of its own (`adaLN-Zero`); half of the output channels may be a
learned variance.  Tested number for number against the PyTorch module.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharpjax.checkpoints.configuration import check
from sharpjax.networks.blocks import check_given
from sharpjax.networks.layers import (
    CrossAttention,
    TimestepEmbedding,
    embedding_table,
    silu,
    timestep_features,
)
from sharpjax.networks.network import Network, check_choices
from sharpjax.networks.transformer_2d import FeedForward

_FEATURES = 256  # sinusoids of a timestep


def plain_norm(channels: int, *, eps: float, affine: bool = False, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm without weights of its own, unless `affine`."""
    options: Any = {"use_scale": affine, "use_bias": affine, "use_fast_variance": False}
    return nnx.LayerNorm(channels, epsilon=eps, rngs=rngs, **options)


def grid_features(channels: int, height: int, width: int, *, base: int) -> np.ndarray:
    """Sinusoids of the places of a grid, `(height * width, channels)`, float32.

    Half of them are of the column, half of the row, sines first; a grid of another size than
    `base` covers the same range.
    """

    def of(places: np.ndarray) -> np.ndarray:
        frequency = 1 / 10000 ** (np.arange(channels // 4) / (channels / 4))
        angle = places.reshape(-1, 1) * frequency
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    rows, columns = (np.arange(n, dtype=np.float32) / (n / base) for n in (height, width))
    across, down = np.meshgrid(columns, rows)
    return np.concatenate([of(across), of(down)], axis=1).astype(np.float32)


class PatchEmbed(nnx.Module):
    """Squares of an image as tokens, with their places added.

    With a `max_size` the places are a table of so many a side, of which the middle is taken.
    """

    def __init__(
        self,
        channels: int,
        *,
        in_channels: int,
        patch_size: int,
        base: int,
        max_size: int | None = None,
        rngs: nnx.Rngs,
    ):
        self.base, self.max_size = base, max_size
        if max_size is not None:
            table = grid_features(channels, max_size, max_size, base=base)
            self.pos_embed = nnx.Param(jnp.asarray(table)[None])
        self.proj = nnx.Conv(
            in_channels,
            channels,
            (patch_size, patch_size),
            strides=(patch_size, patch_size),
            padding="VALID",
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """`(b, h, w, in_channels)` to `(b, h/p * w/p, channels)`."""
        tokens = self.proj(x)
        b, height, width, channels = tokens.shape
        places = self._places(height, width, channels)
        return tokens.reshape(b, height * width, channels) + jnp.asarray(places, tokens.dtype)

    def _places(self, height: int, width: int, channels: int) -> Any:
        if (most := self.max_size) is None:
            return grid_features(channels, height, width, base=self.base)
        check(
            max(height, width) <= most,
            f"height and width must be at most {most} patches (pos_embed_max_size), got {height} "
            f"and {width}",
        )
        top, left = (most - height) // 2, (most - width) // 2
        table = self.pos_embed[...].reshape(most, most, channels)
        return table[top : top + height, left : left + width].reshape(height * width, channels)


class _TimeAndLabel(nnx.Module):
    """Embedding of a timestep and a class, their sum."""

    def __init__(self, channels: int, *, num_classes: int, rngs: nnx.Rngs):
        self.timestep_embedder = TimestepEmbedding(_FEATURES, channels, rngs=rngs)
        self.class_embedder = _Table(num_classes + 1, channels, rngs=rngs)

    def __call__(self, t: jax.Array, labels: jax.Array, dtype: Any) -> jax.Array:
        """`(b,)` and `(b,)` to `(b, channels)`."""
        features = timestep_features(t, _FEATURES, freq_shift=1).astype(dtype)
        return self.timestep_embedder(features) + self.class_embedder.embedding_table(labels)


class _Table(nnx.Module):
    """Of the classes, and one for none after the last."""

    def __init__(self, count: int, channels: int, *, rngs: nnx.Rngs):
        self.embedding_table = embedding_table(count, channels, rngs=rngs)


class AdaLayerNormZero(nnx.Module):
    """What time and class do to a block: shifts, scales and gates of both of its parts."""

    def __init__(self, channels: int, *, num_classes: int, rngs: nnx.Rngs):
        self.emb = _TimeAndLabel(channels, num_classes=num_classes, rngs=rngs)
        self.linear = nnx.Linear(channels, 6 * channels, rngs=rngs)
        self.norm = plain_norm(channels, eps=1e-6, rngs=rngs)

    def __call__(self, t: jax.Array, labels: jax.Array, dtype: Any) -> list[jax.Array]:
        """Six of `(b, 1, channels)`."""
        found = self.linear(silu(self.emb(t, labels, dtype)))[:, None]
        return jnp.split(found, 6, axis=-1)


class DiTBlock(nnx.Module):
    """Self-attention and feed-forward, each normalized, shifted, scaled, gated and added."""

    def __init__(
        self,
        channels: int,
        *,
        heads: Any,
        num_classes: int,
        eps: float,
        affine: bool,
        rngs: nnx.Rngs,
    ):
        self.norm1 = AdaLayerNormZero(channels, num_classes=num_classes, rngs=rngs)
        self.attn1 = CrossAttention(channels, **heads, rngs=rngs)
        self.norm3 = plain_norm(channels, eps=eps, affine=affine, rngs=rngs)
        self.ff = FeedForward(channels, gated=False, rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        """`(b, n, channels)`, same shape out."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff = self.norm1(t, labels, x.dtype)
        x = x + gate * self.attn1(self.norm1.norm(x) * (1 + scale) + shift)
        return x + gate_ff * self.ff(self.norm3(x) * (1 + scale_ff) + shift_ff)


class DiTTransformer2DModel(Network):
    """diffusers' `DiTTransformer2DModel` in flax NNX: same configuration, same numbers.

    Keyword arguments are keys of the diffusers `config.json` with the same defaults.  `dropout` is
    accepted and never applied.

    Raises:
        ValueError: norms or activations that this port does not have, or sizes that do not divide.

    >>> model = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=1,
    ...     sample_size=8, num_embeds_ada_norm=3, rngs=nnx.Rngs(0))
    >>> labels = jnp.array([0, 3])  # the class after the last is none
    >>> model(jnp.zeros((2, 4, 8, 8)), 10, class_labels=labels).shape
    (2, 4, 8, 8)
    """

    FIXED_CONFIG: ClassVar[dict[str, Any]] = {"norm_type": "ada_norm_zero"}
    IGNORED_CONFIG = frozenset({"norm_num_groups", "upcast_attention"})  # the softmax is in float32

    def __init__(
        self,
        *,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 28,
        dropout: float = 0.0,
        attention_bias: bool = True,
        sample_size: int = 32,
        patch_size: int = 2,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int = 1000,
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        self._remember(locals())
        check_choices(("activation_fn", activation_fn, ("gelu-approximate",)))
        channels = num_attention_heads * attention_head_dim
        check(
            channels % 4 == 0,
            "num_attention_heads * attention_head_dim must be a multiple of 4, got "
            f"{num_attention_heads} * {attention_head_dim}",
        )
        check(
            patch_size >= 1 and sample_size % patch_size == 0,
            f"patch_size must divide sample_size, got {patch_size} and {sample_size}",
        )
        self.patch_size = patch_size
        self.pos_embed = PatchEmbed(
            channels,
            in_channels=in_channels,
            patch_size=patch_size,
            base=sample_size // patch_size,
            rngs=rngs,
        )
        heads = {
            "num_heads": num_attention_heads,
            "head_dim": attention_head_dim,
            "use_bias": attention_bias,
        }
        self.transformer_blocks = nnx.List(
            DiTBlock(
                channels,
                heads=heads,
                num_classes=num_embeds_ada_norm,
                eps=norm_eps,
                affine=norm_elementwise_affine,
                rngs=rngs,
            )
            for _ in range(num_layers)
        )
        self.norm_out = plain_norm(channels, eps=1e-6, rngs=rngs)
        self.proj_out_1 = nnx.Linear(channels, 2 * channels, rngs=rngs)
        outputs = in_channels if out_channels is None else out_channels
        self.proj_out_2 = nnx.Linear(channels, patch_size**2 * outputs, rngs=rngs)

    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array | int | float,
        class_labels: jax.Array | None = None,
    ) -> jax.Array:
        """Evaluate a batch.

        Args:
            sample: `(batch, in_channels, height, width)`.
            timestep: a scalar or `(batch,)`.
            class_labels: `(batch,)` integers; the class after the last stands for none.

        Returns:
            `(batch, out_channels, height, width)`.

        Raises:
            ValueError: no `class_labels`, or sides that the patches do not divide.
        """
        check_given("class_labels", class_labels, wanted=True)
        b, _, height, width = sample.shape
        p = self.patch_size
        check(
            height % p == 0 and width % p == 0,
            f"height and width must be multiples of patch_size {p}, got {height} and {width}",
        )
        labels = jnp.asarray(class_labels)
        t = jnp.broadcast_to(jnp.asarray(timestep), (b,))
        x = self.pos_embed(sample.transpose(0, 2, 3, 1))
        for block in self.transformer_blocks:
            x = block(x, t, labels)
        told = self.transformer_blocks[0].norm1.emb(t, labels, x.dtype)
        shift, scale = jnp.split(self.proj_out_1(silu(told))[:, None], 2, axis=-1)
        x = self.proj_out_2(self.norm_out(x) * (1 + scale) + shift)
        patches = x.reshape(b, height // p, width // p, p, p, -1)
        return patches.transpose(0, 5, 1, 3, 2, 4).reshape(b, -1, height, width)
