"""A detection run as one object, and as the rows of its files."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpjax.detection import intervals
from sharpjax.detection.calibration import Calibration, Threshold
from sharpjax.detection.evaluation import Evaluation, Interval, holm
from sharpjax.detection.summary import REFERENCE, Judged, Summary, direction, summarize, table_rows
from sharpjax.detection.summary import carried as carried_columns
from sharpjax.prompts import Case
from sharpjax.report.rows import flat, plain
from sharpjax.rundir.files import read_lines, within
from sharpjax.rundir.run import Run
from sharpjax.runs.detect import SECONDS_NAME

RESULTS_TABLE, SUMMARY_TABLE, COMPARISONS_TABLE = "results.csv", "summary.csv", "comparisons.csv"
RATES_TABLE = "verdicts.csv"
THRESHOLDS_NAME = "thresholds.json"  # the calibration that a run was judged by

_FACTS = ("decide_by", "remark", "costs", "level", "baseline", "until_sure")


@dataclasses.dataclass(frozen=True)
class Detection:
    """What a run came to, and what it was judged by.

    Attributes:
        judged: the values, and what is known.
        thresholds: None where there are none: there are no verdicts then.
        decide_by: the column that verdicts go by.
        remark: why there are no verdicts.
        costs: of each statistic, a condition: `forwards`, `tangents` and `seconds`.
        level: what the levels of conditions count.
        what: is judged: conditions or images.
        baseline: the model that every difference is from; the score without a condition if empty.
        until_sure: the rule by which noises stopped, if one did.
    """

    judged: Judged
    thresholds: Calibration | None = None
    decide_by: str | None = None
    remark: str = ""
    costs: Mapping[str, Mapping[str, float | None]] = dataclasses.field(default_factory=dict)
    level: str = "level"
    what: str = "condition"
    baseline: str = ""
    until_sure: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls, records: Sequence[dict[str, Any]], cases: Sequence[Case], **given: Any
    ) -> "Detection":
        """Of a run's records, what is known of each, and the other attributes."""
        return cls(Judged.of(records, cases, given.get("thresholds")), **given)

    @functools.cached_property
    def summaries(self) -> list[Summary]:
        """Figures of every column."""
        return summarize(self.judged)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of `results.csv`, a condition each."""
        counted = self.until_sure is not None
        return table_rows(self.judged, self.limits, self.verdicts_by, counted=counted)

    @property
    def facts(self) -> dict[str, Any]:
        """For `about.json`: what no other file of the run says."""
        return {name: getattr(self, name) for name in _FACTS}

    @property
    def limits(self) -> Mapping[str, Threshold]:
        """The threshold of every column that has one."""
        return self.thresholds.thresholds if self.thresholds else {}

    @property
    def verdicts_by(self) -> str | None:
        """The column of the verdicts, if there are any."""
        able = self.decide_by in self.limits and self.decide_by in self.judged.names()
        return self.decide_by if able else None

    @property
    def reference(self) -> str | None:
        """The column that others are compared with."""
        return next((n for n in self.judged.names() if n.split("@")[0] == REFERENCE), None)


def read(run: Run) -> Detection:
    """Of a finished run, from its own files: values from its records, labels from `results.csv`."""
    known = {
        row["condition"]: Case(
            row["condition"], row.get("known") or None, row.get("source", ""),
            int(row.get("level") or 0), float(rate) if (rate := row.get("copy_rate")) else None,
            others=carried_columns(row),
        )
        for row in run.table(RESULTS_TABLE)
    }  # fmt: skip
    path = within(run.folder, THRESHOLDS_NAME)
    thresholds = Calibration.load(path) if path.is_file() else None
    records = run.records()
    cases = [known.get(r["condition"], Case(r["condition"])) for r in records]
    names = {*_FACTS} & run.about.keys()
    about = {name: run.about[name] for name in names}
    what = "image" if run.kind == "detect images" else "condition"
    found = Detection.of(records, cases, thresholds=thresholds, what=what, **about)
    if found.judged.records and not found.judged.names():
        raise KeyError("the records have no statistic")
    return found


def costs(
    folder: Path, evaluations: Mapping[str, tuple[str, float, float]]
) -> dict[str, dict[str, float | None]]:
    """Of each statistic alone, a condition: `forwards`, `tangents` and `seconds`.

    Args:
        folder: of the run.
        evaluations: part of the run, forward evaluations and tangents of each.

    Seconds are those of the part that it is computed in with others, the median over batches of
    the run without its first, which holds compilation; None where there is no other.
    """
    taken: dict[str, list[float]] = {}
    for line in read_lines(folder / SECONDS_NAME, {"batch_size", "seconds"}):
        for part, seconds in line["seconds"].items():
            taken.setdefault(part, []).extend(s / line["batch_size"] for s in seconds[1:])
    return {
        name: {
            "forwards": forwards,
            "tangents": tangents,
            "seconds": float(np.median(taken[part])) if taken.get(part) else None,
        }
        for name, (part, forwards, tangents) in evaluations.items()
    }


def as_json(found: Detection) -> list[dict[str, Any]]:
    """The summaries as JSON values; a comparison says with what, the deciding one how it fares."""
    rows = [plain(dataclasses.asdict(summary)) for summary in found.summaries]
    for row in rows:
        row["verdicts"] = plain(rate_rows(found)) if row["name"] == found.verdicts_by else None
        if row["comparison"] is not None:
            row["comparison"]["reference"] = found.reference
    return rows


def answer(found: Detection) -> dict[str, Any]:
    """What `--json` prints of a run: every condition's values and verdict, thresholds, figures."""
    limits = {name: dataclasses.asdict(limit) for name, limit in found.limits.items()}
    told = {"decided_by": found.verdicts_by, "thresholds": limits, "results": found.rows}
    return plain(told) | {"summary": as_json(found)}


def rate_rows(found: Detection) -> list[dict[str, Any]]:
    """`verdicts.csv`: of what is known, how many are called memorized, with Wilson's 95% interval.

    Of the memorized that is the true-positive rate at the threshold in use, of the clean the
    false-positive rate; overall, and by source where there are several.
    """
    name = found.verdicts_by
    if name is None:
        return []
    called = np.array(
        [found.limits[name].margin(v) > 0 for v in found.judged.means("network", name)]
    )
    known = found.judged.verdicts
    sources = np.array([case.source for case in found.judged.cases], dtype=str)
    rows = []
    for kind, rate in (("memorized", "TPR"), ("clean", "FPR")):
        mine = known == kind
        of = sorted(set(sources[mine]) - {""})
        for source in ["all", *(of if len(of) > 1 else [])]:
            these = called[mine & ((sources == source) | (source == "all"))]
            if len(these):
                value = float(these.mean())
                share = Interval(value, *intervals.share(value, len(these)))
                rows.append(
                    {
                        "statistic": name, "known": kind, "source": source, "rate": rate,
                        "called": int(these.sum()), "of": len(these), **flat("share", share),
                    }
                )  # fmt: skip
    return rows


def summary_rows(found: Detection) -> list[dict[str, Any]]:
    """A row per statistic and question: which conditions, which noises, whose score."""
    rows = []
    network, one_noise = "network", "network, first noise"
    for one in found.summaries:
        questions: list[tuple[str, str, str, Evaluation | None]] = [
            (network, "all", "all", one.network),
            (one_noise, "all", "all", one.one_noise),
            ("exact score", "all", "all", one.oracle),
            *((network, "all", str(k), v) for k, v in one.by_source.items()),
            *((one_noise, "all", str(k), v) for k, v in one.by_source_one_noise.items()),
            *((network, f"level {k}", "all", v) for k, v in one.by_level.items()),
        ]
        cost = found.costs.get(one.name.split("@")[0], {})
        rows += [
            {
                "statistic": one.name, "direction": direction(one.name), "score": who,
                "memorized": memorized, "clean": clean, "num_memorized": figures.num_positive,
                "num_clean": figures.num_negative,
                "tpr_at_fpr": "<= 1%",
                **flat("auc", figures.auc), **flat("tpr", figures.tpr),
                "average_precision": figures.average_precision,
                **{k: cost.get(k, "") for k in ("forwards", "tangents", "seconds")},
            }
            for who, memorized, clean, figures in questions
            if figures is not None
        ]  # fmt: skip
    # nothing to judge: correlations are in summary.json
    return rows or [{"statistic": s.name, "direction": direction(s.name)} for s in found.summaries]


def comparison_rows(found: Detection) -> list[dict[str, Any]]:
    """`comparisons.csv`: every statistic against the reference, on the same conditions."""
    rows: list[dict[str, Any]] = [
        {
            "statistic": one.name, "reference": found.reference,
            "difference": versus.auc.value, "low": versus.auc.low, "high": versus.auc.high,
            "p_value": versus.p_value, "p_corrected": math.nan,
            "num_memorized": one.network.num_positive, "num_clean": one.network.num_negative,
        }
        for one in found.summaries
        if (versus := one.comparison) is not None and one.network is not None
    ]  # fmt: skip
    told = [row for row in rows if math.isfinite(row["p_value"])]
    for row, p in zip(told, holm([row["p_value"] for row in told]), strict=True):
        row["p_corrected"] = float(p)
    return rows
