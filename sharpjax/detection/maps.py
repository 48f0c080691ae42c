r"""Where an image is memorized: what the condition closes, pixel by pixel.

The diagonal of $J = \sigma H_D$ at the last step of a path says of every entry how much the
condition sharpens it: as $H = (K - I)/\sigma^2$, minus its sum over channels is what is left open
there without the condition less what is left with it.  Kim & Lee (ICML 2026, arXiv:2605.26756) show
that map; its mean is the statistic `curvature_difference`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sharpjax._checks import point as checked_point
from sharpjax._checks import positive_integer, prng_key
from sharpjax._types import Array, ArrayLike, Key, Matvec
from sharpjax.detection.evaluation import placements
from sharpjax.score import ScorePair, check_pair

PROBES = 16  # as published


def memorization_map(pair: ScorePair, x: Array, *, key: Key, num_probes: int = PROBES) -> Array:
    r"""$\max(0, -\sum_{\text{channels}} \operatorname{diag} J)$ of every pixel, `(height, width)`.

    Units 1/sigma.  Larger means memorized there.  The diagonal is Hutchinson's by transposed
    products, $\frac1k \sum_i v_i \circ J^T v_i$ with signs $v_i$; its noise makes a pixel's value
    too large on average, by at most half a standard deviation, and most where that is 0.

    Args:
        pair: at the last of 50 steps.
        x: the state that this step starts from, `(channels, height, width)`.
        key: draws the probes.
        num_probes: 16 as published.

    Raises:
        ValueError: `alpha = 0`; no key; no probes; a state of another form, or not finite.
    """
    check_pair(pair, "memorization_map")
    key = prng_key(key, "The probes are random")
    num_probes = positive_integer("num_probes", num_probes)
    if np.ndim(x) != 3:
        raise ValueError(f"x must be one state (channels, height, width), got shape {np.shape(x)}")
    x = checked_point(x)
    _, pullback = jax.vjp(pair.difference, x)
    diagonal = pair.sigma * hutchinson_diagonal(lambda v: pullback(v)[0], x, key, num_probes)
    return jnp.maximum(-diagonal.sum(axis=0), 0)


def pixel_auc(values: ArrayLike, mask: ArrayLike) -> float:
    """The share of pairs of a masked and another pixel that a map puts in order, ties half.

    The unit is a pixel, and pixels of an image are alike: an interval is that of several images.

    Args:
        values: the map, `(height, width)`; larger means memorized.
        mask: what is known to be repeated, of the same size; other than 0 where it is.

    Raises:
        ValueError: another size, a map that is not finite, a mask of all pixels or of none.

    >>> pixel_auc([[3.0, 1.0], [2.0, 0.0]], [[1, 0], [0, 0]])
    1.0
    """
    found, known = _both(values, mask)
    return float(placements(found.ravel(), known.ravel())[0].mean())


def pixel_iou(values: ArrayLike, mask: ArrayLike, *, threshold: float) -> float:
    """Pixels at or above the threshold and in the mask, over those in either.

    Choose the threshold on other images.  Arguments and errors as of `pixel_auc`.

    >>> pixel_iou([[3.0, 1.0], [2.0, 0.0]], [[1, 0], [0, 0]], threshold=2.0)
    0.5
    """
    found, known = _both(values, mask)
    chosen = found >= threshold
    return float((chosen & known).sum() / (chosen | known).sum())


def _both(values: ArrayLike, mask: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    found, known = np.asarray(values, float), np.asarray(mask) != 0
    if found.shape != known.shape or found.ndim != 2:
        raise ValueError(
            f"a map and its mask must be (height, width) of one size, got {found.shape} and "
            f"{known.shape}; sharpjax detect --maps writes maps at the size of the images"
        )
    if not np.isfinite(found).all():
        raise ValueError("the map has entries that are not finite")
    if known.all() or not known.any():
        raise ValueError(f"the mask must hold some pixels and leave some, got {known.mean():.0%}")
    return found, known


def hutchinson_diagonal(product: Matvec, x: Array, key: Key, num_probes: int) -> Array:
    """The mean of `v * product(v)` over signs, one probe after another."""

    def one(k: Array) -> Array:
        v = jax.random.rademacher(jax.random.fold_in(key, k), x.shape, x.dtype)
        return v * product(v)

    return jax.lax.map(one, jnp.arange(num_probes)).mean(axis=0)


def to_pixels(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map of latents at the size of the image, bilinear; `shape` is `(..., height, width)`."""
    height, width = shape[-2:]
    picture = Image.fromarray(np.asarray(values, np.float32))  # of 32-bit floats
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture)
