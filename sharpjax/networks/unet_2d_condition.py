"""`UNet2DConditionModel`: the text-conditional network of Stable Diffusion 1.x, 2.x and XL.

Architecture: Rombach et al. 2022 (arXiv:2112.10752), Podell et al. 2023 (arXiv:2307.01952) for the
size and crop embeddings of XL.  Tested number for number against the PyTorch module.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import nnx

from sharpjax.checkpoints.configuration import check
from sharpjax.networks.blocks import (
    AttentionFactory,
    MidBlock,
    check_given,
    down_levels,
    embedded_time,
    through_levels,
    time_features,
    up_levels,
)
from sharpjax.networks.layers import TimestepEmbedding, activation, conv, group_norm
from sharpjax.networks.network import Network, check_choices
from sharpjax.networks.text_attention import AttendedText, TextAttention
from sharpjax.networks.transformer_2d import Transformer2DModel

# block type -> whether it attends to the text
DOWN_BLOCKS = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
UP_BLOCKS = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}


class UNet2DConditionModel(Network):
    """diffusers' `UNet2DConditionModel` in flax NNX: same configuration, same numbers.

    Keyword arguments are keys of the diffusers `config.json` with the same defaults; those that
    only other pipelines use (DeepFloyd IF, unCLIP, upscalers, networks distilled for few steps)
    are not there.  What may differ between levels is one value for all or one a level.  In this
    class `attention_head_dim` is the *number* of heads of the transformers, for the reason of
    history that diffusers gives.  `upcast_attention` changes nothing, because the softmax is
    always in float32; `dropout` is accepted and never applied.

    Attributes:
        remat: compute the inside of residual blocks and transformers again when their tangents
            or gradients are needed, instead of keeping it: less memory, more time.

    Raises:
        ValueError: block types, embeddings or sizes that this port does not have, each with the
            allowed values.

    >>> model = UNet2DConditionModel(block_out_channels=(8, 16), norm_num_groups=4,
    ...     down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), layers_per_block=1,
    ...     up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=12,
    ...     attention_head_dim=2, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((2, 4, 8, 8)), 10, encoder_hidden_states=jnp.zeros((2, 5, 12))).shape
    (2, 4, 8, 8)
    """

    FIXED_CONFIG: ClassVar[dict[str, Any]] = {
        "attention_type": "default",
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "mid_block_scale_factor": 1,
        "resnet_out_scale_factor": 1,
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
    }
    IGNORED_CONFIG = frozenset({"addition_embed_type_num_heads"})  # of another addition_embed_type

    def __init__(
        self,
        *,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        flip_sin_to_cos: bool = True,
        freq_shift: float = 0,
        down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1280,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        attention_head_dim: int | tuple[int, ...] = 8,
        use_linear_projection: bool = False,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        projection_class_embeddings_input_dim: int | None = None,
        upcast_attention: bool = False,
        rngs: nnx.Rngs,
    ):
        given = dict(locals())
        self._remember(given)
        self.remat = False
        channels = tuple(block_out_channels)
        levels = len(channels)
        check(
            levels == len(down_block_types) == len(up_block_types) > 0,
            "down_block_types, up_block_types and block_out_channels must be equally long and not "
            f"empty, got {len(down_block_types)}, {len(up_block_types)} and {levels}",
        )
        check_choices(
            *(("down_block_types", kind, DOWN_BLOCKS) for kind in down_block_types),
            *(("up_block_types", kind, UP_BLOCKS) for kind in up_block_types),
            ("mid_block_type", mid_block_type, (None, "UNetMidBlock2DCrossAttn")),
            ("addition_embed_type", addition_embed_type, (None, "text_time")),
        )

        def per_level(key: str) -> tuple[Any, ...]:
            value = given[key]
            values = tuple(value) if isinstance(value, list | tuple) else (value,) * levels
            check(
                len(values) == levels,
                f"{key} must be one value or {levels}, one for each level, got {len(values)}",
            )
            return values

        heads = per_level("attention_head_dim")
        layers = per_level("layers_per_block")
        depths = per_level("transformer_layers_per_block")

        # --- embeddings of the timestep and of sizes
        first = channels[0]
        temb = 4 * first
        self.time_embedding = TimestepEmbedding(first, temb, act_fn=act_fn, rngs=rngs)
        if addition_embed_type == "text_time":
            projected: Any = projection_class_embeddings_input_dim
            check(
                None not in (projected, addition_time_embed_dim),
                "addition_time_embed_dim and projection_class_embeddings_input_dim must be given "
                "with addition_embed_type='text_time', got None",
            )
            self.add_embedding = TimestepEmbedding(projected, temb, rngs=rngs)

        # --- the network
        norm: Any = {"groups": norm_num_groups, "eps": norm_eps}
        resnet = {**norm, "temb_channels": temb, "act_fn": act_fn}

        def attention(level: int) -> AttentionFactory:
            def transformer(channels: int, rngs: nnx.Rngs) -> nnx.Module:
                check(
                    0 < heads[level] <= channels,
                    "attention_head_dim, the number of heads, must lie in "
                    f"1..{channels} at level {level}, got {heads[level]}",
                )
                return Transformer2DModel(
                    channels,
                    num_heads=heads[level],
                    num_layers=depths[level],
                    context_channels=cross_attention_dim,
                    groups=norm_num_groups,
                    linear_projection=use_linear_projection,
                    rngs=rngs,
                )

            return transformer

        self.conv_in = conv(in_channels, first, rngs=rngs)
        self.down_blocks = down_levels(
            channels,
            layers=layers,
            attentions=[
                attention(i) if DOWN_BLOCKS[kind] else None
                for i, kind in enumerate(down_block_types)
            ],
            resample=("conv",) * levels,
            padding=downsample_padding,
            resnet=resnet,
            rngs=rngs,
        )
        if mid_block_type is not None:
            self.mid_block = MidBlock(
                channels[-1], attention=attention(levels - 1), resnet=resnet, rngs=rngs
            )
        self.up_blocks = up_levels(
            channels[::-1],
            layers=[n + 1 for n in reversed(layers)],
            attentions=[
                attention(levels - 1 - i) if UP_BLOCKS[kind] else None
                for i, kind in enumerate(up_block_types)
            ],
            resample=("conv",) * levels,
            resnet=resnet,
            rngs=rngs,
        )
        self.conv_norm_out = group_norm(first, **norm, rngs=rngs)
        self.conv_act = activation(act_fn)
        self.conv_out = conv(first, out_channels, rngs=rngs)

    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array | int | float,
        encoder_hidden_states: jax.Array,
        *,
        added_cond_kwargs: Mapping[str, jax.Array] | None = None,
        attention: TextAttention | None = None,
    ) -> jax.Array:
        """Evaluate a batch.

        Args:
            sample: `(batch, in_channels, height, width)`.
            timestep: a scalar or `(batch,)`.
            encoder_hidden_states: `(batch, tokens, cross_attention_dim)`, the text.
            added_cond_kwargs: for XL `text_embeds (batch, size)` and `time_ids (batch, 6)`.
            attention: to the text, where it is not to be as it was trained.

        Returns:
            `(batch, out_channels, height, width)`.

        Raises:
            ValueError: an input missing or not wanted, or of the wrong shape.
        """
        temb = embedded_time(self, sample, timestep)
        dtype, width = sample.dtype, self.config["cross_attention_dim"]
        shape = encoder_hidden_states.shape
        if len(shape) != 3 or shape[::2] != (len(sample), width):
            raise ValueError(
                f"encoder_hidden_states must have shape ({len(sample)}, tokens, {width}), "
                f"got {shape}"
            )
        check_given("added_cond_kwargs", added_cond_kwargs, wanted=hasattr(self, "add_embedding"))
        if hasattr(self, "add_embedding"):
            added = cast(Mapping[str, jax.Array], added_cond_kwargs)
            temb = temb + self._size_embedding(added).astype(dtype)
        context: Any = encoder_hidden_states.astype(dtype)
        if attention is not None:
            if attention.scale.shape != shape[:2]:
                raise ValueError(
                    f"attention must be to {shape[0]} texts of {shape[1]} tokens, got one of shape "
                    f"{attention.scale.shape}"
                )
            context = AttendedText(context, attention)

        x = self.conv_in(sample.transpose(0, 2, 3, 1))
        x = through_levels(self, x, temb, context, remat=self.remat)
        return self.conv_out(self.conv_act(self.conv_norm_out(x))).transpose(0, 3, 1, 2)

    def _size_embedding(self, added: Mapping[str, jax.Array]) -> jax.Array:
        missing = {"text_embeds", "time_ids"} - set(added)
        if missing:
            raise ValueError(f"added_cond_kwargs lacks {', '.join(sorted(missing))}")
        text, ids = added["text_embeds"], jnp.asarray(added["time_ids"])
        each, wanted = (
            self.config[key]
            for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
        )
        count, rest = divmod(wanted - text.shape[-1], each)
        check(
            rest == 0 and ids.shape == (len(text), count),
            f"text_embeds and time_ids of shapes {text.shape} and {ids.shape} do not fit: a row of "
            f"the first and {each} features of each number of the second "
            f"(addition_time_embed_dim) must be {wanted} together "
            "(projection_class_embeddings_input_dim)",
        )
        sizes = time_features(self, ids.reshape(-1), self.config["addition_time_embed_dim"])
        sizes = sizes.reshape(len(text), -1).astype(text.dtype)
        return self.add_embedding(jnp.concatenate([text, sizes], axis=-1))
