"""`AutoencoderKL`: the variational autoencoder between images and latents in Stable Diffusion.

Architecture: Rombach et al. 2022 (arXiv:2112.10752), appendix G.  Tested number for number against
the PyTorch module.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sharpjax._reprs import one_line
from sharpjax.networks.blocks import MidBlock, down_levels, up_levels
from sharpjax.networks.layers import Attention, activation, conv, group_norm, silu
from sharpjax.networks.network import Network, check_choices

# block types by whether they have attention
DOWN_BLOCKS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
UP_BLOCKS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
_EPS = 1e-6  # of every norm; not configurable in diffusers either
_LARGEST = float(jnp.finfo(jnp.float32).max)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """Independent normal variables, here the posterior `q(z | x)` of an image's latents.

    A pytree, so that it crosses `jit`, `vmap` and `jvp`.

    Attributes:
        mean: `(batch, latent_channels, height, width)`.
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

    def sample(self, key: jax.Array) -> jax.Array:
        """`mean + std n` with `n ~ N(0, I)`: differentiable in the parameters."""
        return self.mean + self.std * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def kl(self) -> jax.Array:
        r"""Divergence from `N(0, I)`, `(batch,)`, in nats and at least float32.

        $\mathrm{KL} = \frac12 \sum_i (\mu_i^2 + \sigma_i^2 - 1 - \log \sigma_i^2)$
        """
        dtype = jnp.promote_types(self.mean.dtype, jnp.float32)
        mean, log_variance = self.mean.astype(dtype), self.log_variance.astype(dtype)
        # expm1, because near the prior the terms cancel
        terms = mean**2 + (jnp.expm1(log_variance) - log_variance)
        return 0.5 * terms.sum((-3, -2, -1))


class Encoder(nnx.Module):
    """Images to the moments of their latents, before `quant_conv`."""

    def __init__(
        self, ends: tuple[int, int], channels: tuple[int, ...], *, middle: Any, **levels: Any
    ):
        rngs, groups = levels["rngs"], levels["resnet"]["groups"]
        self.conv_in = conv(ends[0], channels[0], rngs=rngs)
        self.down_blocks = down_levels(channels, padding=0, **levels)
        self.mid_block = MidBlock(channels[-1], **middle)
        self.conv_norm_out = group_norm(channels[-1], groups, eps=_EPS, rngs=rngs)
        self.conv_out = conv(channels[-1], ends[1], rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`(b, h, w, c_in)` to `(b, h', w', c_out)`, halved between the levels."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x, _ = block(x, None)
        x = self.mid_block(x, None)
        return self.conv_out(silu(self.conv_norm_out(x)))  # SiLU for every act_fn, as in PyTorch


class Decoder(nnx.Module):
    """Latents, after `post_quant_conv`, to images; `channels` from the smallest level up."""

    def __init__(
        self, ends: tuple[int, int], channels: tuple[int, ...], *, middle: Any, **levels: Any
    ):
        rngs, groups = levels["rngs"], levels["resnet"]["groups"]
        self.conv_in = conv(ends[0], channels[0], rngs=rngs)
        self.mid_block = MidBlock(channels[0], **middle)
        self.up_blocks = up_levels(channels, skips=False, **levels)
        self.conv_norm_out = group_norm(channels[-1], groups, eps=_EPS, rngs=rngs)
        self.conv_out = conv(channels[-1], ends[1], rngs=rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        """`(b, h, w, c_in)` to `(b, h', w', c_out)`, doubled between the levels."""
        x = self.mid_block(self.conv_in(z), None)
        for block in self.up_blocks:
            x = block(x, None, None)
        return self.conv_out(silu(self.conv_norm_out(x)))


class AutoencoderKL(Network):
    """diffusers' `AutoencoderKL` in flax NNX: same configuration, same arrays, same numbers.

    Keyword arguments are the keys of the diffusers `config.json` with the same defaults.  With
    `n` levels (entries of `block_out_channels`) latents are `2^(n-1)` times smaller than
    images in each direction.

    Latents go in and out unscaled, as in PyTorch: `scaling_factor`, `shift_factor`,
    `latents_mean` and `latents_std` are kept in `config` for the caller: Stable
    Diffusion's network sees `z scaling_factor`, whatever `shift_factor` says, in PyTorch's
    pipeline and here.  `sample_size` and `force_upcast` do not change the function either:
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
        settings = self._remember(locals())
        _check(settings)

        norm: Any = {"groups": norm_num_groups, "eps": _EPS}

        def attention(channels: int, rngs: nnx.Rngs) -> nnx.Module:
            return Attention(channels, head_dim=channels, **norm, rngs=rngs)

        channels, moments = settings["block_out_channels"], 2 * latent_channels
        common: Any = {"resnet": {**norm, "temb_channels": None, "act_fn": act_fn}, "rngs": rngs}
        middle = {**common, "attention": attention if mid_block_add_attention else None}
        levels = {**common, "middle": middle, "resample": ("conv",) * len(channels)}
        self.encoder = Encoder(
            (in_channels, moments),
            channels,
            attentions=[attention if DOWN_BLOCKS[k] else None for k in down_block_types],
            layers=(layers_per_block,) * len(channels),
            **levels,
        )
        self.decoder = Decoder(
            (latent_channels, out_channels),
            channels[::-1],
            attentions=[attention if UP_BLOCKS[k] else None for k in up_block_types],
            layers=(layers_per_block + 1,) * len(channels),
            **levels,
        )
        if use_quant_conv:
            self.quant_conv = conv(moments, moments, 1, padding=0, rngs=rngs)
        if use_post_quant_conv:
            self.post_quant_conv = conv(latent_channels, latent_channels, 1, padding=0, rngs=rngs)

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along the side of one entry of the latents."""
        return 2 ** (len(self.config["block_out_channels"]) - 1)

    def encode(self, x: jax.Array) -> DiagonalGaussian:
        """The posterior of the latents of a batch of images.

        Args:
            x: `(batch, in_channels, height, width)`, pixels from -1 to 1. Where a level is odd,
                halving it drops the remainder.

        Returns:
            The posterior, of latents `(batch, latent_channels, height', width')`.

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
            z: `(batch, latent_channels, height, width)`, unscaled.

        Returns:
            `(batch, out_channels, height', width')`, not clipped to [-1, 1].

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


_COUNTS = (
    "in_channels",
    "out_channels",
    "layers_per_block",
    "latent_channels",
    "norm_num_groups",
    "block_out_channels",
    "sample_size",
)


def _check(settings: dict[str, Any]) -> None:
    """`ValueError` for values that the constructor does not support, before anything is made."""
    for key in _COUNTS:
        value = settings[key]
        values = value if isinstance(value, tuple) else (value,)
        if not values or any(not isinstance(n, int) or n < 1 for n in values):
            raise ValueError(f"{key} must be a positive integer or several, got {value!r}")
    latent = settings["latent_channels"]
    for key, length, above in (
        ("scaling_factor", 1, 0.0),
        ("shift_factor", 1, -_LARGEST),
        ("latents_mean", latent, -_LARGEST),
        ("latents_std", latent, 0.0),
    ):
        value = settings[key]
        values = value if isinstance(value, tuple) else (value,)
        finite = all(v is not None and above < v <= _LARGEST for v in values)
        if value is not None and not (finite and len(values) == length):
            sign = "positive " if above == 0 else ""
            raise ValueError(f"{key} must be {length} {sign}float32 number(s), got {value!r}")
    levels = len(settings["block_out_channels"])
    for key, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        kinds = settings[key]
        if not isinstance(kinds, tuple) or len(kinds) != levels:
            raise ValueError(
                f"{key} must be a list as long as block_out_channels, {levels}, got {kinds!r}"
            )
        check_choices(*((key, kind, known) for kind in kinds))
    activation(settings["act_fn"])
