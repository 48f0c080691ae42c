"""``AutoencoderKL``: the variational autoencoder between images and latents in Stable Diffusion.

Architecture: Rombach et al. 2022 (arXiv:2112.10752), appendix G.  Tested number for number against
the PyTorch module.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sharpjax.models.blocks import AttentionFactory, DownBlock, MidBlock
from sharpjax.models.layers import (
    Attention,
    ResnetBlock2D,
    Upsample2D,
    activation,
    conv,
    group_norm,
    silu,
)
from sharpjax.reprs import one_line

# block types by whether they have attention
DOWN_BLOCKS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
UP_BLOCKS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
_EPS = 1e-6  # of every norm; not configurable in diffusers either
_LARGEST = float(jnp.finfo(jnp.float32).max)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """Independent normal variables, here the posterior ``q(z | x)`` of an image's latents.

    A pytree, so that it crosses ``jit``, ``vmap`` and ``jvp``.

    Attributes:
        mean: ``(batch, latent_channels, height, width)``.
        log_variance: same shape, within [-30, 20].

    >>> posterior = DiagonalGaussian(jnp.full((1, 2, 3, 3), 2.0), jnp.zeros((1, 2, 3, 3)))
    >>> print(posterior.kl())  # 18 dimensions of 2^2 / 2
    [36.]
    """

    mean: jax.Array
    log_variance: jax.Array

    __repr__ = one_line

    @property
    def std(self) -> jax.Array:
        """Standard deviation, same shape."""
        return jnp.exp(0.5 * self.log_variance)

    @property
    def mode(self) -> jax.Array:
        """The most likely latents, which are the mean."""
        return self.mean

    def sample(self, key: jax.Array) -> jax.Array:
        """``mean + std n`` with ``n ~ N(0, I)``: differentiable in the parameters."""
        return self.mean + self.std * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def kl(self) -> jax.Array:
        r"""Divergence from ``N(0, I)``, ``(batch,)``, in nats and at least float32.

        $\mathrm{KL} = \frac12 \sum_i (\mu_i^2 + \sigma_i^2 - 1 - \log \sigma_i^2)$
        """
        dtype = jnp.promote_types(self.mean.dtype, jnp.float32)
        mean, log_variance = self.mean.astype(dtype), self.log_variance.astype(dtype)
        # expm1, because near the prior the terms cancel
        terms = mean**2 + (jnp.expm1(log_variance) - log_variance)
        return 0.5 * terms.sum((-3, -2, -1))


class DecoderBlock(nnx.Module):
    """Residual blocks, each followed by attention if there is any, then an upsampler.

    The encoder's counterpart is :class:`~sharpjax.models.blocks.DownBlock`; that of a UNet's way
    up differs, having skip connections.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        *,
        num_layers: int,
        attention: AttentionFactory | None,
        upsample: bool,
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
        if upsample:
            self.upsamplers = nnx.List([Upsample2D(c_out, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(b, h, w, c_in)`` to ``(b, h', w', c_out)``."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            if hasattr(self, "attentions"):
                x = self.attentions[i](x)
        return self.upsamplers[0](x) if hasattr(self, "upsamplers") else x


class Encoder(nnx.Module):
    """Images to the moments of their latents, before ``quant_conv``."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        channels: tuple[int, ...],
        attentions: tuple[AttentionFactory | None, ...],
        mid_attention: AttentionFactory | None,
        num_layers: int,
        resnet: dict[str, Any],
        rngs: nnx.Rngs,
    ):
        last = len(channels) - 1
        self.conv_in = conv(c_in, channels[0], rngs=rngs)
        self.down_blocks = nnx.List(
            DownBlock(
                (channels[max(i - 1, 0)], channels[i]),
                num_layers=num_layers,
                attention=attention,
                downsample="conv" if i < last else None,
                padding=0,
                resnet=resnet,
                rngs=rngs,
            )
            for i, attention in enumerate(attentions)
        )
        self.mid_block = MidBlock(
            channels[-1], num_layers=1, attention=mid_attention, resnet=resnet, rngs=rngs
        )
        self.conv_norm_out = group_norm(channels[-1], resnet["groups"], eps=_EPS, rngs=rngs)
        self.conv_out = conv(channels[-1], c_out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(b, h, w, c_in)`` to ``(b, h', w', c_out)``, halved between the levels."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x, _ = block(x, None)
        x = self.mid_block(x, None)
        return self.conv_out(silu(self.conv_norm_out(x)))  # SiLU for every act_fn, as in PyTorch


class Decoder(nnx.Module):
    """Latents, after ``post_quant_conv``, to images; ``channels`` from the smallest level up."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        channels: tuple[int, ...],
        attentions: tuple[AttentionFactory | None, ...],
        mid_attention: AttentionFactory | None,
        num_layers: int,
        resnet: dict[str, Any],
        rngs: nnx.Rngs,
    ):
        last = len(channels) - 1
        self.conv_in = conv(c_in, channels[0], rngs=rngs)
        self.mid_block = MidBlock(
            channels[0], num_layers=1, attention=mid_attention, resnet=resnet, rngs=rngs
        )
        self.up_blocks = nnx.List(
            DecoderBlock(
                (channels[max(i - 1, 0)], channels[i]),
                num_layers=num_layers,
                attention=attention,
                upsample=i < last,
                resnet=resnet,
                rngs=rngs,
            )
            for i, attention in enumerate(attentions)
        )
        self.conv_norm_out = group_norm(channels[-1], resnet["groups"], eps=_EPS, rngs=rngs)
        self.conv_out = conv(channels[-1], c_out, rngs=rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        """``(b, h, w, c_in)`` to ``(b, h', w', c_out)``, doubled between the levels."""
        x = self.mid_block(self.conv_in(z), None)
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(silu(self.conv_norm_out(x)))


class AutoencoderKL(nnx.Module):
    """diffusers' ``AutoencoderKL`` in flax NNX: same configuration, same arrays, same numbers.

    Keyword arguments are the keys of the diffusers ``config.json`` with the same defaults.  With
    ``n`` levels (entries of ``block_out_channels``) latents are ``2^(n-1)`` times smaller than
    images in each direction.

    Latents go in and out unscaled, as in PyTorch: ``scaling_factor``, ``shift_factor``,
    ``latents_mean`` and ``latents_std`` are kept in :attr:`config` for the caller: Stable
    Diffusion's network sees ``z scaling_factor``, whatever ``shift_factor`` says, in PyTorch's
    pipeline and here.  ``sample_size`` and ``force_upcast`` do not change the function either:
    everything is computed in the type that input and parameters promote to, norms and softmax in
    at least float32.

    Raises:
        ValueError: a value that is not supported, with the key and the allowed values.

    >>> vae = AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, rngs=nnx.Rngs(0),
    ...     down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
    ...     up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"))
    >>> posterior = vae.encode(jnp.zeros((1, 3, 16, 16)))
    >>> latents = posterior.sample(jax.random.key(0))
    >>> latents.shape, vae.decode(latents).shape
    ((1, 4, 8, 8), (1, 3, 16, 16))
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int | tuple[int, int] = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
        rngs: nnx.Rngs,
    ):
        settings = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in locals().items()
            if key not in ("self", "rngs")
        }
        _check(settings)
        # a tuple, because static attributes must be hashable for modules to be jit arguments
        self.settings = nnx.static(tuple(settings.items()))

        def attention(layer: int, channels: int, rngs: nnx.Rngs) -> nnx.Module:
            return Attention(
                channels, head_dim=channels, groups=norm_num_groups, eps=_EPS, rngs=rngs
            )

        channels, moments = settings["block_out_channels"], 2 * latent_channels
        common: Any = {
            "mid_attention": attention if mid_block_add_attention else None,
            "resnet": {
                "temb_channels": None,
                "groups": norm_num_groups,
                "eps": _EPS,
                "act_fn": act_fn,
            },
            "rngs": rngs,
        }
        self.encoder = Encoder(
            in_channels,
            moments,
            channels=channels,
            attentions=tuple(attention if DOWN_BLOCKS[k] else None for k in down_block_types),
            num_layers=layers_per_block,
            **common,
        )
        self.decoder = Decoder(
            latent_channels,
            out_channels,
            channels=channels[::-1],
            attentions=tuple(attention if UP_BLOCKS[k] else None for k in up_block_types),
            num_layers=layers_per_block + 1,
            **common,
        )
        if use_quant_conv:
            self.quant_conv = conv(moments, moments, 1, padding=0, rngs=rngs)
        if use_post_quant_conv:
            self.post_quant_conv = conv(latent_channels, latent_channels, 1, padding=0, rngs=rngs)

    def encode(self, x: jax.Array) -> DiagonalGaussian:
        """The posterior of the latents of a batch of images.

        Args:
            x: ``(batch, in_channels, height, width)``, pixels from -1 to 1. Where a level is odd,
                halving it drops the remainder.

        Returns:
            The posterior, of latents ``(batch, latent_channels, height', width')``.

        Raises:
            ValueError: images of the wrong shape, or too small to be halved.
        """
        config = self.config
        smallest = 2 ** (len(config["block_out_channels"]) - 1)
        if x.ndim != 4 or x.shape[1] != config["in_channels"] or min(x.shape[2:]) < smallest:
            raise ValueError(
                f"images must have shape (batch, {config['in_channels']}, height, width) with "
                f"height and width at least {smallest}, got {x.shape}"
            )
        moments = self.encoder(x.transpose(0, 2, 3, 1))
        if hasattr(self, "quant_conv"):
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments.transpose(0, 3, 1, 2), 2, axis=1)
        return DiagonalGaussian(mean, jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, z: jax.Array) -> jax.Array:
        """The images of a batch of latents.

        Args:
            z: ``(batch, latent_channels, height, width)``, unscaled.

        Returns:
            ``(batch, out_channels, height', width')``, not clipped to [-1, 1].

        Raises:
            ValueError: latents of the wrong shape.
        """
        channels = self.config["latent_channels"]
        if z.ndim != 4 or z.shape[1] != channels or not min(z.shape[2:]):
            raise ValueError(
                f"latents must have shape (batch, {channels}, height, width), got {z.shape}"
            )
        z = z.transpose(0, 2, 3, 1)
        if hasattr(self, "post_quant_conv"):
            z = self.post_quant_conv(z)
        return self.decoder(z).transpose(0, 3, 1, 2)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments: the diffusers configuration."""
        return dict(self.settings)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and abs(value) <= _LARGEST  # false for NaN


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_each(test: Callable[[Any], bool], value: Any, length: int | None = None) -> bool:
    if not isinstance(value, tuple) or len(value) != (len(value) if length is None else length):
        return False
    return len(value) > 0 and all(map(test, value))


def _check(settings: dict[str, Any]) -> None:
    """``ValueError`` for what the constructor does not support, before anything is made."""
    latent = settings["latent_channels"]
    count = (_is_count, "a positive integer")
    boolean = (lambda v: isinstance(v, bool), "a boolean")
    rules = {
        "in_channels": count,
        "out_channels": count,
        "layers_per_block": count,
        "latent_channels": count,
        "norm_num_groups": count,
        "block_out_channels": (lambda v: _is_each(_is_count, v), "a list of positive integers"),
        "sample_size": (
            lambda v: _is_count(v) or _is_each(_is_count, v, 2),
            "a positive integer or two of them",
        ),
        "act_fn": (lambda v: isinstance(v, str), "a string"),
        "scaling_factor": (_is_positive, "a positive float32 number"),
        "shift_factor": (lambda v: v is None or _is_number(v), "a float32 number or null"),
        "latents_mean": (
            lambda v: v is None or _is_each(_is_number, v, latent),
            f"null or {latent} float32 numbers (latent_channels)",
        ),
        "latents_std": (
            lambda v: v is None or _is_each(_is_positive, v, latent),
            f"null or {latent} positive float32 numbers (latent_channels)",
        ),
        "force_upcast": boolean,
        "use_quant_conv": boolean,
        "use_post_quant_conv": boolean,
        "mid_block_add_attention": boolean,
    }
    for key, (allowed, words) in rules.items():
        if not allowed(settings[key]):
            raise ValueError(f"{key} must be {words}, got {settings[key]!r}")
    levels = len(settings["block_out_channels"])
    for key, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        kinds = settings[key]
        if not isinstance(kinds, tuple) or len(kinds) != levels:
            raise ValueError(
                f"{key} must be a list as long as block_out_channels, {levels}, got {kinds!r}"
            )
        for kind in kinds:
            if kind not in list(known):  # a list, for what JSON holds may not be hashable
                raise ValueError(
                    f"{key}: {kind!r} is not supported; choose from {', '.join(known)}"
                )
    activation(settings["act_fn"])
