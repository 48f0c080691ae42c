r"""Renderings of pictures: pose, colour and background, on arrays.

A rendering puts a picture with an alpha channel, `(size, size, 4)`, on a plain background of
`IMAGE_SIZE` pixels a side.  An output pixel at the offset `o` from the middle shows the point
`A^{-1}(o - shift)` of the picture, `A = scale * rotation * flip`, interpolated between the four
nearest pixels; colours are premultiplied by alpha, so that the rim of a shape keeps its colour.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._reprs import one_line
from sharpjax._types import Array

IMAGE_SIZE = 64

# RGB -> luminance and two chrominance axes (the Y, I and Q of television), in which hue is an angle
_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]]
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How to render; every field has the batch's shape, `background` three channels more.

    Attributes:
        rotation: radians.
        scale: 1 keeps the picture's size.
        shift: `(..., 2)` pixels down and to the right.
        flip: 1, or -1 for left and right exchanged.
        hue: radians around the colour circle.
        brightness: factor of the picture's colours.
        background: `(..., 3)` RGB in [0, 1].
    """

    rotation: jax.Array
    scale: jax.Array
    shift: jax.Array
    flip: jax.Array
    hue: jax.Array
    brightness: jax.Array
    background: jax.Array

    __repr__ = one_line


def render(picture: jax.Array, how: Augmentation) -> jax.Array:
    """One rendering, `(size, size, 4)` uint8 -> `(3, IMAGE_SIZE, IMAGE_SIZE)` in [-1, 1]."""
    size = picture.shape[0]
    colour = picture.astype(jnp.float32) / 255
    alpha = colour[..., 3:]
    colour = jnp.concatenate([_tint(colour[..., :3], how) * alpha, alpha], axis=-1)

    offset = jnp.arange(IMAGE_SIZE, dtype=jnp.float32) - (IMAGE_SIZE - 1) / 2
    down, right = offset[:, None] - how.shift[0], offset[None, :] - how.shift[1]
    cos, sin = jnp.cos(how.rotation) / how.scale, jnp.sin(how.rotation) / how.scale
    middle = (size - 1) / 2
    row = middle + cos * down - sin * right
    column = middle + (sin * down + cos * right) * how.flip
    sampled = _bilinear(colour, row, column)
    image = sampled[..., :3] + (1 - sampled[..., 3:]) * how.background
    return 2 * jnp.clip(image, 0, 1).transpose(2, 0, 1) - 1


def _tint(colour: jax.Array, how: Augmentation) -> jax.Array:
    """Hue turned and brightness scaled; greys stay grey."""
    cos, sin = jnp.cos(how.hue), jnp.sin(how.hue)
    turn = jnp.zeros((3, 3)).at[0, 0].set(1).at[1:, 1:].set(jnp.array([[cos, -sin], [sin, cos]]))
    matrix = np.linalg.inv(_YIQ) @ turn @ _YIQ
    return jnp.clip(how.brightness * colour @ matrix.T, 0, 1)


def _bilinear(picture: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """Values at fractional positions; nothing (transparent) outside the picture."""
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = (row - top)[..., None], (column - left)[..., None]
    i, j = top.astype(jnp.int32), left.astype(jnp.int32)

    def at(i: Array, j: Array) -> Array:  # negative indices would count from the end
        outside = (i < 0) | (j < 0)
        return picture.at[jnp.where(outside, -1, i), jnp.where(outside, -1, j)].get(
            mode="fill", fill_value=0, wrap_negative_indices=False
        )

    upper = (1 - right) * at(i, j) + right * at(i, j + 1)
    lower = (1 - right) * at(i + 1, j) + right * at(i + 1, j + 1)
    return (1 - down) * upper + down * lower
