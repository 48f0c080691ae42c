"""Building blocks of the diffusers networks: flax layers with PyTorch's shapes and defaults.

Arrays are channels last inside the networks, `(batch, height, width, channels)`.  Attribute
names are diffusers', so that a checkpoint maps onto a module by a table (`component.py`).
"""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from sharpjax.networks.attention import attention
from sharpjax.networks.text_attention import AttendedText, attention_to_text


@jax.custom_jvp
def silu(x: jax.Array) -> jax.Array:
    """`x sigmoid(x)`, of which `jax.linearize` keeps one array, its derivative, not three."""
    return x * jax.nn.sigmoid(x)


@silu.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    sigmoid = jax.nn.sigmoid(x)
    return x * sigmoid, dx * (sigmoid * (1 + x * (1 - sigmoid)))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": silu,
    "swish": silu,
    "mish": jax.nn.mish,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation of a diffusers config; `ValueError` names the allowed ones."""
    if name.lower() not in ACTIVATIONS:
        raise ValueError(f"act_fn must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name.lower()]


_BEYOND_THE_CACHE = 2**21  # entries of a kernel


def _convolve(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """`nnx.Conv`'s convolution, as a product of matrices where that is faster on a CPU.

    One of size 1 x 1 is; and so are those of few pixels with a kernel that no cache holds, as deep
    inside a UNet of Stable Diffusion, where XLA's own way reads the kernel more than once.
    """
    if tuple(strides) == (1, 1):
        if kernel.shape[:2] == (1, 1):
            return x @ kernel[0, 0]
        few = 2 * math.prod(x.shape[:3]) <= kernel.shape[-1] and kernel.size >= _BEYOND_THE_CACHE
        if few and jax.default_backend() == "cpu":
            return by_patches(x, kernel, strides, padding)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def by_patches(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **_: Any) -> jax.Array:
    """A convolution as one product of matrices: a window a row, times the kernel.

    What `conv` and `convolve_upsampled` ask for: of stride 1, not dilated, not in groups.
    """
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = (x.shape[1 + i] - kernel.shape[i] + 1 for i in (0, 1))
    taps = [
        x[:, i : i + height, j : j + width]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def convolve_upsampled(
    x: jax.Array,
    kernel: jax.Array,
    strides: Any,
    padding: Any,
    convolve: Callable[..., jax.Array] = _convolve,
    **options: Any,
) -> jax.Array:
    """The 3 x 3 convolution of `upsample_nearest(x)`, without making that.

    Neighbouring pixels of the upsampled image are equal, so that two of the three taps fall on the
    same one of `x`: in each direction an even output pixel `2i` is `k0 x[i-1] + (k1 + k2)
    x[i]` and an odd one `(k0 + k1) x[i] + k2 x[i+1]`. Those are four 2 x 2 convolutions of
    `x`, one for each parity, and 16 products where there were 36.
    """
    n, height, width, _ = x.shape
    c_out = kernel.shape[-1]

    def halves(k: jax.Array, axis: int) -> list[jax.Array]:
        """The kernels of two taps for even and for odd output pixels along an axis."""
        first, middle, last = (jax.lax.index_in_dim(k, i, axis) for i in range(3))
        return [
            jnp.concatenate(taps, axis) for taps in ((first, middle + last), (first + middle, last))
        ]

    small = jnp.concatenate([k for rows in halves(kernel, 0) for k in halves(rows, 1)], axis=-1)
    # As long out as in, forward and transposed: on CPU only such convolutions are YNNPACK's, and
    # Eigen's can be wrong (sharpjax/_jaxlib.py). XLA would make one of both paddings.
    x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))
    windows = convolve(x, small, strides, ((1, 0), (1, 0)), **options).reshape(
        n, height + 1, width + 1, 2, 2, c_out
    )  # window i covers pixels i-1 and i
    rows = [
        jnp.stack([windows[:, a : a + height, b : b + width, a, b] for b in (0, 1)], axis=3)
        for a in (0, 1)
    ]
    return jnp.stack(rows, axis=2).reshape(n, 2 * height, 2 * width, c_out)


def conv(
    c_in: int,
    c_out: int,
    size: int = 3,
    *,
    stride: int = 1,
    padding: int = 1,
    upsample: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution with PyTorch's meaning of `padding`, of the upsampled image or not."""
    return nnx.Conv(
        c_in,
        c_out,
        (size, size),
        strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        conv_general_dilated=convolve_upsampled if upsample else _convolve,
        rngs=rngs,
    )


class GroupNorm(nnx.GroupNorm):
    """Group normalization with a two-pass variance: the one-pass form loses digits.

    Its means are taken over the pixels first and over a group's few channels last. One reduction
    over both, as in flax, leaves the processor's vector lanes empty.
    """

    def __call__(  # type: ignore[override]  # no masks
        self, x: jax.Array
    ) -> jax.Array:
        """`(batch, height, width, channels)`, same shape out; statistics at least float32."""

        def group_mean(x: jax.Array) -> jax.Array:
            channels = x.mean((1, 2)).reshape(len(x), self.num_groups, -1)
            return jnp.repeat(channels.mean(-1), channels.shape[-1], axis=1)[:, None, None]

        centered = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centered = centered - group_mean(centered)
        variance = group_mean(centered * centered)  # jax.linearize would keep 2 x beside x of x**2
        scale, bias = cast(Any, self.scale)[...], cast(Any, self.bias)[...]  # there: see group_norm
        factor = jax.lax.rsqrt(variance + self.epsilon) * scale
        return (centered * factor + bias).astype(jnp.result_type(x, scale))


def group_norm(channels: int, groups: int, *, eps: float, rngs: nnx.Rngs) -> GroupNorm:
    """A `GroupNorm`; `ValueError` unless the groups divide the channels."""
    if groups < 1 or channels % groups:
        raise ValueError(
            f"norm_num_groups={groups} must divide the number of channels, got {channels}"
        )
    return GroupNorm(channels, num_groups=groups, epsilon=eps, rngs=rngs)


def timestep_features(
    t: jax.Array, size: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0
) -> jax.Array:
    """Sinusoidal features of timesteps `(batch,)` -> `(batch, size)`, float32.

    Frequencies `10000^(-i / (size/2 - freq_shift))`; sine first unless `flip_sin_to_cos`.
    """
    half = size // 2
    frequency = jnp.exp(
        -math.log(10000) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    )
    angle = t.astype(jnp.float32)[:, None] * frequency
    parts = (
        (jnp.cos(angle), jnp.sin(angle)) if flip_sin_to_cos else (jnp.sin(angle), jnp.cos(angle))
    )
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, size % 2)))


def embedding_table(count: int, size: int, *, rngs: nnx.Rngs) -> nnx.Embed:
    """A table that starts as N(0, 1), as in PyTorch.

    flax's own default, N(0, 1/size), is drowned by the time embedding that it is added to: a
    network so started ignored its conditions at high noise for thousands of steps.
    """
    return nnx.Embed(count, size, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)


class TimestepEmbedding(nnx.Module):
    """Linear, activation, linear."""

    def __init__(self, c_in: int, c_out: int, *, act_fn: str = "silu", rngs: nnx.Rngs):
        self.act = activation(act_fn)
        self.linear_1 = nnx.Linear(c_in, c_out, rngs=rngs)
        self.linear_2 = nnx.Linear(c_out, c_out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`(batch, c_in)` -> `(batch, c_out)`."""
        return self.linear_2(self.act(self.linear_1(x)))


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Repeat every pixel 2 x 2."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def average_pool(x: jax.Array) -> jax.Array:
    """Mean of 2 x 2 pixels; an odd last row or column is dropped, as in PyTorch."""
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


class Downsample2D(nnx.Module):
    """A strided convolution; `padding=0` means PyTorch's asymmetric one, right and below."""

    def __init__(self, channels: int, *, padding: int = 1, rngs: nnx.Rngs):
        self.padding = padding
        self.conv = conv(channels, channels, stride=2, padding=padding, rngs=rngs)

    def __call__(self, x: jax.Array, temb: jax.Array | None = None) -> jax.Array:
        """`(b, h, w, c)` to half the height and width; `temb` is not used."""
        if self.padding == 0:
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Nearest-neighbour upsampling and a convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, upsample=True, rngs=rngs)

    def __call__(
        self, x: jax.Array, temb: jax.Array | None = None, size: tuple[int, int] | None = None
    ) -> jax.Array:
        """`(b, h, w, c)` to twice the height and width, or one less of either; no `temb`."""
        height, width = 2 * x.shape[1], 2 * x.shape[2]
        if size is None or tuple(size) == (height, width):
            return self.conv(x)
        # an odd size was rounded up on the way down: its nearest neighbours are the same pixels
        x = upsample_nearest(x)[:, : size[0], : size[1]]
        same: Any = {"padding": ((1, 1), (1, 1)), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        x = jax.lax.conv_general_dilated(x, self.conv.kernel[...], (1, 1), **same)
        return x + cast(Any, self.conv.bias)[...]


class ResnetBlock2D(nnx.Module):
    """`x + conv2(act(norm2(conv1(act(norm1 x)) + temb)))`, optionally resampling by two.

    `time_scale_shift="scale_shift"` uses the embedding as scale and shift after `norm2`.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        temb_channels: int | None,
        groups: int,
        eps: float,
        act_fn: str,
        time_scale_shift: str = "default",
        output_scale_factor: float = 1.0,
        resample: str | None = None,
        rngs: nnx.Rngs,
    ):
        if time_scale_shift not in ("default", "scale_shift"):
            raise ValueError(
                f"resnet_time_scale_shift must be 'default' or 'scale_shift', "
                f"got {time_scale_shift!r}"
            )
        self.act = activation(act_fn)
        self.scale_shift = time_scale_shift == "scale_shift"
        self.output_scale_factor = output_scale_factor
        self.resample = resample
        self.norm1 = group_norm(c_in, groups, eps=eps, rngs=rngs)
        self.conv1 = conv(c_in, c_out, upsample=resample == "up", rngs=rngs)
        if temb_channels is not None:
            self.time_emb_proj = nnx.Linear(
                temb_channels, c_out * (2 if self.scale_shift else 1), rngs=rngs
            )
        self.norm2 = group_norm(c_out, groups, eps=eps, rngs=rngs)
        self.conv2 = conv(c_out, c_out, rngs=rngs)
        if c_in != c_out:
            self.conv_shortcut = conv(c_in, c_out, 1, padding=0, rngs=rngs)

    def __call__(
        self, x: jax.Array, temb: jax.Array | None = None, size: tuple[int, int] | None = None
    ) -> jax.Array:
        """`(b, h, w, c_in)` and `(b, temb_channels)` to `(b, h', w', c_out)`; no `size`."""
        h = self.act(self.norm1(x))
        if self.resample == "down":
            x, h = average_pool(x), average_pool(h)
        if self.resample == "up":  # conv1 is that of the upsampled h
            x = upsample_nearest(x)
        h = self.conv1(h)
        shift = None
        if hasattr(self, "time_emb_proj"):
            # given, where there is a projection of it
            shift = self.time_emb_proj(self.act(cast(jax.Array, temb)))[:, None, None, :]
        if self.scale_shift and shift is not None:
            scale, shift = jnp.split(shift, 2, axis=-1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h if shift is None else h + shift)
        h = self.conv2(self.act(h))
        if hasattr(self, "conv_shortcut"):
            x = self.conv_shortcut(x)
        return (x + h) / self.output_scale_factor


class CrossAttention(nnx.Module):
    """Multi-head attention from tokens to a context, or to themselves."""

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        head_dim: int,
        context_channels: int | None = None,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        inner, source = num_heads * head_dim, context_channels or channels
        self.to_q = nnx.Linear(channels, inner, use_bias=use_bias, rngs=rngs)
        self.to_k = nnx.Linear(source, inner, use_bias=use_bias, rngs=rngs)
        self.to_v = nnx.Linear(source, inner, use_bias=use_bias, rngs=rngs)
        # a list of one, because diffusers keeps (projection, dropout) there
        self.to_out = nnx.List([nnx.Linear(inner, channels, rngs=rngs)])

    def __call__(self, x: jax.Array, context: Any = None) -> jax.Array:
        """`(b, n, channels)` and `(b, m, context_channels)` to `(b, n, channels)`."""
        told = isinstance(context, AttendedText)
        how = context.attention if told else None
        source = context.tokens if told else x if context is None else context
        q, k, v = (
            y.reshape(*y.shape[:2], self.num_heads, -1)
            for y in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        out = attention(q, k, v) if how is None else attention_to_text(q, k, v, how)
        return self.to_out[0](out.reshape(*x.shape[:2], -1))


class Attention(CrossAttention):
    """Self-attention over the pixels, with normalization and residual inside."""

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int,
        groups: int | None,
        eps: float,
        output_scale_factor: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if channels % head_dim:
            raise ValueError(
                f"attention_head_dim={head_dim} must divide the number of channels, got {channels}"
            )
        self.output_scale_factor = output_scale_factor
        if groups is not None:
            self.group_norm = group_norm(channels, groups, eps=eps, rngs=rngs)
        heads = channels // head_dim
        super().__init__(channels, num_heads=heads, head_dim=head_dim, use_bias=True, rngs=rngs)

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """`(b, h, w, c)`, same shape out; `context` is not used."""
        tokens = self.group_norm(x) if hasattr(self, "group_norm") else x
        out = super().__call__(tokens.reshape(len(x), -1, x.shape[-1])).reshape(x.shape)
        return (x + out) / self.output_scale_factor


def layer_norm(channels: int, *, eps: float = 1e-5, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """PyTorch's `LayerNorm`: the variance in two passes, for one loses digits, in float32."""
    return nnx.LayerNorm(channels, epsilon=eps, use_fast_variance=False, rngs=rngs)
