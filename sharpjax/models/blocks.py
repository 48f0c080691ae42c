"""The levels of a UNet: residual blocks, attention between them, and resampling.

What attends is handed in as a factory, ``attention(layer, channels, rngs)``, whose module is
called as ``module(x, context)``: self-attention in ``UNet2DModel``, transformers over a text in
``UNet2DConditionModel``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sharpjax.models.layers import Downsample2D, ResnetBlock2D, Upsample2D

AttentionFactory = Callable[[int, int, nnx.Rngs], nnx.Module]


def call(module: nnx.Module, *args: Any, remat: bool) -> Any:
    """``module(*args)``, whose inside is computed again rather than kept if ``remat``."""
    if not remat:
        return module(*args)
    return jax.checkpoint(lambda module, *args: module(*args))(module, *args)


class DownBlock(nnx.Module):
    """Residual blocks, each followed by attention if there is any, then a downsampler.

    Args:
        channels: in and out.
        num_layers: residual blocks.
        attention: factory of what follows each of them.
        downsample: ``"conv"``, ``"resnet"`` or ``None``.
        padding: of a convolution that downsamples.
        resnet: options of the residual blocks.
        rngs: of the initial weights.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        *,
        num_layers: int,
        attention: AttentionFactory | None,
        downsample: str | None,
        padding: int,
        resnet: dict[str, Any],
        rngs: nnx.Rngs,
    ):
        c_in, c_out = channels
        self.resnets = nnx.List(
            ResnetBlock2D(c_in if i == 0 else c_out, c_out, **resnet, rngs=rngs)
            for i in range(num_layers)
        )
        if attention is not None:
            self.attentions = nnx.List(attention(i, c_out, rngs) for i in range(num_layers))
        if downsample is not None:
            self.downsamplers = nnx.List(
                [Downsample2D(c_out, padding=padding, rngs=rngs)]
                if downsample == "conv"
                else [ResnetBlock2D(c_out, c_out, **resnet, resample="down", rngs=rngs)]
            )

    def __call__(
        self,
        x: jax.Array,
        temb: jax.Array | None,
        context: jax.Array | None = None,
        *,
        remat: bool = False,
    ) -> tuple[jax.Array, list[jax.Array]]:
        """The output, and every intermediate state for the skip connections."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = call(resnet, x, temb, remat=remat)
            if hasattr(self, "attentions"):
                x = call(self.attentions[i], x, context, remat=remat)
            skips.append(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x, temb)
            skips.append(x)
        return x, skips


class UpBlock(nnx.Module):
    """Residual blocks on ``[x, skip]``, each followed by attention if any, then an upsampler.

    Args:
        channels: of the last skip connection, of ``x`` and of the output.
        num_layers: residual blocks, one more than on the way down.
        attention: factory of what follows each of them.
        upsample: ``"conv"``, ``"resnet"`` or ``None``.
        resnet: options of the residual blocks.
        rngs: of the initial weights.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        *,
        num_layers: int,
        attention: AttentionFactory | None,
        upsample: str | None,
        resnet: dict[str, Any],
        rngs: nnx.Rngs,
    ):
        c_skip, c_prev, c_out = channels
        self.resnets = nnx.List(
            ResnetBlock2D(
                (c_prev if i == 0 else c_out) + (c_skip if i == num_layers - 1 else c_out),
                c_out,
                **resnet,
                rngs=rngs,
            )
            for i in range(num_layers)
        )
        if attention is not None:
            self.attentions = nnx.List(attention(i, c_out, rngs) for i in range(num_layers))
        if upsample is not None:
            self.upsamplers = nnx.List(
                [Upsample2D(c_out, rngs=rngs)]
                if upsample == "conv"
                else [ResnetBlock2D(c_out, c_out, **resnet, resample="up", rngs=rngs)]
            )

    def __call__(
        self,
        x: jax.Array,
        skips: list[jax.Array],
        temb: jax.Array | None,
        context: jax.Array | None = None,
        *,
        remat: bool = False,
    ) -> jax.Array:
        """The output; takes its skip connections off the end of ``skips``.

        Raises:
            ValueError: a size that a residual block cannot upsample to.
        """
        for i, resnet in enumerate(self.resnets):
            if x.shape[1:3] != skips[-1].shape[1:3]:
                raise ValueError(
                    f"upsampling gave {x.shape[1:3]} where {skips[-1].shape[1:3]} is needed: this "
                    "network takes heights and widths that all its levels can halve"
                )
            x = call(resnet, jnp.concatenate([x, skips.pop()], axis=-1), temb, remat=remat)
            if hasattr(self, "attentions"):
                x = call(self.attentions[i], x, context, remat=remat)
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0](x, temb, size=skips[-1].shape[1:3])
        return x


class MidBlock(nnx.Module):
    """A residual block, then ``num_layers`` times attention, if any, and a residual block."""

    def __init__(
        self,
        channels: int,
        *,
        num_layers: int,
        attention: AttentionFactory | None,
        resnet: dict[str, Any],
        rngs: nnx.Rngs,
    ):
        self.resnets = nnx.List(
            ResnetBlock2D(channels, channels, **resnet, rngs=rngs) for _ in range(num_layers + 1)
        )
        if attention is not None:
            self.attentions = nnx.List(attention(i, channels, rngs) for i in range(num_layers))

    def __call__(
        self,
        x: jax.Array,
        temb: jax.Array | None,
        context: jax.Array | None = None,
        *,
        remat: bool = False,
    ) -> jax.Array:
        """Same shape out."""
        x = call(self.resnets[0], x, temb, remat=remat)
        for i, resnet in enumerate(list(self.resnets)[1:]):
            if hasattr(self, "attentions"):
                x = call(self.attentions[i], x, context, remat=remat)
            x = call(resnet, x, temb, remat=remat)
        return x
