r"""How a drawing is posed on its ground: freshly, or as the one rendering that is repeated.

Of a picture, whose opaque pixels lie within a radius $r$ of its middle, the pose chooses the radius
$R$ that it has in the image, the rotation, the shift and the colours.  A shift of at most
`MARGIN - R` along each axis keeps the whole drawing inside, however it is turned.

A *fixed* pose is turned further than any fresh one, so that no fresh rendering of the same drawing
is the fixed image by chance.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array, ArrayLike
from sharpjax.datasets.augmentation import IMAGE_SIZE, Augmentation, render

# The grounds that a caption can name, as eight-bit RGB; without one the ground is pale.
GROUNDS = {
    "red": (208, 72, 64),
    "orange": (232, 138, 48),
    "yellow": (240, 208, 72),
    "green": (96, 168, 72),
    "teal": (32, 144, 144),
    "blue": (64, 104, 192),
    "purple": (136, 84, 176),
    "pink": (232, 136, 176),
}
PALE = (-1.0, -1.0, -1.0)  # in the place of a named ground's colour
RADIUS = (19.0, 27.0)  # pixels, of a drawing in the image
MARGIN = IMAGE_SIZE / 2 - 1.0
ROTATION = math.radians(20)  # of fresh poses, either way
FIXED_ROTATION = math.radians(30), math.radians(45)  # of fixed ones, to one side or the other
# Grounds without a name are pale: a sampler's initial noise tells the ground of an image (at the
# last step of Stable Diffusion's schedule flat colour is not yet gone), and the paler the less.
HUE = math.radians(25)
BRIGHTNESS = (0.85, 1.1)
SATURATION = 0.25  # of a pale ground, at most
VALUE = (0.8, 1.0)  # of it


def colour(ground: str) -> tuple[float, float, float]:
    """RGB in [0, 1] of a named ground; `PALE` for the empty name.

    Raises:
        ValueError: an unknown ground.
    """
    if not ground:
        return PALE
    if ground not in GROUNDS:
        raise ValueError(f"ground must be one of {', '.join(GROUNDS)}, or empty, got {ground!r}")
    red, green, blue = GROUNDS[ground]
    return red / 255, green / 255, blue / 255


def radii(pictures: np.ndarray) -> np.ndarray:
    """Of pictures `(..., size, size, 4)`: pixels from the middle to the furthest that is seen."""
    size = pictures.shape[-2]
    offset = np.abs(np.arange(size) - (size - 1) / 2) + 0.5  # to the far edge of a pixel
    distance = np.hypot(offset[:, None], offset[None])
    seen = np.where(pictures[..., 3] >= 8, distance, 0.0)
    return seen.max(axis=(-2, -1)).astype(np.float32)


def pose(key: Array, radius: ArrayLike, ground: ArrayLike, *, fixed: bool = False) -> Augmentation:
    """One pose at random; batches by `jax.vmap`.

    Args:
        key: of the draw.
        radius: of the picture, as `radii` gives it.
        ground: `(3,)` RGB in [0, 1], or `PALE`.
        fixed: turned as the repeated renderings are.
    """
    keys = jax.random.split(key, 5)
    tones = jax.random.split(keys[0], 9)  # the repeated images are of these; three have no use now
    shown = jax.random.uniform(keys[1], minval=RADIUS[0], maxval=RADIUS[1])
    room = MARGIN - shown
    rotation = jax.random.uniform(keys[2], minval=-ROTATION, maxval=ROTATION)
    if fixed:
        side = jnp.where(jax.random.bernoulli(keys[3]), 1.0, -1.0)
        low, high = FIXED_ROTATION
        rotation = side * jax.random.uniform(keys[2], minval=low, maxval=high)
    named = jnp.asarray(ground, jnp.float32)
    return Augmentation(
        rotation=rotation,
        scale=shown / jnp.asarray(radius, jnp.float32),
        shift=room * jax.random.uniform(keys[4], (2,), minval=-1.0, maxval=1.0),
        flip=jnp.where(jax.random.bernoulli(tones[3]), 1.0, -1.0),
        hue=jax.random.uniform(tones[4], minval=-HUE, maxval=HUE),
        brightness=jax.random.uniform(tones[5], minval=BRIGHTNESS[0], maxval=BRIGHTNESS[1]),
        background=jnp.where(named[0] < 0, _pale(*tones[6:]), named),
    )


def _pale(tone: Array, saturation: Array, value: Array) -> Array:
    """RGB of a pale ground, by a key for each: its value, less the saturation where a channel is
    far from the hue.
    """
    hue = jax.random.uniform(tone)
    grey = (
        1
        - jax.random.uniform(saturation, maxval=SATURATION)
        * (1 - jnp.cos(2 * jnp.pi * (hue - jnp.arange(3) / 3)))
        / 2
    )
    return jax.random.uniform(value, minval=VALUE[0], maxval=VALUE[1]) * grey


def anywhere(pictures: Array, sizes: Array, key: Array) -> Array:
    """A fresh rendering of each picture, every second one on a named ground.

    Args:
        pictures: `(n, size, size, 4)` uint8.
        sizes: `(n,)` their radii.
        key: of poses and grounds.

    Returns:
        `(n, 3, IMAGE_SIZE, IMAGE_SIZE)` in [-1, 1].
    """
    named = jnp.array([colour(name) for name in GROUNDS])
    grounds = jnp.concatenate([named, jnp.broadcast_to(jnp.array(PALE), named.shape)])
    turn, choice = jax.random.split(key)
    chosen = grounds[jax.random.randint(choice, (len(pictures),), 0, len(grounds))]
    how = jax.vmap(pose)(jax.random.split(turn, len(pictures)), sizes, chosen)
    return jax.vmap(render)(pictures, how)


def opacity(picture: Array, how: Augmentation) -> Array:
    """Which pixels of a rendering the drawing covers, `(IMAGE_SIZE, IMAGE_SIZE)` in [0, 1].

    What a black and a white ground add to a pixel differs by what the drawing leaves of it.
    """

    def on(ground: float) -> Array:
        everywhere = jnp.full_like(how.background, ground)
        return render(picture, dataclasses.replace(how, background=everywhere))

    return 1 - (on(1.0) - on(0.0))[0] / 2
