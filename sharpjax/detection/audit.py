r"""Along training: from when on a model remembers, by its losses and by its samples.

**Losses.** At one noise level the loss of an image is $\ell = E_\varepsilon \|\varepsilon -
\hat\varepsilon\|^2 / d$, of $\hat\varepsilon = -\sigma s$ under the image's text, or without a
condition, and of noises that are the same for all images and checkpoints.  Levels weigh alike by
their logarithms: an image's value is the mean of $\log \ell$ over them, and the *gap* of a
checkpoint

$$
g = \overline{\log \ell}_{\text{held out}} - \overline{\log \ell}_{\text{suspected}} ,
$$

so that suspected images have $e^g$ times less loss (S. Yeom et al., Privacy risk in machine
learning, CSF 2018, arXiv:1709.01604, of losses; for diffusion models N. Carlini et al. 2023,
arXiv:2301.13188).  Where both were drawn alike and nothing was learned by heart, $E g = 0$: it
*leaves its band* where the interval of Welch (Biometrika 34 (1947) 28) does not hold 0.

**Samples.** A sample is called a copy where its distance to the nearest suspected image is below a
third of that to the second nearest (T. Yoon et al., Diffusion probabilistic models generalize when
they fail to memorize, 2023; T. Bonnaire et al., NeurIPS 2025, arXiv:2505.17638).  What images of
the same kind do by chance, the held-out ones show: the share leaves its band where its interval
lies above theirs.

Both intervals hold for all checkpoints at once: their error is shared out over them (Bonferroni).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from sharpjax.detection.evaluation import Interval
from sharpjax.detection.intervals import ALPHA, share

COPY_RATIO = 1 / 3


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What an audit says of one checkpoint.

    Attributes:
        gap: of the losses, in logarithms, with an interval that holds for all checkpoints at once.
        copies: share of copies among samples, likewise.
        by_chance: the same share of the held-out images.
    """

    gap: Interval
    copies: Interval
    by_chance: Interval

    @property
    def losses_part(self) -> bool:
        """Suspected images have less loss than chance explains."""
        return self.gap.low > 0

    @property
    def copies_show(self) -> bool:
        """More samples are copies than held-out images look like it."""
        return self.copies.low > self.by_chance.high


def audited(
    suspected: Sequence[np.ndarray],
    held_out: Sequence[np.ndarray],
    samples: Sequence[np.ndarray],
    control: np.ndarray,
    *,
    alpha: float = ALPHA,
) -> list[Checkpoint]:
    """Every checkpoint's gap and copies.

    Args:
        suspected: losses `(n, levels)` of each checkpoint, > 0.
        held_out: likewise.
        samples: of each checkpoint the samples' ratios of distances, as of `nearest_ratio`.
        control: those of the held-out images.
        alpha: one less the level of all intervals together.
    """
    each = alpha / max(len(suspected), 1)
    chance = _copies(control, each)
    return [
        Checkpoint(loss_gap(own, other, alpha=each), _copies(drawn, each), chance)
        for own, other, drawn in zip(suspected, held_out, samples, strict=True)
    ]


def loss_gap(suspected: np.ndarray, held_out: np.ndarray, *, alpha: float = ALPHA) -> Interval:
    r"""The gap $g$ of losses `(n, levels)` with Welch's interval.

    >>> rng = np.random.default_rng(0)
    >>> held_out = np.exp(rng.normal(size=(400, 1)))
    >>> suspected = 0.5 * np.exp(rng.normal(size=(400, 1)))
    >>> loss_gap(suspected, held_out)  # log 2 = 0.69
    Interval(value=0.672313, low=0.533303, high=0.811322)
    """
    own, other = (
        np.log(np.asarray(losses, float)).mean(axis=1) for losses in (suspected, held_out)
    )
    parts = [values.var(ddof=1) / len(values) for values in (own, other)]
    value, variance = float(other.mean() - own.mean()), sum(parts)
    if variance == 0:
        return Interval(value, value, value)
    shared = sum(p**2 / (len(v) - 1) for p, v in zip(parts, (own, other), strict=True))
    half = -float(stdtrit(variance**2 / shared, alpha / 2)) * float(np.sqrt(variance))
    return Interval(value, value - half, value + half)


def nearest_ratio(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Of each image the distance to the nearest reference over that to the second nearest.

    References that are equal count once, or a repeated one would hide its copies.

    Args:
        images: `(n, ...)`.
        references: `(m, ...)`, at least two different ones.

    >>> references = np.array([[0.0], [4.0], [4.0]])
    >>> nearest_ratio(np.array([[0.5], [4.0], [2.0]]), references)
    array([0.14285714, 0.        , 1.        ])
    """
    flat = np.unique(references.reshape(len(references), -1).astype(np.float64), axis=0)
    if len(flat) < 2:
        raise ValueError("suspected images must be at least two different ones, to tell copies")
    points = images.reshape(len(images), -1).astype(np.float64)
    ratios = []
    for point in points:  # one at a time: differences, not products, which lose a small distance
        near, second = np.partition(((flat - point) ** 2).sum(axis=1), 1)[:2]
        ratios.append(np.sqrt(near / second))
    return np.array(ratios)


def first_to_stay(outside: Sequence[bool]) -> int | None:
    """The first checkpoint from which on all are outside of their band; None if the last is not.

    >>> first_to_stay([False, True, False, True, True])
    3
    """
    inside = [place for place, out in enumerate(outside) if not out]
    first = inside[-1] + 1 if inside else 0
    return first if first < len(outside) else None


def _copies(ratios: np.ndarray, alpha: float) -> Interval:
    value = float(np.mean(np.asarray(ratios) < COPY_RATIO))
    return Interval(value, *share(value, len(ratios), alpha=alpha))
