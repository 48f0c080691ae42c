r"""Is a noise still a draw of N(0, I)?

A model is trained on Gaussian noise alone: where an optimised one stops looking like it, the model
is asked about inputs that it never saw.  Three figures as z-scores, each standard normal for a
Gaussian draw of many entries `d`, out to the far tails that decide (both of the first two figures
are skewed, and are transformed):

- norm: $\|x\|^2$ is chi-squared of `d` degrees: its cube root is nearly normal
  (E. B. Wilson, M. M. Hilferty, PNAS 17 (1931), doi:10.1073/pnas.17.12.684);
- kurtosis: $m_4/m_2^2$, transformed as by F. J. Anscombe, W. J. Glynn, Biometrika 70 (1983),
  doi:10.1093/biomet/70.1.227 (which is `scipy.stats.kurtosistest`); 0 of fewer than 5 entries;
- autocorrelation: the mean product of neighbours in a row, and in a column, of the standardised
  noise has mean $-1/(d-1)$ and variance about one over the number of pairs (Moran's I:
  P. A. P. Moran, Biometrika 37 (1950), doi:10.1093/biomet/37.1-2.17); 0 without any pair.
"""

import dataclasses

import numpy as np

from sharpjax._reprs import one_line
from sharpjax._types import ArrayLike

# A standard normal value is beyond this one once in 16,000; one of the three once in 4,000 draws of
# shape (1, 28, 28) (262 of 1,040,000: the kurtosis twice as often as a normal value would be).
ODD = 4.0


@dataclasses.dataclass(frozen=True)
class Plausibility:
    """Of one noise; all but `norm` are z-scores.

    Attributes:
        norm: Euclidean length over the square root of `d`: near 1.
        norm_z: how far its square is from `d`: too long or, negative, too short.
        kurtosis_z: excess of large (or, negative, of middling) entries.
        autocorrelation_z: correlation of neighbours along the last two axes.
    """

    norm: float
    norm_z: float
    kurtosis_z: float
    autocorrelation_z: float

    __repr__ = one_line

    @property
    def largest(self) -> float:
        """The z-score farthest from 0, without its sign."""
        return max(map(abs, (self.norm_z, self.kurtosis_z, self.autocorrelation_z)))

    @property
    def is_gaussian(self) -> bool:
        """Whether no z-score lies beyond 4."""
        return self.largest <= ODD


def plausibility(noise: ArrayLike) -> Plausibility:
    """The figures of one noise `(..., height, width)` or `(d,)`.

    Raises:
        ValueError: fewer than 2 entries, or one that is not finite.

    >>> draw = np.random.default_rng(0).normal(size=(4, 16, 16))
    >>> plausibility(draw).is_gaussian, plausibility(1.5 * draw).is_gaussian
    (True, False)
    """
    from scipy.stats import kurtosistest  # a second, which most uses do not need

    x = np.asarray(noise, np.float64)
    if x.size < 2:
        raise ValueError(f"a noise of at least 2 entries is needed, got {x.size}")
    if not np.isfinite(x).all():
        raise ValueError("the noise contains NaN or infinite entries")
    d = x.size
    norm = float(np.linalg.norm(x) / np.sqrt(d))
    spread = 2 / (9 * d)  # the variance of the cube root, and what its mean lacks of 1
    norm_z = float((np.cbrt(norm**2) - 1 + spread) / np.sqrt(spread))
    centred = x - x.mean()
    variance = np.mean(centred**2)
    if variance == 0:
        return Plausibility(norm, norm_z, float("inf"), float("inf"))
    scaled = centred / np.sqrt(variance)
    products = [scaled[..., 1:] * scaled[..., :-1]]
    if x.ndim > 1:
        products.append(scaled[..., 1:, :] * scaled[..., :-1, :])
    neighbours = np.concatenate([product.ravel() for product in products])
    pairs = neighbours.size
    return Plausibility(
        norm=norm,
        norm_z=norm_z,
        kurtosis_z=float(kurtosistest(scaled.ravel()).statistic) if d >= 5 else 0.0,
        autocorrelation_z=float((neighbours.sum() + pairs / (d - 1)) / np.sqrt(max(pairs, 1))),
    )
