"""How alike two images are: by their pixels, and by their outlines."""

import numpy as np
from scipy.ndimage import gaussian_filter

_LUMINANCE = np.array([0.299, 0.587, 0.114])


def standardised(features: np.ndarray) -> np.ndarray:
    """``(n, ...)`` to rows ``(n, m)`` of mean 0 and norm 1: products of rows are correlations."""
    flat = np.asarray(features, np.float64).reshape(len(features), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    rows: np.ndarray = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    return rows


def pixel_correlation(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Pearson correlation of pixels, ``(n, *shape)`` and ``(m, *shape)`` -> ``(n, m)``.

    >>> image = np.array([[0.0, 1.0], [1.0, 0.0]])[None]
    >>> pixel_correlation(image, np.concatenate([3 * image + 1, -image])).round(6).tolist()
    [[1.0, -1.0]]
    """
    correlation: np.ndarray = standardised(images) @ standardised(references).T
    return correlation


def outlines(images: np.ndarray) -> np.ndarray:
    """Maps of edge strength, ``(n, 3, h, w) -> (n, h w)``, standardised.

    The magnitude of the luminance's gradient, smoothed by a Gaussian of one pixel.  A product of
    two rows is a correlation that neither a plain background nor a change of colour moves much.
    """
    luminance = np.tensordot(np.asarray(images, np.float64), _LUMINANCE, (1, 0))
    down, right = np.gradient(luminance, axis=(1, 2))
    return standardised(gaussian_filter(np.hypot(down, right), (0, 1, 1)))


def outline_correlation(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Correlation of outlines, ``(n, 3, h, w)`` and ``(m, 3, h, w)`` -> ``(n, m)``.

    >>> rng = np.random.default_rng(0)
    >>> image = rng.normal(size=(1, 3, 32, 32))
    >>> outline_correlation(image, 2 - image).round(6).tolist()  # a negative has the same edges
    [[1.0]]
    """
    correlation: np.ndarray = outlines(images) @ outlines(references).T
    return correlation


def structural_similarity(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    r"""SSIM of each image with the reference in the same place, ``(n, 3, h, w)`` twice -> ``(n,)``.

    Of luminances in [-1, 1], with Gaussian windows of 1.5 pixels:

    .. math:: \frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}
                   {(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)}

    averaged over pixels, :math:`c_1 = (0.01 \cdot 2)^2`, :math:`c_2 = (0.03 \cdot 2)^2`.  Beside
    the outlines it also sees the background's brightness.

    Wang, Bovik, Sheikh & Simoncelli, IEEE Trans. Image Processing 13 (2004) 600,
    doi:10.1109/TIP.2003.819861.

    >>> image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 32, 32))
    >>> structural_similarity(image, image).round(6).tolist()
    [1.0]
    """
    x, y = (
        np.tensordot(np.asarray(a, np.float64), _LUMINANCE, (1, 0)) for a in (images, references)
    )

    def blur(a: np.ndarray) -> np.ndarray:
        blurred: np.ndarray = gaussian_filter(a, (0, 1.5, 1.5), truncate=3.5)
        return blurred

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.02**2, 0.06**2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    each: np.ndarray = top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    mean: np.ndarray = each.mean(axis=(1, 2))
    return mean
