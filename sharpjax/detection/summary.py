"""What the records of a detection run add up to: figures of a statistic, a row per condition."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from sharpjax.detection.evaluation import Evaluation, evaluate, spearman
from sharpjax.detection.statistics import STATISTICS
from sharpjax.rundir import write_csv


@dataclasses.dataclass(frozen=True)
class Summary:
    """One statistic over all conditions.

    Attributes:
        name: ``statistic@t``.
        network: figures of the network's values, ``None`` without ground truth.
        oracle: figures of the exact score's values.
        rank_correlation: Spearman's with the set size and its p-value.
        oracle_rank_correlation: the same of the exact score.
    """

    name: str
    network: Evaluation | None
    oracle: Evaluation | None
    rank_correlation: tuple[float, float] | None
    oracle_rank_correlation: tuple[float, float] | None


def means(records: Sequence[dict[str, Any]], who: str, name: str) -> np.ndarray:
    """Mean over noises of one column, ``(conditions,)``; ``who`` is ``network`` or ``oracle``."""
    return np.array([np.mean(record[who][name]) for record in records])


def direction(name: str) -> int:
    """+1 if larger means memorized, for a column ``statistic@t``."""
    return STATISTICS[name.split("@")[0]].direction


def summarize(
    records: Sequence[dict[str, Any]],
    *,
    verdicts: Sequence[str] | None = None,
    set_sizes: np.ndarray | None = None,
) -> list[Summary]:
    """Figures of every column; conditions judged ``between`` are left out of the ROC."""
    summaries = []
    for name in records[0]["network"]:
        figures: dict[str, Any] = {}
        for who in ("network", "oracle"):
            if who not in records[0]:
                figures[who] = figures[who, "rank"] = None
                continue
            values = means(records, who, name)
            figures[who] = _judged(direction(name) * values, verdicts)
            figures[who, "rank"] = None if set_sizes is None else spearman(values, set_sizes)
        summaries.append(
            Summary(
                name,
                figures["network"],
                figures["oracle"],
                figures["network", "rank"],
                figures["oracle", "rank"],
            )
        )
    return summaries


def _judged(scores: np.ndarray, verdicts: Sequence[str] | None) -> Evaluation | None:
    if verdicts is None:
        return None
    verdicts = np.asarray(verdicts)
    if not {"memorized", "clean"} <= set(verdicts):
        return None
    kept = verdicts != "between"
    return evaluate(scores[kept], verdicts[kept] == "memorized")


def write_table(
    path: Path, records: Sequence[dict[str, Any]], extra: Sequence[dict[str, Any]]
) -> Path:
    """``results.csv``: a row per condition; mean and 95% t-interval over noises of each column."""
    rows = []
    for record, more in zip(records, extra, strict=True):
        row: dict[str, Any] = {"condition": record["condition"], **more}
        for who in ("network", "oracle"):
            for name, values in record.get(who, {}).items():
                mean, half = mean_and_half_width(values)
                row |= {f"{who} {name}": mean, f"{who} {name} half-width": half}
        rows.append(row)
    write_csv(path, rows)
    return path


def mean_and_half_width(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Mean over noises and the half-width of its t-interval."""
    data = np.asarray(values, np.float64)
    error = data.std(ddof=1) / np.sqrt(len(data))
    return float(data.mean()), float(stdtrit(len(data) - 1, 0.5 + level / 2) * error)
