r"""Is a noise still a draw of N(0, I)?

A model is trained on Gaussian noise alone: where an optimised one stops looking like it, the model
is asked about inputs that it never saw.  Three figures as z-scores, each standard normal for a
Gaussian draw of many entries ``d``:

- norm: :math:`\|x\|^2` has mean ``d`` and variance ``2 d``;
- kurtosis: :math:`g_2 = m_4/m_2^2 - 3` has mean :math:`-6/(d+1)` and variance :math:`\approx 24/d`
  (Fisher 1930, doi:10.1112/plms/s2-30.1.58 has the exact ones);
- autocorrelation: the mean product of neighbours in a row, and in a column, has mean 0 and
  variance one over their number.
"""

import dataclasses

import numpy as np

from sharpjax._types import ArrayLike
from sharpjax.reprs import one_line

ODD = 4.0  # a z-score beyond this one happens to 1 of 16,000 Gaussian draws


@dataclasses.dataclass(frozen=True)
class Plausibility:
    """Of one noise; all but ``norm`` are z-scores.

    Attributes:
        norm: Euclidean length over the square root of ``d``: near 1.
        norm_z: how far its square is from ``d``.
        kurtosis_z: excess of large (or, negative, of middling) entries.
        autocorrelation_z: correlation of neighbours along the last two axes.
    """

    norm: float
    norm_z: float
    kurtosis_z: float
    autocorrelation_z: float

    __repr__ = one_line

    @property
    def is_gaussian(self) -> bool:
        """Whether no z-score lies beyond 4."""
        scores = (self.norm_z, self.kurtosis_z, self.autocorrelation_z)
        return all(abs(z) <= ODD for z in scores)


def plausibility(noise: ArrayLike) -> Plausibility:
    """The figures of one noise ``(..., height, width)`` or ``(d,)``.

    Raises:
        ValueError: fewer than 2 entries, or one that is not finite.

    >>> draw = np.random.default_rng(0).normal(size=(4, 16, 16))
    >>> plausibility(draw).is_gaussian, plausibility(1.5 * draw).is_gaussian
    (True, False)
    """
    x = np.asarray(noise, np.float64)
    if x.size < 2:
        raise ValueError(f"a noise of at least 2 entries is needed, got {x.size}")
    if not np.isfinite(x).all():
        raise ValueError("the noise contains NaN or infinite entries")
    d = x.size
    square = float(np.sum(x**2))
    centred = x - x.mean()
    variance = np.mean(centred**2)
    if variance == 0:
        z = float((square - d) / np.sqrt(2 * d))
        return Plausibility(float(np.sqrt(square / d)), z, float("inf"), float("inf"))
    excess = np.mean(centred**4) / variance**2 - 3 + 6 / (d + 1)
    scaled = centred / np.sqrt(variance)
    products = [scaled[..., 1:] * scaled[..., :-1]]
    if x.ndim > 1:
        products.append(scaled[..., 1:, :] * scaled[..., :-1, :])
    neighbours = np.concatenate([product.ravel() for product in products])
    return Plausibility(
        norm=float(np.sqrt(square / d)),
        norm_z=float((square - d) / np.sqrt(2 * d)),
        kurtosis_z=float(excess / np.sqrt(24 / d)),
        autocorrelation_z=float(neighbours.sum() / np.sqrt(neighbours.size)),
    )
