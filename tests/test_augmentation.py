"""Renderings of pictures: against NumPy's own turns and shifts, and colours by their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.datasets import poses
from sharpjax.datasets.augmentation import Augmentation, render
from sharpjax.datasets.drawings import drawings

draw = jax.jit(render)


@pytest.fixture(scope="module")
def pictures():
    known = drawings().pictures
    return known.reshape(-1, *known.shape[2:])


def plain(**changes):
    fields = dict(
        rotation=0.0, scale=1.0, shift=(0.0, 0.0), flip=1.0, hue=0.0, brightness=1.0,
        background=(1.0, 1.0, 1.0),
    )  # fmt: skip
    return Augmentation(**{k: jnp.float32(v) for k, v in (fields | changes).items()})


def test_nothing_done_is_the_picture_on_its_background(pictures):
    picture = pictures[0]
    image = np.asarray(draw(jnp.asarray(picture), plain(background=(0.2, 0.6, 1.0))))
    rim = (picture.shape[0] - image.shape[1]) // 2
    inner = picture[rim:-rim, rim:-rim].astype(float) / 255 if rim else picture / 255
    alpha = inner[..., 3:]
    expected = inner[..., :3] * alpha + (1 - alpha) * np.array([0.2, 0.6, 1.0])
    np.testing.assert_allclose((image.transpose(1, 2, 0) + 1) / 2, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "twin"),
    [
        (dict(flip=-1.0), lambda image: image[:, :, ::-1]),
        (dict(rotation=np.pi / 2), lambda image: np.rot90(image, -1, axes=(1, 2))),
        (dict(shift=(3.0, -2.0)), lambda image: np.roll(image, (3, -2), axis=(1, 2))),
    ],
)
def test_pose(changes, twin, pictures):
    """Against NumPy's own; a small picture, so that nothing leaves the image."""
    picture = jnp.asarray(pictures[3])
    expected = twin(np.asarray(draw(picture, plain(scale=0.7))))
    found = np.asarray(draw(picture, plain(**({"scale": 0.7} | changes))))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_scale():
    """A disc of radius 20 becomes one of radius 15."""
    offset = np.hypot(*np.mgrid[-39.5:40, -39.5:40])
    picture = np.zeros((80, 80, 4), np.uint8)
    picture[..., 3] = 255 * (offset < 20)
    image = np.asarray(draw(jnp.asarray(picture), plain(scale=0.75)))
    dark = (image[0] < 0).sum()
    assert dark == pytest.approx(np.pi * 15**2, rel=0.03)


def test_hue_turns_colours_and_leaves_greys():
    picture = np.full((80, 80, 4), 255, np.uint8)
    picture[..., :3] = 100
    grey = np.asarray(draw(jnp.asarray(picture), plain(hue=poses.HUE)))
    np.testing.assert_allclose(grey, 2 * 100 / 255 - 1, atol=1e-5)
    picture[..., :3] = (200, 60, 60)
    red = np.asarray(draw(jnp.asarray(picture), plain(hue=poses.HUE)))[:, 32, 32]
    luminance = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(luminance @ red, 2 * luminance @ [200, 60, 60] / 255 - 1, atol=1e-5)
    assert np.abs(red - (2 * np.array([200, 60, 60]) / 255 - 1)).max() > 0.1


def test_poses_fill_their_ranges():
    radius = 30.0
    keys = jax.random.split(jax.random.key(0), 2000)
    how = jax.vmap(lambda key: poses.pose(key, radius, jnp.array(poses.PALE)))(keys)
    room = poses.MARGIN - radius * np.asarray(how.scale)[:, None]
    for values, low, high in (
        (how.rotation, -np.radians(20), np.radians(20)),
        (how.scale, 19 / radius, 27 / radius),
        (np.asarray(how.shift) / room, -1, 1),
        (how.hue, -np.radians(25), np.radians(25)),
        (how.brightness, 0.85, 1.1),
    ):
        values = (np.asarray(values) - low) / (high - low)
        assert values.min() >= -1e-6
        assert values.max() <= 1 + 1e-6
        # uniform: mean 1/2 and variance 1/12, four standard errors
        assert values.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / values.size))
        assert values.var() == pytest.approx(1 / 12, abs=4 * np.sqrt(1 / 180 / values.size))
    assert float((how.flip == 1).mean()) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2000))
    background = np.asarray(how.background)
    assert background.min() >= 0.8 * 0.75 - 1e-6  # at least the least value, less the saturation
    assert background.max() <= 1
    assert background.std(axis=0).min() > 0.05
