"""Convolutions whose kernels' gradients are fast on a CPU; for training, never for curvature."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sharpjax.networks.layers import convolve_upsampled


def with_fast_kernel_gradients(model: nnx.Module) -> nnx.Module:
    """The model itself, its upsampling convolutions set to another way to compute the same.

    XLA's CPU backend computes the gradient of their 2 x 2 kernels by a naive loop, a third of the
    training step of a small UNet; as a product of matrices it is lost in the rest.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Conv) and module.conv_general_dilated is convolve_upsampled:
            module.conv_general_dilated = _by_products
    return model


def _convolve_2x2(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **_: Any
) -> jax.Array:
    """The convolution of the padded `x` with a 2 x 2 kernel."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = x.shape[1] - 1, x.shape[2] - 1
    corners = [x[:, i : i + height, j : j + width] for i in (0, 1) for j in (0, 1)]
    return jnp.concatenate(corners, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


_by_products = functools.partial(convolve_upsampled, convolve=_convolve_2x2)
