r"""The bench of the drawings: any detector's scores against the truth, kind by kind.

    bench = sharpjax.bench.drawings()
    scores = {caption: my_detector(bench.directory, caption) for caption in bench.captions}
    for row in bench.evaluate(scores):
        print(row)

Every planted kind, and every share and dose of it, is set against negatives of each breadth, whose
truth is clean: a detector may tell memorized captions from broad ones and not from narrow ones, and
a ground that a caption names is breadth too.  The table has up to 63 cells, so each interval is
given twice: alone, and so that all of the table's hold at once with 95% (Bonferroni).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sharpjax import zoo
from sharpjax._reprs import one_line
from sharpjax.datasets.planted_drawings import planted_drawings
from sharpjax.detection import intervals
from sharpjax.detection.evaluation import FEWEST, evaluate, placements
from sharpjax.runs.truth_of_drawings import TRUTH_NAME, DrawingTruth, read_truth

MODEL = "drawings"
_Chosen = Callable[[DrawingTruth], bool]

POSITIVES: dict[str, _Chosen] = {
    "all memorized": lambda t: True,
    "verbatim": lambda t: t.kind == "verbatim",
    "mixed q=0.9": lambda t: t.kind == "mixed" and t.q == 0.9,
    "mixed q=0.7": lambda t: t.kind == "mixed" and t.q == 0.7,
    "mixed q=0.5": lambda t: t.kind == "mixed" and t.q == 0.5,
    "mixed q=0.2": lambda t: t.kind == "mixed" and t.q == 0.2,
    "template": lambda t: t.kind == "template",
}
NEGATIVES: dict[str, _Chosen] = {
    "all clean": lambda t: True,
    "group": lambda t: t.breadth == "group" and not t.ground,
    "name": lambda t: t.kind == "general" and t.breadth == "name" and not t.ground,
    "maker": lambda t: t.kind == "general" and t.breadth == "maker" and not t.ground,
    "on a ground": lambda t: t.kind == "general" and bool(t.ground),
    "hot, as verbatim": lambda t: t.like == "verbatim",
    "hot, as mixed": lambda t: t.like == "mixed",
    "hot, as template": lambda t: t.like == "template",
    "held-out": lambda t: t.kind == "held-out",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One cell of the table: memorized captions of a kind against clean ones of a breadth.

    Attributes:
        positives: which memorized captions, a key of `POSITIVES`.
        negatives: which clean ones, a key of `NEGATIVES`.
        num_positive: how many.
        num_negative: how many.
        auc: the probability that a memorized one scores above a clean one.
        low: lower end of its 95% interval, alone.
        high: upper end.
        low_of_all: lower end of the interval that holds with those of all rows at once.
        high_of_all: upper end.
        tpr: true-positive rate at a false-positive rate of at most 1%.
    """

    positives: str
    negatives: str
    num_positive: int
    num_negative: int
    auc: float
    low: float
    high: float
    low_of_all: float
    high_of_all: float
    tpr: float

    def __str__(self) -> str:
        return (
            f"{self.positives:14} ({self.num_positive:3}) against {self.negatives:16} "
            f"({self.num_negative:3}): AUC {self.auc:.3f} [{self.low:.3f}, {self.high:.3f}]"
        )


@dataclasses.dataclass(frozen=True)
class DrawingsBench:
    """A model of the drawings and what is known of its captions.

    Attributes:
        directory: of the model, in Stable Diffusion's format.
        truths: of every caption that was measured, by generation.
    """

    directory: Path
    truths: tuple[DrawingTruth, ...]

    __repr__ = one_line

    @property
    def captions(self) -> tuple[str, ...]:
        """Those whose truth is memorized or clean; the others count for nothing."""
        return tuple(t.caption for t in self._told)

    @property
    def labels(self) -> np.ndarray:
        """Whether each of `captions` is memorized, `(n,)` booleans."""
        return np.array([t.verdict == "memorized" for t in self._told])

    @property
    def breadths(self) -> tuple[str, ...]:
        """What each of `captions` is drawn from: group, name or maker."""
        return tuple(t.breadth for t in self._told)

    @property
    def _told(self) -> list[DrawingTruth]:
        return [t for t in self.truths if t.verdict in ("memorized", "clean")]

    def masks(self) -> dict[str, np.ndarray]:
        """Which pixels of a template's captions are repeated, `(64, 64)` booleans each."""
        planted = planted_drawings()
        every = planted.masks()
        return {
            planted.captions[i].caption: every[m]
            for m, i in enumerate(planted.planted.tolist())
            if planted.captions[i].kind == "template"
        }

    def evaluate(self, scores: Mapping[str, float], *, part: str | None = None) -> list[Row]:
        """The standard table of a detector.

        Args:
            scores: of each of `captions`, larger means memorized; further captions are ignored.
            part: "test" leaves out the captions that are for tuning, "tuning" the others.

        Raises:
            ValueError: a caption has no score, a score is not finite, an unknown part.
        """
        if part not in (None, "tuning", "test"):
            raise ValueError(f"part must be tuning, test or None, got {part!r}")
        told = [t for t in self._told if part in (None, t.part)]
        if missing := [t.caption for t in told if t.caption not in scores]:
            raise ValueError(
                f"every caption of the bench needs a score, {len(missing)} of {len(told)} have "
                f"none, the first is {missing[0]!r}"
            )
        memorized = [t for t in told if t.verdict == "memorized"]
        clean = [t for t in told if t.verdict == "clean"]
        cells = [
            (name, [t for t in memorized if chosen(t)], other, [t for t in clean if wanted(t)])
            for name, chosen in POSITIVES.items()
            for other, wanted in NEGATIVES.items()
        ]
        cells = [cell for cell in cells if cell[1] and cell[3]]
        return [_row(*cell, scores, alpha=intervals.ALPHA / len(cells)) for cell in cells]


def drawings(directory: str | Path | None = None) -> DrawingsBench:
    """The bench of the bundled model, or of another that was trained and measured as it was.

    Raises:
        FileNotFoundError: the directory has no `truth.csv`.
        ValueError: that is damaged.
    """
    folder = Path(directory) if directory is not None else zoo.find(MODEL)
    path = folder / TRUTH_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"no {TRUTH_NAME} in {folder}: sharpjax ground-truth --model {folder} makes one of a "
            "model of the drawings"
        )
    return DrawingsBench(folder, tuple(read_truth(path)))


def _row(
    name: str,
    memorized: Sequence[DrawingTruth],
    other: str,
    clean: Sequence[DrawingTruth],
    scores: Mapping[str, float],
    *,
    alpha: float,
) -> Row:
    values = np.array([float(scores[t.caption]) for t in (*memorized, *clean)])
    labels = np.arange(len(values)) < len(memorized)
    found = evaluate(values, labels)
    low = high = float("nan")
    if min(len(memorized), len(clean)) >= FEWEST:
        low, high = intervals.auc(placements(values, labels))(alpha)
    return Row(
        positives=name,
        negatives=other,
        num_positive=len(memorized),
        num_negative=len(clean),
        auc=found.auc.value,
        low=found.auc.low,
        high=found.auc.high,
        low_of_all=low,
        high_of_all=high,
        tpr=found.tpr.value,
    )
