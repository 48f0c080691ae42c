"""The levels of a UNet: residual blocks, attention between them, and resampling.

What attends is handed in as a factory, `attention(channels, rngs)`, whose module is
called as `module(x, context)`: self-attention in `UNet2DModel`, transformers over a text in
`UNet2DConditionModel`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sharpjax.networks.layers import Downsample2D, ResnetBlock2D, Upsample2D, timestep_features
from sharpjax.networks.text_attention import AttendedText

AttentionFactory = Callable[[int, nnx.Rngs], nnx.Module]


def embedded_time(network: Any, sample: jax.Array, timestep: jax.Array | int | float) -> jax.Array:
    """The `time_embedding` of timesteps, one or `(batch,)`, for the sample that a UNet is given."""
    channels = network.config["in_channels"]
    if sample.ndim != 4 or sample.shape[1] != channels:
        raise ValueError(
            f"sample must have shape (batch, {channels}, height, width), got {sample.shape}"
        )
    timestep = jnp.broadcast_to(jnp.asarray(timestep), (sample.shape[0],))
    features = time_features(network, timestep, network.config["block_out_channels"][0])
    return network.time_embedding(features.astype(sample.dtype))


def time_features(network: Any, t: jax.Array, size: int) -> jax.Array:
    """`timestep_features` as a UNet's configuration wants them."""
    flip, shift = network.config["flip_sin_to_cos"], network.config["freq_shift"]
    return timestep_features(t, size, flip_sin_to_cos=flip, freq_shift=shift)


def check_given(name: str, value: Any, *, wanted: bool) -> None:
    """Refuse an input that a network needs and is not given, or the other way round."""
    if (value is not None) != wanted:
        raise ValueError(
            f"this model {'needs' if wanted else 'takes no'} {name}, "
            f"got {'none' if value is None else 'some'}"
        )


def through_levels(
    network: Any,
    x: jax.Array,
    temb: jax.Array | None,
    context: Any = None,
    *,
    remat: bool = False,
) -> jax.Array:
    """Through a UNet's `down_blocks`, `mid_block` if there is one, and `up_blocks`."""
    skips = [x]
    for block in network.down_blocks:
        x, new = block(x, temb, context, remat=remat)
        skips += new
    if hasattr(network, "mid_block"):
        x = network.mid_block(x, temb, context, remat=remat)
    if isinstance(context, AttendedText):
        context = context.on_the_way_up
    for block in network.up_blocks:
        x = block(x, skips, temb, context, remat=remat)
    return x


class Level(nnx.Module):
    """Residual blocks to so many channels, each followed by attention if there is any."""

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int,
        *,
        attention: AttentionFactory | None,
        resnet: dict[str, Any],
        rngs: nnx.Rngs,
    ):
        self.resnets = nnx.List(
            ResnetBlock2D(c_in, channels, **resnet, rngs=rngs) for c_in in inputs
        )
        if attention is not None:
            self.attentions = nnx.List(attention(channels, rngs) for _ in inputs)

    def layer(
        self, i: int, x: jax.Array, temb: jax.Array | None, context: Any, remat: bool
    ) -> jax.Array:
        """A residual block and its attention."""
        x = _call(self.resnets[i], x, temb, remat=remat)
        if hasattr(self, "attentions"):
            x = _call(self.attentions[i], x, context, remat=remat)
        return x


class DownBlock(Level):
    """A level, then a downsampler if there is one."""

    downsamplers: nnx.List[Any]

    def __call__(
        self, x: jax.Array, temb: jax.Array | None, context: Any = None, *, remat: bool = False
    ) -> tuple[jax.Array, list[jax.Array]]:
        """The output, and every intermediate state for the skip connections."""
        skips = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, temb, context, remat)
            skips.append(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x, temb)
            skips.append(x)
        return x, skips


class UpBlock(Level):
    """A level, whose residual blocks may see `[x, skip]`, then an upsampler if there is one."""

    upsamplers: nnx.List[Any]

    def __call__(
        self,
        x: jax.Array,
        skips: list[jax.Array] | None,
        temb: jax.Array | None,
        context: Any = None,
        *,
        remat: bool = False,
    ) -> jax.Array:
        """The output; takes its skip connections, if there are any, off the end of `skips`.

        Raises:
            ValueError: a size that a residual block cannot upsample to.
        """
        for i in range(len(self.resnets)):
            if skips is not None:
                if x.shape[1:3] != skips[-1].shape[1:3]:
                    raise ValueError(
                        f"upsampling gave {x.shape[1:3]} where {skips[-1].shape[1:3]} is needed: "
                        "this network takes heights and widths that all its levels can halve"
                    )
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = self.layer(i, x, temb, context, remat)
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0](x, temb, size=skips[-1].shape[1:3] if skips else None)
        return x


class MidBlock(Level):
    """Two residual blocks, between them attention if there is any."""

    def __init__(
        self, channels: int, *, attention: AttentionFactory | None, resnet: Any, rngs: nnx.Rngs
    ):
        super().__init__((channels,) * 2, channels, attention=None, resnet=resnet, rngs=rngs)
        if attention is not None:
            self.attentions = nnx.List([attention(channels, rngs)])

    def __call__(
        self, x: jax.Array, temb: jax.Array | None, context: Any = None, *, remat: bool = False
    ) -> jax.Array:
        """Same shape out."""
        return _call(self.resnets[1], self.layer(0, x, temb, context, remat), temb, remat=remat)


def down_levels(
    channels: Sequence[int],
    *,
    layers: Sequence[int],
    attentions: Sequence[AttentionFactory | None],
    resample: Sequence[str],
    padding: int,
    resnet: dict[str, Any],
    rngs: nnx.Rngs,
) -> nnx.List[DownBlock]:
    """From the largest images to the smallest; `channels` to `resample` are by level.

    `layers` is the number of residual blocks, `attentions` what follows each of them, `resample`
    `"conv"` (with a `padding`) or `"resnet"`; the last level has no downsampler.
    """
    blocks = []
    for i, (c_out, n) in enumerate(zip(channels, layers, strict=True)):
        inputs = [channels[max(i - 1, 0)], *[c_out] * (n - 1)][:n]
        block = DownBlock(inputs, c_out, attention=attentions[i], resnet=resnet, rngs=rngs)
        if i < len(channels) - 1:
            block.downsamplers = nnx.List(
                [Downsample2D(c_out, padding=padding, rngs=rngs)]
                if resample[i] == "conv"
                else [ResnetBlock2D(c_out, c_out, **resnet, resample="down", rngs=rngs)]
            )
        blocks.append(block)
    return nnx.List(blocks)


def up_levels(
    channels: Sequence[int],
    *,
    layers: Sequence[int],
    attentions: Sequence[AttentionFactory | None],
    resample: Sequence[str],
    skips: bool = True,
    resnet: dict[str, Any],
    rngs: nnx.Rngs,
) -> nnx.List[UpBlock]:
    """As `down_levels`, from the smallest images to the largest, with `skips` or without."""
    blocks, last = [], len(channels) - 1
    for i, (c_out, n) in enumerate(zip(channels, layers, strict=True)):
        inputs = [channels[max(i - 1, 0)], *[c_out] * (n - 1)][:n]
        if skips:
            skipped = [*[c_out] * (n - 1), channels[min(i + 1, last)]]
            inputs = [a + b for a, b in zip(inputs, skipped, strict=True)]
        block = UpBlock(inputs, c_out, attention=attentions[i], resnet=resnet, rngs=rngs)
        if i < last:
            block.upsamplers = nnx.List(
                [Upsample2D(c_out, rngs=rngs)]
                if resample[i] == "conv"
                else [ResnetBlock2D(c_out, c_out, **resnet, resample="up", rngs=rngs)]
            )
        blocks.append(block)
    return nnx.List(blocks)


def _call(module: nnx.Module, *args: Any, remat: bool) -> Any:
    """`module(*args)`, whose inside is computed again rather than kept if `remat`."""
    if not remat:
        return module(*args)
    return jax.checkpoint(lambda module, *args: module(*args))(module, *args)
