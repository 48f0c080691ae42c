"""Convolutions written as products of matrices against XLA's own: values, tangents, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sharpjax.networks.layers import by_patches, conv


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def by_xla(x, kernel, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(
    ("size", "padding"),
    [((3, 3), ((1, 1), (1, 1))), ((2, 2), ((1, 0), (1, 0))), ((3, 2), ((0, 2), (1, 0)))],
)
def test_patches_are_a_convolution(size, padding):
    """In float64, to rounding; the kernel's gradient as well as the image's."""
    with jax.enable_x64(True):
        point = draw(0, 2, 5, 7, 3), draw(1, *size, 3, 4)
        along = draw(2, *point[0].shape), draw(3, *point[1].shape)
        patched = functools.partial(by_patches, strides=(1, 1))
        ours, theirs = (functools.partial(way, padding=padding) for way in (patched, by_xla))
        value, tangent = jax.jvp(theirs, point, along)
        found = jax.jvp(ours, point, along)
        np.testing.assert_allclose(found[0], value, atol=1e-13)
        np.testing.assert_allclose(found[1], tangent, atol=1e-13)
        weights = draw(4, *value.shape)
        back, expected = (jax.vjp(way, *point)[1](weights) for way in (ours, theirs))
        for a, b in zip(back, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-13)


def operations(function, *arguments):
    return str(jax.make_jaxpr(function)(*arguments))


@pytest.mark.parametrize(
    ("side", "channels", "upsample", "by_products"),
    [(8, 640, False, True), (8, 384, True, True), (32, 640, False, False), (8, 64, False, False)],
    ids=["deep in a UNet", "deep and upsampled", "many pixels", "a small kernel"],
)
def test_a_layer_takes_the_way_that_its_size_asks_for(side, channels, upsample, by_products):
    layer = conv(channels, channels, upsample=upsample, rngs=nnx.Rngs(0))
    x = jnp.asarray(draw(5, 1, side, side, channels), jnp.float32)
    program = operations(lambda x: layer(x), x)
    assert ("conv_general_dilated" not in program) == by_products

    bigger = x.repeat(2, axis=1).repeat(2, axis=2) if upsample else x
    expected = by_xla(bigger, layer.kernel[...], ((1, 1), (1, 1))) + layer.bias[...]
    # sums of 9 x 640 products of size 1 / sqrt(9 x 640), in another order
    np.testing.assert_allclose(jax.jit(layer)(x), expected, atol=2e-5)
