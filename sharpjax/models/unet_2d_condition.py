"""``UNet2DConditionModel``: the text-conditional network of Stable Diffusion 1.x, 2.x and XL.

Architecture: Rombach et al. 2022 (arXiv:2112.10752), Podell et al. 2023 (arXiv:2307.01952) for the
size and crop embeddings of XL.  Tested number for number against the PyTorch module.
"""

import inspect
from collections.abc import Mapping
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
    timestep_features,
)
from sharpjax.models.transformer_2d import AddedKVAttention, Transformer2DModel

# block type -> (what attends, how it resamples)
DOWN_BLOCKS = {
    "DownBlock2D": (None, "conv"),
    "CrossAttnDownBlock2D": ("transformer", "conv"),
    "AttnDownBlock2D": ("self", "conv"),
    "ResnetDownsampleBlock2D": (None, "resnet"),
    "SimpleCrossAttnDownBlock2D": ("added", "resnet"),
}
UP_BLOCKS = {
    "UpBlock2D": (None, "conv"),
    "CrossAttnUpBlock2D": ("transformer", "conv"),
    "AttnUpBlock2D": ("self", "conv"),
    "ResnetUpsampleBlock2D": (None, "resnet"),
    "SimpleCrossAttnUpBlock2D": ("added", "resnet"),
}
# block type -> (what attends, residual blocks after the first)
MID_BLOCKS = {
    "UNetMidBlock2DCrossAttn": ("transformer", 1),
    "UNetMidBlock2DSimpleCrossAttn": ("added", 1),
    "UNetMidBlock2D": (None, 0),
}


class UNet2DConditionModel(nnx.Module):
    """diffusers' ``UNet2DConditionModel`` in flax NNX: same configuration, same numbers.

    Keyword arguments are the keys of the diffusers ``config.json`` with the same defaults.  What
    may differ between levels is one value for all or a sequence of one value a level.  In this
    class ``attention_head_dim`` is the *number* of heads of the transformers (and the size of a
    head of the other attentions), for the reason of history that diffusers gives.
    ``upcast_attention`` changes nothing, because the softmax is always in float32; ``dropout`` is
    accepted and never applied.

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

    def __init__(
        self,
        *,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: float = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: tuple[str, ...] = (
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | tuple[int, ...] = 1280,
        transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1,
        reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        resnet_skip_time_act: bool = False,
        resnet_out_scale_factor: float = 1.0,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        time_embedding_act_fn: str | None = None,
        timestep_post_act: str | None = None,
        time_cond_proj_dim: int | None = None,
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        projection_class_embeddings_input_dim: int | None = None,
        attention_type: str = "default",
        class_embeddings_concat: bool = False,
        mid_block_only_cross_attention: bool | None = None,
        cross_attention_norm: str | None = None,
        addition_embed_type_num_heads: int = 64,
        rngs: nnx.Rngs,
    ):
        given = dict(locals())
        keys = list(inspect.signature(UNet2DConditionModel.__init__).parameters)
        # a tuple, because static attributes must be hashable for modules to be jit arguments
        self.settings = nnx.static(
            tuple((k, tuples(given[k])) for k in keys if k not in ("self", "rngs"))
        )
        self.remat = False
        channels = tuple(block_out_channels)
        levels = len(channels)
        check(
            levels == len(down_block_types) == len(up_block_types) > 0,
            "down_block_types, up_block_types and block_out_channels must be equally long and not "
            f"empty, got {len(down_block_types)}, {len(up_block_types)} and {levels}",
        )
        for kind, allowed, key in (
            *((kind, DOWN_BLOCKS, "down_block_types") for kind in down_block_types),
            *((kind, UP_BLOCKS, "up_block_types") for kind in up_block_types),
            (mid_block_type, (None, *MID_BLOCKS), "mid_block_type"),
            (time_embedding_type, ("positional", "fourier"), "time_embedding_type"),
            (class_embed_type, CLASS_EMBED_TYPES, "class_embed_type"),
            (addition_embed_type, (None, "text_time"), "addition_embed_type"),
            (encoder_hid_dim_type, (None, "text_proj"), "encoder_hid_dim_type"),
            (cross_attention_norm, (None, "group_norm"), "cross_attention_norm"),
            (attention_type, ("default",), "attention_type"),
            (dual_cross_attention, (False,), "dual_cross_attention"),
            (num_attention_heads, (None,), "num_attention_heads"),
        ):
            choices = ", ".join(map(str, allowed))
            check(kind in allowed, f"{key}: {kind!r} is not supported; choose from {choices}")
        for name, size in (
            ("conv_in_kernel", conv_in_kernel),
            ("conv_out_kernel", conv_out_kernel),
        ):
            check(size % 2 == 1, f"{name} must be odd, got {size}")

        def per_level(key: str, reverse: bool = False) -> tuple[Any, ...]:
            value = given[key]
            values = tuple(value) if isinstance(value, list | tuple) else (value,) * levels
            check(
                len(values) == levels,
                f"{key} must be one value or {levels}, one for each level, got {len(values)}",
            )
            return values

        heads = per_level("attention_head_dim")
        layers = per_level("layers_per_block")
        contexts = per_level("cross_attention_dim")
        only_cross = per_level("only_cross_attention")
        depths = per_level("transformer_layers_per_block")
        if reverse_transformer_layers_per_block is not None:
            up_depths = per_level("reverse_transformer_layers_per_block")
        else:
            up_depths = depths[::-1]
            check(
                all(isinstance(depth, int) for depth in depths),
                "transformer_layers_per_block with a list for a level needs "
                "reverse_transformer_layers_per_block for the way up",
            )
        if mid_block_only_cross_attention is None:
            mid_block_only_cross_attention = only_cross_attention is True

        # --- embeddings of the timestep, of classes, of sizes, of the text
        first = channels[0]
        fourier = time_embedding_type == "fourier"
        temb = time_embedding_dim or first * (2 if fourier else 4)
        features = temb if fourier else first
        if fourier:
            self.time_proj = GaussianFourierProjection(
                temb // 2, scale=1.0, log=False, flip_sin_to_cos=flip_sin_to_cos, rngs=rngs
            )
        self.time_embedding = TimestepEmbedding(
            features,
            temb,
            act_fn=act_fn,
            post_act_fn=timestep_post_act,
            condition_channels=time_cond_proj_dim,
            rngs=rngs,
        )
        if encoder_hid_dim is not None:
            check(isinstance(cross_attention_dim, int),
                   "encoder_hid_dim needs one cross_attention_dim for all levels")  # fmt: skip
            self.encoder_hid_proj = nnx.Linear(
                encoder_hid_dim, cast(int, cross_attention_dim), rngs=rngs
            )
        else:
            check(encoder_hid_dim_type is None, "encoder_hid_dim_type needs encoder_hid_dim")
        projected: Any = projection_class_embeddings_input_dim
        if class_embed_type == "timestep":
            self.class_embedding: Any = TimestepEmbedding(features, temb, act_fn=act_fn, rngs=rngs)
        elif class_embed_type in ("projection", "simple_projection"):
            check(projected is not None, f"class_embed_type={class_embed_type!r} needs "
                   "projection_class_embeddings_input_dim")  # fmt: skip
            layer = TimestepEmbedding if class_embed_type == "projection" else nnx.Linear
            self.class_embedding = layer(projected, temb, rngs=rngs)
        elif class_embed_type is None and num_class_embeds is not None:
            self.class_embedding = embedding_table(num_class_embeds, temb, rngs=rngs)
        if addition_embed_type == "text_time":
            check(None not in (projected, addition_time_embed_dim),
                   "addition_embed_type='text_time' needs addition_time_embed_dim and "
                   "projection_class_embeddings_input_dim")  # fmt: skip
            self.add_embedding = TimestepEmbedding(projected, temb, rngs=rngs)
        self.time_embed_act = (
            None if time_embedding_act_fn is None else activation(time_embedding_act_fn)
        )

        # --- the network
        plain = {
            "temb_channels": 2 * temb if class_embeddings_concat else temb,
            "groups": norm_num_groups,
            "eps": norm_eps,
            "act_fn": act_fn,
            "time_scale_shift": resnet_time_scale_shift,
        }
        resnet = {  # by what attends and how it resamples, as diffusers hands these options on
            "transformer": plain,
            "self": plain,
            "added": plain | {"skip_time_act": resnet_skip_time_act},
            "conv": plain,
            "resnet": plain
            | {
                "skip_time_act": resnet_skip_time_act,
                "output_scale_factor": resnet_out_scale_factor,
            },
        }

        def attention(
            kind: str | None, level: int, depth: Any, only: bool
        ) -> AttentionFactory | None:
            def transformer(layer: int, channels: int, rngs: nnx.Rngs) -> nnx.Module:
                check(
                    0 < heads[level] <= channels,
                    "attention_head_dim, the number of heads, must lie in "
                    f"1..{channels} at level {level}, got {heads[level]}",
                )
                return Transformer2DModel(
                    channels,
                    num_heads=heads[level],
                    num_layers=depth if isinstance(depth, int) else depth[layer],
                    context_channels=contexts[level],
                    groups=norm_num_groups,
                    linear_projection=use_linear_projection,
                    only_cross_attention=only,
                    rngs=rngs,
                )

            def added(layer: int, channels: int, rngs: nnx.Rngs) -> nnx.Module:
                return AddedKVAttention(
                    channels,
                    head_dim=heads[level],
                    context_channels=contexts[level],
                    groups=norm_num_groups,
                    only_cross_attention=only,
                    normalize_context=cross_attention_norm == "group_norm",
                    rngs=rngs,
                )

            def itself(layer: int, channels: int, rngs: nnx.Rngs) -> nnx.Module:
                return Attention(
                    channels,
                    head_dim=heads[level] or channels,
                    groups=norm_num_groups,
                    eps=norm_eps,
                    rngs=rngs,
                )

            return {"transformer": transformer, "added": added, "self": itself, None: None}[kind]

        last = levels - 1
        self.conv_in = conv(
            in_channels, first, conv_in_kernel, padding=conv_in_kernel // 2, rngs=rngs
        )
        down = []
        for i, (kind, resample) in enumerate(DOWN_BLOCKS[name] for name in down_block_types):
            block = DownBlock(
                (channels[max(i - 1, 0)], channels[i]),
                num_layers=layers[i],
                attention=attention(kind, i, depths[i], only_cross[i]),
                downsample=resample if i < last else None,
                padding=downsample_padding,
                resnet=resnet[kind or resample],
                rngs=rngs,
            )
            down.append(block)
        self.down_blocks = nnx.List(down)
        if mid_block_type is not None:
            kind, num_layers = MID_BLOCKS[mid_block_type]
            only = mid_block_only_cross_attention if kind == "added" else False
            self.mid_block = MidBlock(
                channels[-1],
                num_layers=num_layers,
                attention=attention(kind, last, depths[-1], only),
                resnet=resnet[kind or "conv"] | {"output_scale_factor": mid_block_scale_factor},
                rngs=rngs,
            )
        up, wide = [], channels[::-1]
        for i, (kind, resample) in enumerate(UP_BLOCKS[name] for name in up_block_types):
            up_block = UpBlock(
                (wide[min(i + 1, last)], wide[max(i - 1, 0)], wide[i]),
                num_layers=layers[last - i] + 1,
                attention=attention(kind, last - i, up_depths[i], only_cross[last - i]),
                upsample=resample if i < last else None,
                resnet=resnet[kind or resample],
                rngs=rngs,
            )
            up.append(up_block)
        self.up_blocks = nnx.List(up)
        self.conv_norm_out = group_norm(first, norm_num_groups, eps=norm_eps, rngs=rngs)
        self.conv_act = activation(act_fn)
        self.conv_out = conv(
            first, out_channels, conv_out_kernel, padding=conv_out_kernel // 2, rngs=rngs
        )

    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array | int | float,
        encoder_hidden_states: jax.Array,
        class_labels: jax.Array | None = None,
        *,
        timestep_cond: jax.Array | None = None,
        added_cond_kwargs: Mapping[str, jax.Array] | None = None,
    ) -> jax.Array:
        """Evaluate a batch.

        Args:
            sample: ``(batch, in_channels, height, width)``.
            timestep: a scalar or ``(batch,)``.
            encoder_hidden_states: ``(batch, tokens, cross_attention_dim)``, the text
                (``encoder_hid_dim`` wide where the configuration gives that).
            class_labels: ``(batch,)`` integers (or timesteps, for ``class_embed_type="timestep"``),
                or ``(batch, size)`` embeddings for ``"identity"`` and the projections; required
                exactly when the model has a class embedding.
            timestep_cond: ``(batch, time_cond_proj_dim)``, added to the features of the timestep.
            added_cond_kwargs: for XL ``text_embeds (batch, size)`` and ``time_ids (batch, 6)``.

        Returns:
            ``(batch, out_channels, height, width)``.

        Raises:
            ValueError: an input missing or not wanted, or of the wrong shape.
        """
        config = self.config
        self._check_inputs(
            sample, encoder_hidden_states, class_labels, timestep_cond, added_cond_kwargs
        )
        dtype = sample.dtype
        timestep = jnp.broadcast_to(jnp.asarray(timestep), (sample.shape[0],))
        temb = self.time_embedding(self._features(timestep).astype(dtype), timestep_cond)
        if class_labels is not None:
            classes = self._class_embedding(jnp.asarray(class_labels), dtype)
            temb = (
                jnp.concatenate([temb, classes], axis=-1)
                if config["class_embeddings_concat"]
                else temb + classes
            )
        if hasattr(self, "add_embedding"):
            temb = temb + self._size_embedding(
                cast(Mapping[str, jax.Array], added_cond_kwargs)
            ).astype(dtype)
        if self.time_embed_act is not None:
            temb = self.time_embed_act(temb)
        context = encoder_hidden_states.astype(dtype)
        if hasattr(self, "encoder_hid_proj"):
            context = self.encoder_hid_proj(context)

        x = sample.transpose(0, 2, 3, 1)
        x = self.conv_in(2 * x - 1 if config["center_input_sample"] else x)
        skips = [x]
        for block in self.down_blocks:
            x, new = block(x, temb, context, remat=self.remat)
            skips += new
        if hasattr(self, "mid_block"):
            x = self.mid_block(x, temb, context, remat=self.remat)
        for up_block in self.up_blocks:
            x = up_block(x, skips, temb, context, remat=self.remat)
        return self.conv_out(self.conv_act(self.conv_norm_out(x))).transpose(0, 3, 1, 2)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments: the diffusers configuration."""
        return dict(self.settings)

    def _check_inputs(
        self,
        sample: jax.Array,
        context: jax.Array,
        labels: jax.Array | None,
        timestep_cond: jax.Array | None,
        added: Mapping[str, jax.Array] | None,
    ) -> None:
        config = self.config
        if sample.ndim != 4 or sample.shape[1] != config["in_channels"]:
            raise ValueError(
                f"sample must have shape (batch, {config['in_channels']}, height, width), "
                f"got {sample.shape}"
            )
        width = config["encoder_hid_dim"] or config["cross_attention_dim"]
        widths = {width} if isinstance(width, int) else set(width)
        if (
            context.ndim != 3
            or context.shape[0] != sample.shape[0]
            or context.shape[2] not in widths
        ):
            raise ValueError(
                f"encoder_hidden_states must have shape ({sample.shape[0]}, tokens, "
                f"{' or '.join(map(str, sorted(widths)))}), got {context.shape}"
            )
        has_classes = hasattr(self, "class_embedding") or config["class_embed_type"] == "identity"
        for name, value, wanted in (
            ("class_labels", labels, has_classes),
            ("added_cond_kwargs", added, hasattr(self, "add_embedding")),
        ):
            if (value is not None) != wanted:
                raise ValueError(
                    f"this model {'needs' if wanted else 'takes no'} {name}, "
                    f"got {'none' if value is None else 'some'}"
                )
        if timestep_cond is not None and config["time_cond_proj_dim"] is None:
            raise ValueError("this model takes no timestep_cond: time_cond_proj_dim is null")

    def _features(self, t: jax.Array, size: int | None = None) -> jax.Array:
        if hasattr(self, "time_proj") and size is None:
            return self.time_proj(t)
        config = self.config
        return timestep_features(
            t,
            size or config["block_out_channels"][0],
            flip_sin_to_cos=config["flip_sin_to_cos"],
            freq_shift=config["freq_shift"],
        )

    def _class_embedding(self, labels: jax.Array, dtype: Any) -> jax.Array:
        kind = self.config["class_embed_type"]
        if kind == "identity":
            return labels.astype(dtype)
        if kind == "timestep":
            labels = self._features(labels)
        result: jax.Array = self.class_embedding(labels if kind is None else labels.astype(dtype))
        return result

    def _size_embedding(self, added: Mapping[str, jax.Array]) -> jax.Array:
        missing = {"text_embeds", "time_ids"} - set(added)
        if missing:
            raise ValueError(f"added_cond_kwargs lacks {', '.join(sorted(missing))}")
        text, ids = added["text_embeds"], jnp.asarray(added["time_ids"])
        sizes = self._features(ids.reshape(-1), self.config["addition_time_embed_dim"])
        sizes = sizes.reshape(len(text), -1).astype(text.dtype)
        return self.add_embedding(jnp.concatenate([text, sizes], axis=-1))


CLASS_EMBED_TYPES = (None, "timestep", "identity", "projection", "simple_projection")
