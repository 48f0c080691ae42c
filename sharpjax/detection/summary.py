"""What the records of a detection run add up to: figures of a statistic, a row per condition."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from sharpjax.detection.calibration import Calibration, scalars
from sharpjax.detection.cases import Case
from sharpjax.detection.evaluation import (
    Comparison,
    Evaluation,
    compare,
    evaluate,
    fraction,
    spearman,
)
from sharpjax.detection.statistics import STATISTICS
from sharpjax.prompts import distinct
from sharpjax.reprs import one_line
from sharpjax.rundir import write_csv

# what other statistics are compared with, and verdicts go by: the simplest, and on both bundled
# models among the best
REFERENCE = "score_difference"


# columns of ``results.csv`` that say what is known beforehand
_KNOWN = {"source": "source", "level": "level", "copy_rate": "copy_rate", "known": "verdict"}


@dataclasses.dataclass(frozen=True)
class Summary:
    """One statistic over all conditions.

    Attributes:
        name: ``statistic@t``.
        network: figures of the network's values, ``None`` without ground truth.
        one_noise: of their first noise alone; None where there is one, or one value a condition.
        by_source: against the clean conditions of each source, if there are several.
        by_source_one_noise: the same of the first noise alone.
        by_level: of the memorized conditions of each level, if there are several.
        comparison: with :data:`REFERENCE` on the same conditions, where that is there too.
        oracle: figures of the exact score's values.
        rank_correlation: Spearman's with the level and its p-value, over conditions of any level.
        oracle_rank_correlation: the same of the exact score.
    """

    name: str
    network: Evaluation | None = None
    one_noise: Evaluation | None = None
    by_source: dict[str, Evaluation] = dataclasses.field(default_factory=dict)
    by_source_one_noise: dict[str, Evaluation] = dataclasses.field(default_factory=dict)
    by_level: dict[int, Evaluation] = dataclasses.field(default_factory=dict)
    comparison: Comparison | None = None
    oracle: Evaluation | None = None
    rank_correlation: tuple[float, float] | None = None
    oracle_rank_correlation: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Judged:
    """The different conditions whose values are all finite, each column one number a noise.

    Attributes:
        cases: what is known of them.
        records: ``network`` and ``oracle`` of each.
        failed: the records of the others.
    """

    cases: list[Case]
    records: list[dict[str, dict[str, list[float]]]]
    failed: list[dict[str, Any]]

    __repr__ = one_line

    @classmethod
    def of(
        cls,
        records: Sequence[dict[str, Any]],
        cases: Sequence[Case],
        calibration: Calibration | None = None,
    ) -> "Judged":
        """Of a run's records and what is known of each; blank ones and repeats do not count."""
        pairs = list(zip(records, cases, strict=True))
        done = [(r, c) for r, c in pairs if "failed" not in r]
        kept = [done[place] for place in distinct([case.condition for _, case in done])]
        return cls(
            [case for _, case in kept],
            [
                {who: scalars(r[who], calibration) for who in ("network", "oracle") if who in r}
                for r, _ in kept
            ],
            [record for record in records if "failed" in record],
        )

    def names(self, who: str = "network") -> list[str]:
        """Of the columns."""
        return list(self.records[0].get(who, ())) if self.records else []

    def means(self, who: str, name: str, *, noises: int | None = None) -> np.ndarray:
        """Of one column over (the first) noises, ``(conditions,)``."""
        return np.array([np.mean(record[who][name][:noises]) for record in self.records])

    def extremes(self, name: str) -> list[str]:
        """The conditions that a column calls the sharpest and the flattest, in this order.

        One if they have the same name; none without records.
        """
        if not self.records:
            return []
        values = direction(name) * self.means("network", name)
        ends = (self.cases[int(place)].condition for place in (values.argmax(), values.argmin()))
        return list(dict.fromkeys(ends))

    @property
    def verdicts(self) -> np.ndarray:
        """Of each condition; "" where not known."""
        return np.array([case.verdict or "" for case in self.cases], dtype=str)


def direction(name: str) -> int:
    """+1 if larger means memorized, for a column ``statistic@t``."""
    return STATISTICS[name.split("@")[0]].direction


def summarize(judged: Judged, *, nearest: bool = False) -> list[Summary]:
    """Figures of every column; conditions judged ``between`` or not at all are left out of the ROC.

    Args:
        judged: conditions with their values.
        nearest: see :func:`~sharpjax.detection.evaluation.evaluate`.
    """
    verdicts = judged.verdicts
    memorized, clean = verdicts == "memorized", verdicts == "clean"
    sources = np.array([case.source for case in judged.cases], dtype=str)
    levels = np.array([case.level for case in judged.cases], dtype=int)
    planted = levels > 0
    reference = next((n for n in judged.names() if n.split("@")[0] == REFERENCE), None)

    def figures(
        name: str, values: np.ndarray, positive: np.ndarray, negative: np.ndarray
    ) -> Evaluation | None:
        rows = positive | negative
        if not positive.any() or not negative.any():
            return None
        return evaluate(direction(name) * values[rows], positive[rows], nearest=nearest)

    def apart(
        name: str, values: np.ndarray, labels: np.ndarray, chosen: np.ndarray, *, positive: bool
    ) -> dict[Any, Evaluation]:
        """Of each label's conditions among the chosen ones, against all of the other class."""
        kinds = dict.fromkeys(labels[chosen].tolist())
        if len(kinds) < 2:
            return {}
        found = {}
        for kind in sorted(kinds) if positive else kinds:
            own = chosen & (labels == kind)
            found[kind] = (
                figures(name, values, own, clean)
                if positive
                else figures(name, values, memorized, own)
            )
        return {kind: one for kind, one in found.items() if one is not None}

    def rank(values: np.ndarray) -> tuple[float, float] | None:
        return spearman(values[planted], levels[planted]) if planted.any() else None

    summaries = []
    for name in judged.names():
        values = judged.means("network", name)
        first = judged.means("network", name, noises=1)
        several = len(judged.records[0]["network"][name]) > 1
        rows = memorized | clean
        both = memorized.any() and clean.any()
        exact = judged.means("oracle", name) if name in judged.names("oracle") else None
        summaries.append(
            Summary(
                name,
                network=figures(name, values, memorized, clean),
                one_noise=figures(name, first, memorized, clean) if several else None,
                by_source=apart(name, values, sources, clean, positive=False),
                by_source_one_noise=apart(name, first, sources, clean, positive=False)
                if several
                else {},
                by_level=apart(name, values, levels, memorized, positive=True),
                comparison=compare(
                    direction(name) * values[rows],
                    direction(reference) * judged.means("network", reference)[rows],
                    memorized[rows],
                )
                if both and reference not in (None, name)
                else None,
                oracle=None if exact is None else figures(name, exact, memorized, clean),
                rank_correlation=rank(values),
                oracle_rank_correlation=None if exact is None else rank(exact),
            )
        )
    return summaries


def write_table(
    path: Path,
    judged: Judged,
    calibration: Calibration | None = None,
    *,
    decide_by: str | None = None,
) -> Path:
    """``results.csv``: a row per condition; mean and 95% t-interval over noises of each column.

    What is known of a condition is in ``known``.  With a calibration there is the margin of each
    column beyond its threshold, positive for memorized, and ``verdict`` goes by one of them.
    Conditions that failed are there with what failed.
    """
    rows = []
    for record, case in zip(judged.records, judged.cases, strict=True):
        row: dict[str, Any] = {"condition": case.condition}
        for name, field in _KNOWN.items():
            if any(getattr(one, field) for one in judged.cases):
                row[name] = getattr(case, field)
        limits = calibration.thresholds if calibration else {}
        network = record["network"]
        if decide_by in limits and decide_by in network:
            row["verdict"] = limits[decide_by].verdict(float(np.mean(network[decide_by])))
        for who in ("network", "oracle"):
            for name, values in record.get(who, {}).items():
                mean, half = mean_and_half_width(values)
                row |= {f"{who} {name}": mean, f"{who} {name} half-width": half}
                if who == "network" and name in limits:
                    row[f"margin {name}"] = limits[name].margin(mean)
        if judged.failed:
            row["failed"] = ""
        rows.append(row)
    if rows:
        lost = [
            dict.fromkeys(rows[0], "") | {"condition": r["condition"], "failed": r["failed"]}
            for r in judged.failed
        ]
        write_csv(path, rows + lost)
    return path


def mean_and_half_width(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Mean over noises and the half-width of its t-interval, NaN of a single noise.

    Raises:
        ValueError: a level outside (0, 1).
    """
    fraction("level", level)
    data = np.asarray(values, np.float64)
    if len(data) < 2:
        return float(data.mean()), float("nan")
    error = data.std(ddof=1) / np.sqrt(len(data))
    return float(data.mean()), float(stdtrit(len(data) - 1, 0.5 + level / 2) * error)
