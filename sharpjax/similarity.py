"""How alike two images are: by their pixels, and by their outlines."""

import numpy as np
from scipy.ndimage import gaussian_filter

_LUMINANCE = np.array([0.299, 0.587, 0.114])


def standardised(features: np.ndarray) -> np.ndarray:
    """`(n, ...)` to rows `(n, m)` of mean 0 and norm 1: products of rows are correlations."""
    flat = np.asarray(features, np.float64).reshape(len(features), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)


def pixel_correlation(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Pearson correlation of pixels, `(n, *shape)` and `(m, *shape)` -> `(n, m)`.

    >>> image = np.array([[0.0, 1.0], [1.0, 0.0]])[None]
    >>> pixel_correlation(image, np.concatenate([3 * image + 1, -image])).round(6).tolist()
    [[1.0, -1.0]]
    """
    return standardised(images) @ standardised(references).T


def outlines(images: np.ndarray) -> np.ndarray:
    """Maps of edge strength, `(n, 3, h, w) -> (n, h w)`, standardised.

    The magnitude of the luminance's gradient, smoothed by a Gaussian of one pixel.  A product of
    two rows is a correlation that neither a plain background nor a change of colour moves much.
    """
    luminance = np.tensordot(np.asarray(images, np.float64), _LUMINANCE, (1, 0))
    down, right = np.gradient(luminance, axis=(1, 2))
    return standardised(gaussian_filter(np.hypot(down, right), (0, 1, 1)))


def outline_correlation(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Correlation of outlines, `(n, 3, h, w)` and `(m, 3, h, w)` -> `(n, m)`.

    >>> rng = np.random.default_rng(0)
    >>> image = rng.normal(size=(1, 3, 32, 32))
    >>> outline_correlation(image, 2 - image).round(6).tolist()  # a negative has the same edges
    [[1.0]]
    """
    return outlines(images) @ outlines(references).T


def likeness(images: np.ndarray) -> np.ndarray:
    """`(n, channels, h, w)` to rows whose products are the mean of two correlations, `(n, m)`.

    Of pixels, each channel less its mean, and of outlines: a copy agrees in both, another pose of
    the same drawing in colours alone, the same pose on another ground in outlines.

    >>> rng = np.random.default_rng(0)
    >>> image = rng.normal(size=(1, 3, 32, 32))
    >>> print((likeness(image) @ likeness(image + 1).T).round(6))  # a ground is no difference
    [[1.]]
    """
    pixels = np.asarray(images, np.float64)
    pixels = standardised(pixels - pixels.mean(axis=(2, 3), keepdims=True))
    return np.concatenate([pixels, outlines(images)], axis=1) / np.sqrt(2)
