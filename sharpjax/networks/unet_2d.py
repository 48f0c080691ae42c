"""`UNet2DModel`: the pixel-space diffusion network of diffusers, unconditional or with classes.

Architecture: Ho et al. 2020 (arXiv:2006.11239) and Song et al. 2021 (arXiv:2011.13456).  Tested
number for number against the PyTorch module.
"""

from typing import Any, ClassVar

import jax
from flax import nnx

from sharpjax.checkpoints.configuration import check
from sharpjax.networks.blocks import (
    AttentionFactory,
    MidBlock,
    check_given,
    down_levels,
    embedded_time,
    through_levels,
    up_levels,
)
from sharpjax.networks.layers import (
    Attention,
    TimestepEmbedding,
    activation,
    conv,
    embedding_table,
    group_norm,
    silu,
)
from sharpjax.networks.network import Network, check_choices

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


class UNet2DModel(Network):
    """diffusers' `UNet2DModel` in flax NNX: same configuration, same arrays, same numbers.

    Keyword arguments are keys of the diffusers `config.json` with the same defaults; here
    `attention_head_dim` is the size of a head.  `dropout` is accepted and never applied:
    these networks are evaluated, and trained here, without it.

    Raises:
        ValueError: block types, embeddings or sizes that this port does not have, each with the
            allowed values.

    >>> model = UNet2DModel(in_channels=1, out_channels=1, block_out_channels=(8, 16),
    ...     down_block_types=("DownBlock2D", "AttnDownBlock2D"), norm_num_groups=4,
    ...     up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=3, rngs=nnx.Rngs(0))
    >>> zeros, labels = jax.numpy.zeros((2, 1, 8, 8)), jax.numpy.array([0, 2])
    >>> model(zeros, 10, class_labels=labels).shape
    (2, 1, 8, 8)
    """

    FIXED_CONFIG: ClassVar[dict[str, Any]] = {"time_embedding_type": "positional"}
    IGNORED_CONFIG = frozenset({"num_train_timesteps"})  # of another time_embedding_type

    def __init__(
        self,
        *,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        freq_shift: float = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", *("AttnDownBlock2D",) * 3),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = (*("AttnUpBlock2D",) * 3, "UpBlock2D"),
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
        num_class_embeds: int | None = None,
        rngs: nnx.Rngs,
    ):
        self._remember(locals())
        channels = tuple(block_out_channels)
        check(
            len(channels) == len(down_block_types) == len(up_block_types),
            "down_block_types, up_block_types and block_out_channels must be equally long, "
            f"got {len(down_block_types)}, {len(up_block_types)} and {len(channels)}",
        )
        check_choices(
            *(("down_block_types", kind, DOWN_BLOCKS) for kind in down_block_types),
            *(("up_block_types", kind, UP_BLOCKS) for kind in up_block_types),
            ("mid_block_type", mid_block_type, (None, "UNetMidBlock2D")),
            ("downsample_type", downsample_type, ("conv", "resnet")),
            ("upsample_type", upsample_type, ("conv", "resnet")),
        )
        first, temb = channels[0], 4 * channels[0]
        resnet = {
            "temb_channels": temb,
            "groups": norm_num_groups,
            "eps": norm_eps,
            "act_fn": act_fn,
            "time_scale_shift": resnet_time_scale_shift,
        }

        self.conv_in = conv(in_channels, first, rngs=rngs)
        self.time_embedding = TimestepEmbedding(first, temb, rngs=rngs)
        if num_class_embeds is not None:
            self.class_embedding = embedding_table(num_class_embeds, temb, rngs=rngs)

        def attention(groups: int | None, scale: float = 1.0) -> AttentionFactory:
            return lambda channels, rngs: Attention(
                channels,
                head_dim=attention_head_dim or channels,
                groups=groups,
                eps=norm_eps,
                output_scale_factor=scale,
                rngs=rngs,
            )

        levels: Any = {"resnet": resnet, "rngs": rngs}
        self.down_blocks = down_levels(
            channels,
            layers=(layers_per_block,) * len(channels),
            attentions=[
                attention(norm_num_groups) if DOWN_BLOCKS[kind][0] else None
                for kind in down_block_types
            ],
            resample=[DOWN_BLOCKS[kind][1] or downsample_type for kind in down_block_types],
            padding=downsample_padding,
            **levels,
        )
        if mid_block_type is not None:
            groups = attn_norm_num_groups
            if groups is None and resnet_time_scale_shift != "scale_shift":
                groups = norm_num_groups
            self.mid_block = MidBlock(
                channels[-1],
                attention=attention(groups, mid_block_scale_factor) if add_attention else None,
                resnet={**resnet, "output_scale_factor": mid_block_scale_factor},
                rngs=rngs,
            )
        self.up_blocks = up_levels(
            channels[::-1],
            layers=(layers_per_block + 1,) * len(channels),
            attentions=[
                attention(norm_num_groups) if UP_BLOCKS[kind][0] else None
                for kind in up_block_types
            ],
            resample=[UP_BLOCKS[kind][1] or upsample_type for kind in up_block_types],
            **levels,
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
            sample: `(batch, in_channels, height, width)`.
            timestep: a scalar or `(batch,)`.
            class_labels: `(batch,)` integers; required exactly when the model has classes.

        Returns:
            `(batch, out_channels, height, width)`.

        Raises:
            ValueError: `class_labels` missing or not wanted, or a sample of the wrong shape.
        """
        check_given("class_labels", class_labels, wanted=hasattr(self, "class_embedding"))
        temb = embedded_time(self, sample, timestep)
        if class_labels is not None:
            temb = temb + self.class_embedding(class_labels)

        x = self.conv_in(sample.transpose(0, 2, 3, 1))
        x = through_levels(self, x, temb)
        return self.conv_out(silu(self.conv_norm_out(x))).transpose(0, 3, 1, 2)
