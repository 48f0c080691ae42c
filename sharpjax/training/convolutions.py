"""Convolutions whose kernels' gradients are fast on a CPU; for training, never for curvature."""

import functools

from flax import nnx

from sharpjax.networks.layers import by_patches, convolve_upsampled


def with_fast_kernel_gradients(model: nnx.Module) -> nnx.Module:
    """The model itself, its upsampling convolutions set to another way to compute the same.

    XLA's CPU backend computes the gradient of their 2 x 2 kernels by a naive loop, a third of the
    training step of a small UNet; as a product of matrices it is lost in the rest.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Conv) and module.conv_general_dilated is convolve_upsampled:
            module.conv_general_dilated = _by_products
    return model


_by_products = functools.partial(convolve_upsampled, convolve=by_patches)
