"""``UNet2DModel``: the pixel-space diffusion network of diffusers, unconditional or with classes.

Architecture: Ho et al. 2020 (arXiv:2006.11239) and Song et al. 2021 (arXiv:2011.13456).  Tested
number for number against the PyTorch module.
"""

import inspect
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from sharpjax.models.blocks import AttentionFactory, DownBlock, MidBlock, UpBlock
from sharpjax.models.configuration import check, tuples
from sharpjax.models.layers import (
    Attention,
    GaussianFourierProjection,
    TimestepEmbedding,
    activation,
    conv,
    embedding_table,
    group_norm,
    silu,
    timestep_features,
)

# block type -> (has attention, how it resamples when the config does not say)
DOWN_BLOCKS = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "resnet"),
}
UP_BLOCKS = {
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, "resnet"),
}


class UNet2DModel(nnx.Module):
    """diffusers' ``UNet2DModel`` in flax NNX: same configuration, same arrays, same numbers.

    Keyword arguments are the keys of the diffusers ``config.json`` with the same defaults; here
    ``attention_head_dim`` is the size of a head.  ``dropout`` is accepted and never applied:
    these networks are evaluated, and trained here, without it.

    Raises:
        ValueError: block types, embeddings or sizes that this port does not have, each with the
            allowed values.

    >>> model = UNet2DModel(in_channels=1, out_channels=1, block_out_channels=(8, 16),
    ...     down_block_types=("DownBlock2D", "AttnDownBlock2D"), norm_num_groups=4,
    ...     up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=3, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((2, 1, 8, 8)), 10, class_labels=jnp.array([0, 2])).shape
    (2, 1, 8, 8)
    """

    def __init__(
        self,
        *,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: float = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = (
            "DownBlock2D",
            "AttnDownBlock2D",
            "AttnDownBlock2D",
            "AttnDownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = (
            "AttnUpBlock2D",
            "AttnUpBlock2D",
            "AttnUpBlock2D",
            "UpBlock2D",
        ),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        rngs: nnx.Rngs,
    ):
        given = dict(locals())
        keys = [k for k in inspect.signature(UNet2DModel.__init__).parameters if k in given]
        # a tuple, because static attributes must be hashable for modules to be jit arguments
        self.settings = nnx.static(
            tuple((k, tuples(given[k])) for k in keys if k not in ("self", "rngs"))
        )
        channels = tuple(block_out_channels)
        check(
            len(channels) == len(down_block_types) == len(up_block_types),
            "down_block_types, up_block_types and block_out_channels must be equally long, "
            f"got {len(down_block_types)}, {len(up_block_types)} and {len(channels)}",
        )
        for kind, allowed, key in (
            *((kind, DOWN_BLOCKS, "down_block_types") for kind in down_block_types),
            *((kind, UP_BLOCKS, "up_block_types") for kind in up_block_types),
            (mid_block_type, (None, "UNetMidBlock2D"), "mid_block_type"),
            (time_embedding_type, ("positional", "fourier", "learned"), "time_embedding_type"),
            (class_embed_type, (None, "timestep", "identity"), "class_embed_type"),
            (downsample_type, ("conv", "resnet"), "downsample_type"),
            (upsample_type, ("conv", "resnet"), "upsample_type"),
        ):
            choices = ", ".join(map(str, allowed))
            check(kind in allowed, f"{key}: {kind!r} is not supported; choose from {choices}")

        self.center_input_sample = center_input_sample
        self.time_embedding_type = time_embedding_type
        self.features = nnx.static((flip_sin_to_cos, freq_shift))
        self.class_embed_type = class_embed_type
        first, temb = channels[0], time_embedding_dim or 4 * channels[0]
        resnet = {
            "temb_channels": temb,
            "groups": norm_num_groups,
            "eps": norm_eps,
            "act_fn": act_fn,
            "time_scale_shift": resnet_time_scale_shift,
        }

        self.conv_in = conv(in_channels, first, rngs=rngs)
        time_features = first
        if time_embedding_type == "fourier":
            self.time_proj: Any = GaussianFourierProjection(first, rngs=rngs)
            time_features = 2 * first
        elif time_embedding_type == "learned":
            check(num_train_timesteps is not None,
                   "time_embedding_type='learned' needs num_train_timesteps")  # fmt: skip
            self.time_proj = embedding_table(cast(int, num_train_timesteps), first, rngs=rngs)
        self.time_embedding = TimestepEmbedding(time_features, temb, rngs=rngs)
        if class_embed_type == "timestep":
            self.class_embedding: Any = TimestepEmbedding(time_features, temb, rngs=rngs)
        elif class_embed_type is None and num_class_embeds is not None:
            self.class_embedding = embedding_table(num_class_embeds, temb, rngs=rngs)

        def attention(groups: int | None, scale: float = 1.0) -> AttentionFactory:
            return lambda layer, channels, rngs: Attention(
                channels,
                head_dim=attention_head_dim or channels,
                groups=groups,
                eps=norm_eps,
                output_scale_factor=scale,
                rngs=rngs,
            )

        last = len(channels) - 1
        self.down_blocks = nnx.List(
            DownBlock(
                (channels[max(i - 1, 0)], channels[i]),
                num_layers=layers_per_block,
                attention=attention(norm_num_groups) if DOWN_BLOCKS[kind][0] else None,
                downsample=(DOWN_BLOCKS[kind][1] or downsample_type) if i < last else None,
                padding=downsample_padding,
                resnet=resnet,
                rngs=rngs,
            )
            for i, kind in enumerate(down_block_types)
        )
        if mid_block_type is not None:
            groups = attn_norm_num_groups
            if groups is None and resnet_time_scale_shift != "scale_shift":
                groups = norm_num_groups
            self.mid_block = MidBlock(
                channels[-1],
                num_layers=1,
                attention=attention(groups, mid_block_scale_factor) if add_attention else None,
                resnet={**resnet, "output_scale_factor": mid_block_scale_factor},
                rngs=rngs,
            )
        up = channels[::-1]
        self.up_blocks = nnx.List(
            UpBlock(
                (up[min(i + 1, last)], up[max(i - 1, 0)], up[i]),
                num_layers=layers_per_block + 1,
                attention=attention(norm_num_groups) if UP_BLOCKS[kind][0] else None,
                upsample=(UP_BLOCKS[kind][1] or upsample_type) if i < last else None,
                resnet=resnet,
                rngs=rngs,
            )
            for i, kind in enumerate(up_block_types)
        )
        self.conv_norm_out = group_norm(first, norm_num_groups, eps=norm_eps, rngs=rngs)
        self.conv_out = conv(first, out_channels, rngs=rngs)
        activation(act_fn)

    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array | int | float,
        class_labels: jax.Array | None = None,
    ) -> jax.Array:
        """Evaluate a batch.

        Args:
            sample: ``(batch, in_channels, height, width)``.
            timestep: a scalar or ``(batch,)``.
            class_labels: ``(batch,)`` integers (timesteps for ``class_embed_type="timestep"``), or
                ``(batch, time_embed_dim)`` embeddings for ``"identity"``; required exactly when
                the model has a class embedding.

        Returns:
            ``(batch, out_channels, height, width)``.

        Raises:
            ValueError: ``class_labels`` missing or not wanted, or a sample of the wrong shape.
        """
        if sample.ndim != 4 or sample.shape[1] != self.config["in_channels"]:
            raise ValueError(
                f"sample must have shape (batch, {self.config['in_channels']}, height, width), "
                f"got {sample.shape}"
            )
        timestep = jnp.broadcast_to(jnp.asarray(timestep), (sample.shape[0],))
        temb = self.time_embedding(self._features(timestep).astype(sample.dtype))
        temb = temb + self._class_embedding(class_labels) if self._has_classes() else temb
        if class_labels is not None and not self._has_classes():
            raise ValueError("this model has no class embedding, so class_labels must be None")

        x = sample.transpose(0, 2, 3, 1)
        x = self.conv_in(2 * x - 1 if self.center_input_sample else x)
        skips = [x]
        for block in self.down_blocks:
            x, new = block(x, temb)
            skips += new
        if hasattr(self, "mid_block"):
            x = self.mid_block(x, temb)
        for up_block in self.up_blocks:
            x = up_block(x, skips, temb)
        x = self.conv_out(silu(self.conv_norm_out(x))).transpose(0, 3, 1, 2)
        if self.time_embedding_type == "fourier":
            x = x / timestep[:, None, None, None].astype(x.dtype)
        return x

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments: the diffusers configuration."""
        return dict(self.settings)

    def _features(self, t: jax.Array) -> jax.Array:
        if self.time_embedding_type == "positional":
            flip, shift = self.features
            size = self.config["block_out_channels"][0]
            return timestep_features(t, size, flip_sin_to_cos=flip, freq_shift=shift)
        result: jax.Array = self.time_proj(t)
        return result

    def _has_classes(self) -> bool:
        return self.class_embed_type is not None or hasattr(self, "class_embedding")

    def _class_embedding(self, labels: jax.Array | None) -> jax.Array:
        if labels is None:
            raise ValueError("this model is class-conditional: pass class_labels")
        if self.class_embed_type == "identity":
            return labels
        if self.class_embed_type == "timestep":
            labels = self._features(jnp.asarray(labels))
        result: jax.Array = self.class_embedding(labels)
        return result
