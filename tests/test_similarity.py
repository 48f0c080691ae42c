"""Likeness of images: outlines and pixels, against naive twins."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from sharpjax.datasets.planted_drawings import planted_drawings
from sharpjax.similarity import outline_correlation, outlines, pixel_correlation


@pytest.fixture(scope="module")
def planted():
    return planted_drawings()


@pytest.fixture(scope="module")
def fixed(planted):
    return planted.fixed_images()[:12]


def test_outline_correlation_against_a_naive_twin(fixed):
    """Pixel by pixel, for two images: luminance, central differences, Gaussian, Pearson."""

    def naive(image):
        light = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        h, w = light.shape
        strength = np.zeros((h, w))
        for i in range(h):
            for j in range(w):
                up, down = max(i - 1, 0), min(i + 1, h - 1)
                left, right = max(j - 1, 0), min(j + 1, w - 1)
                dy = (light[down, j] - light[up, j]) / (down - up)
                dx = (light[i, right] - light[i, left]) / (right - left)
                strength[i, j] = np.hypot(dx, dy)
        return gaussian_filter(strength, 1).ravel()

    a, b = fixed[0].astype(float), fixed[1].astype(float)
    expected = np.corrcoef(naive(a), naive(b))[0, 1]
    np.testing.assert_allclose(outline_correlation(a[None], b[None])[0, 0], expected, atol=1e-12)


def test_background_and_colour_hardly_count_for_outlines_but_do_for_pixels(planted, fixed):
    """The same drawing, in the same place, on another ground."""
    background = np.array(planted.poses.background)
    background[:12] = background[:12][::-1]
    shifted = dataclasses.replace(planted.poses, background=background, hue=planted.poses.hue + 0.3)
    other = dataclasses.replace(planted, poses=shifted).fixed_images()[:12]
    own = np.diag(outline_correlation(other, fixed))
    assert own.min() > 0.8
    assert np.diag(pixel_correlation(other, fixed)).min() < own.min()


def test_a_flat_image_is_like_nothing(fixed):
    flat = np.zeros((1, 3, 64, 64))
    np.testing.assert_array_equal(outlines(flat), 0)
    np.testing.assert_array_equal(outline_correlation(flat, fixed), 0)


@pytest.mark.slow
def test_outlines_of_fresh_renderings_are_not_those_of_the_fixed_one(planted, fixed):
    index = planted.planted[:12]
    fresh = planted.render(
        jax.random.key(0), planted.fixed[:12], np.full((len(index), 3), -1, np.float32)
    )
    assert np.quantile(np.diag(outline_correlation(fresh, fixed)), 0.9) < 0.7
