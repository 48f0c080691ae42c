"""What the records of a detection run add up to: figures of a statistic, a row per condition."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sharpjax._reprs import one_line
from sharpjax.detection.calibration import Calibration, Threshold, scalars
from sharpjax.detection.evaluation import Comparison, Evaluation, compare, evaluate, spearman
from sharpjax.detection.statistics import STATISTICS
from sharpjax.prompts import Case, distinct

# what other statistics are compared with, and verdicts go by: the simplest, and on both bundled
# models among the best
REFERENCE = "score_difference"

# columns of `results.csv` that say what is known beforehand
_KNOWN = {"source": "source", "level": "level", "copy_rate": "copy_rate", "known": "verdict"}


@dataclasses.dataclass(frozen=True)
class Summary:
    """One statistic over all conditions.

    Attributes:
        name: `statistic@t`.
        network: figures of the network's values, `None` without ground truth.
        one_noise: of their first noise alone; None where there is one, or one value a condition.
        by_source: against the clean conditions of each source, if there are several.
        by_source_one_noise: the same of the first noise alone.
        by_level: of the memorized conditions of each level, if there are several.
        comparison: with `REFERENCE` on the same conditions, where that is there too.
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
        records: `network` and `oracle` of each.
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
        """Of one column over (the first) noises, `(conditions,)`."""
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


def deciding_column(
    wanted: str | None, columns: Sequence[str], thresholds: Calibration
) -> str | None:
    """The column of the verdicts: of the statistic `wanted`, or the reference.

    None if nothing is wanted and no column has a threshold.

    Raises:
        ValueError: what is wanted has none.
    """
    able = [name for name in columns if name in thresholds.thresholds]
    names = (wanted or REFERENCE,)
    for name in able:
        if name in names or name.split("@")[0] in names:
            return name
    if wanted is not None:
        raise ValueError(
            f"verdicts cannot go by {wanted}: no threshold of it here; there are those of "
            f"{', '.join(able) or 'none'}"
        )
    return able[0] if able else None


def direction(name: str) -> int:
    """+1 if larger means memorized, for a column `statistic@t`."""
    return STATISTICS[name.split("@")[0]].direction


def summarize(judged: Judged) -> list[Summary]:
    """Figures of every column; the ROC is without conditions judged `between` or not at all."""
    verdicts = judged.verdicts
    memorized, clean = verdicts == "memorized", verdicts == "clean"
    rows, both = memorized | clean, memorized.any() and clean.any()
    sources = np.array([case.source for case in judged.cases], dtype=str)
    levels = np.array([case.level for case in judged.cases], dtype=int)
    planted = levels > 0
    reference = next((n for n in judged.names() if n.split("@")[0] == REFERENCE), None)

    def figures(
        name: str,
        values: np.ndarray,
        positive: np.ndarray = memorized,
        negative: np.ndarray = clean,
    ) -> Evaluation | None:
        rows = positive | negative
        return evaluate(direction(name) * values[rows], positive[rows]) if both else None

    def apart(
        name: str, values: np.ndarray, labels: np.ndarray, chosen: np.ndarray
    ) -> dict[Any, Evaluation]:
        """Of each label's conditions among those of one class, against all of the other."""
        kinds = list(dict.fromkeys(labels[chosen].tolist()))
        found = {}
        for kind in kinds if len(kinds) > 1 else ():
            own = chosen & (labels == kind)
            sides = (own, clean) if chosen is memorized else (memorized, own)
            if (one := figures(name, values, *sides)) is not None:
                found[kind] = one
        return found

    def rank(values: np.ndarray) -> tuple[float, float] | None:
        return spearman(values[planted], levels[planted]) if planted.any() else None

    def against(values: np.ndarray, name: str) -> Comparison | None:
        if not both or reference in (None, name):
            return None
        theirs = direction(reference) * judged.means("network", reference)
        return compare(direction(name) * values[rows], theirs[rows], memorized[rows])

    summaries = []
    for name in judged.names():
        values = judged.means("network", name)
        several = len(judged.records[0]["network"][name]) > 1
        first = judged.means("network", name, noises=1)
        exact = judged.means("oracle", name) if name in judged.names("oracle") else None
        summaries.append(
            Summary(
                name,
                network=figures(name, values),
                one_noise=figures(name, first) if several else None,
                by_source=apart(name, values, sources, clean),
                by_source_one_noise=apart(name, first, sources, clean) if several else {},
                by_level=dict(sorted(apart(name, values, levels, memorized).items())),
                comparison=against(values, name),
                oracle=None if exact is None else figures(name, exact),
                rank_correlation=rank(values),
                oracle_rank_correlation=None if exact is None else rank(exact),
            )
        )
    return summaries


def table_rows(
    judged: Judged,
    thresholds: Mapping[str, Threshold],
    decide_by: str | None,
    *,
    counted: bool = False,
) -> list[dict[str, Any]]:
    """Of `results.csv`: each condition's means over noises of each column, and standard errors.

    What is known of a condition is in `known`.  With thresholds there is the margin of each column
    beyond its own, positive for memorized, and `verdict` goes by one of them, if it is there.
    Where noises are `counted`, `noises` says how many of it there are.
    Conditions that failed are there with what failed.  Further columns of the file of prompts stand
    at the end, under their names; `given NAME` where a column here has that name.
    """
    known = {
        name: field
        for name, field in _KNOWN.items()
        if any(getattr(case, field) for case in judged.cases)
    }
    carried = list(dict.fromkeys(name for case in judged.cases for name in case.others))
    rows = []
    for record, case in zip(judged.records, judged.cases, strict=True):
        row: dict[str, Any] = {"condition": case.condition}
        row |= {name: getattr(case, field) for name, field in known.items()}
        network = record["network"]
        if counted:
            row["noises"] = len(next(iter(network.values())))
        if decide_by in thresholds and decide_by in network:
            row["verdict"] = thresholds[decide_by].verdict(float(np.mean(network[decide_by])))
        for who in ("network", "oracle"):
            for name, values in record.get(who, {}).items():
                mean, error = mean_and_error(values)
                row |= {f"{who} {name}": mean, f"{who} {name} standard error": error}
                if who == "network" and name in thresholds:
                    row[f"margin {name}"] = thresholds[name].margin(mean)
        row |= {"failed": ""} if judged.failed else {}
        names = {name: f"given {name}" if name in row else name for name in carried}
        rows.append(row | {names[name]: case.others.get(name, "") for name in carried})
    empty = dict.fromkeys(rows[0] if rows else (), "")
    lost = [{"condition": one["condition"], "failed": one["failed"]} for one in judged.failed]
    return [*rows, *(empty | one for one in lost)]


def carried(row: Mapping[str, str]) -> dict[str, str]:
    """Of a row of `results.csv`, the columns that came from the file of prompts."""
    ours = {"condition", "noises", "verdict", "failed", *_KNOWN}
    return {
        name: text
        for name, text in row.items()
        if name not in ours and not name.startswith(("network ", "oracle ", "margin "))
    }


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over noises and its standard error, NaN of a single noise."""
    data = np.asarray(values, np.float64)
    if len(data) < 2:
        return float(data.mean()), float("nan")
    return float(data.mean()), float(data.std(ddof=1) / np.sqrt(len(data)))
