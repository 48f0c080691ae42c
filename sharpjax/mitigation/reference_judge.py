r"""A judge of copies that needs training images alone: no network, no weights.

**Measure.** `likeness`, the mean of two correlations, of pixels and
of outlines, of images brought to 64 x 64 pixels: a copy agrees in both.

**Threshold.** From the references themselves, before any sample is drawn.  Each one is compared
with all *others*, and the threshold is the 99.5% quantile over half of them of the largest of
these likenesses: what two different images of this kind are alike by chance.  The false-alarm rate
is that of the other half.  And each is compared with *itself, changed* as a generated copy is:
moved by up to a thirtieth of its side, blurred, brighter, darker, noisy; the share of these beyond
the threshold is how many copies are found.  Two references that are as alike as an image and its
copy, that is, as the worst twentieth of these, are one image that stands there twice, or such as
this judge cannot tell apart: they say nothing of different images, and are left out and counted.

It cannot tell what an image shows; for that there is CLIP (`sharpjax.mitigation.judging`).
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, shift

from sharpjax.detection import intervals
from sharpjax.mitigation.judging import Judgement, judgement, levels_of
from sharpjax.similarity import likeness

FEWEST = 8  # references: of fewer no threshold can be set
QUANTILE = 0.995
SIDE = 64  # pixels
_SAME = 0.05  # quantile of the changed ones, from which two references are one image
_SEED = 2027


@dataclasses.dataclass(frozen=True)
class ReferenceControl:
    """What references say of copies.

    Attributes:
        threshold: likeness beyond which an image is a copy.
        references: how many there are.
        repeated: pairs of them as alike as an image and its copy, which were left out.
        false_alarms: of `others` references, those more alike to a different one.
        others: that did not set the threshold.
        low: lower end of the 95% interval of that rate.
        high: upper end.
        found: share of changed references that are beyond it.
    """

    threshold: float
    references: int
    repeated: int
    false_alarms: int
    others: int
    low: float
    high: float
    found: float

    def __str__(self) -> str:
        told = (
            f"A copy has a likeness above {self.threshold:.3f} with a reference. Of "
            f"{self.others} references that did not set this {self.false_alarms} are so alike to a "
            f"different one (rate at most {self.high:.2f}); {self.found:.0%} of the references, "
            "moved, blurred, brighter, darker or noisy, are found."
        )
        if self.repeated:
            told += (
                f" {self.repeated} pairs of references are as alike as an image and its copy and "
                "were left out: one image twice, or such as this judge cannot tell apart."
            )
        return told


class ReferenceJudge:
    """Copies of references, by likeness.

    Args:
        images: training images, `(3, h, w)` of any size, -1 to 1.
        prompts: the prompt of each, or empty: then it may be any prompt's own.
        clip_score: of images and prompts, for fidelity (`sharpjax.mitigation.judging.load_clip`).

    Raises:
        ValueError: fewer than `FEWEST` references that can be told from each other.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        prompts: Sequence[str],
        clip_score: Callable[[np.ndarray, Sequence[str]], np.ndarray] | None = None,
    ):
        small = np.stack([resized(image) for image in images]) if len(images) else np.empty(0)
        self.prompts, self._clip_score = tuple(prompts), clip_score
        self.control = control(small)
        self.threshold = self.control.threshold
        self._known = likeness(small)
        told = json.dumps(self.prompts).encode()
        self.digest = hashlib.sha256(small.tobytes() + told).hexdigest()

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Judgement:
        """Judge `images` of `prompts`, one each."""
        alike = likeness(np.stack([resized(image) for image in images])) @ self._known.T
        fidelity = np.full(len(prompts), np.nan)
        if self._clip_score is not None:
            fidelity = self._clip_score(images, prompts)
        return judgement(alike, self.prompts, prompts, self.threshold, fidelity)


def control(images: np.ndarray) -> ReferenceControl:
    """The threshold of copies, from references `(n, 3, 64, 64)`.

    Raises:
        ValueError: as `ReferenceJudge`.
    """
    if (count := len(images)) < FEWEST:
        raise ValueError(
            f"a judge by references needs at least {FEWEST} of them to set its threshold, got "
            f"{count}; or give --sscd, whose threshold is published"
        )
    rows = likeness(images)
    changed = np.stack([np.sum(likeness(one) * rows, axis=1) for one in _changed(images)])
    alike = rows @ rows.T
    np.fill_diagonal(alike, -np.inf)
    same = alike >= np.quantile(changed, _SAME)
    largest = np.where(same, -np.inf, alike).max(axis=1)
    known = np.flatnonzero(np.isfinite(largest))
    if len(known) < FEWEST:
        raise ValueError(
            f"of {count} references only {len(known)} differ from any other by more than an image "
            f"from its copy; {FEWEST} such are needed to set a threshold: use --sscd"
        )
    half = np.random.default_rng(_SEED).permutation(len(known)) < len(known) // 2
    threshold = float(np.quantile(largest[known[half]], QUANTILE))
    beyond = largest[known[~half]] > threshold
    low, high = intervals.share(float(beyond.mean()), len(beyond))
    found = float(np.mean(changed > threshold))
    return ReferenceControl(
        threshold, count, int(same.sum()) // 2, int(beyond.sum()), len(beyond), low, high, found
    )


def _changed(images: np.ndarray) -> list[np.ndarray]:
    """As a generated copy is changed, `(n, 3, 64, 64)` each."""
    rng = np.random.default_rng(_SEED)
    noise = rng.normal(0, 0.1, images.shape)
    moves = [shift(images, (0, 0, dy, dx), mode="nearest", order=1) for dy, dx in _MOVES]
    changed = [gaussian_filter(images, (0, 0, 1, 1)), 0.8 * images + 0.15, 0.8 * images - 0.15]
    return [np.clip(one, -1, 1) for one in (*moves, *changed, images + noise)]


_MOVES = ((SIDE / 30, 0), (0, -SIDE / 30), (-SIDE / 60, SIDE / 60))


def resized(image: np.ndarray) -> np.ndarray:
    """`(3, h, w)`, -1 to 1, to `(3, 64, 64)`."""
    if image.shape[1:] == (SIDE, SIDE):
        return np.asarray(image, np.float64)
    small = Image.fromarray(levels_of(image)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(small, np.float64).transpose(2, 0, 1) / 127.5 - 1
