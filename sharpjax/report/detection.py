"""What a finished detection run shows: tables on the terminal, CSV files, pictures."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from sharpjax import plots
from sharpjax.detection.calibration import Calibration
from sharpjax.detection.evaluation import FEWEST, Evaluation, roc, roc_band
from sharpjax.detection.run import SECONDS_NAME
from sharpjax.detection.summary import Judged, Summary, direction, write_table
from sharpjax.report.numbers import interval
from sharpjax.rundir import read_lines, write_bytes, write_csv, write_text

_FIGURES = ("auc", "tpr", "average_precision")


def write_detection(
    folder: Path,
    judged: Judged,
    summaries: Sequence[Summary],
    costs: dict[str, dict[str, float]],
    *,
    calibration: Calibration | None = None,
    decide_by: str | None = None,
) -> list[Path]:
    """``results.csv``, ``summary.csv``, ``summary.json`` and the plots of a run; their paths."""
    if not judged.records:
        return []
    path = folder / "summary.json"
    write_text(path, json.dumps(as_json(summaries), indent=2) + "\n")
    written = [
        write_table(folder / "results.csv", judged, calibration, decide_by=decide_by),
        _write_summaries(folder / "summary.csv", summaries, costs),
        path,
    ]
    if summaries and summaries[0].network is not None:
        written.append(_plot_roc(folder / "roc.png", judged, summaries))
    levels = np.array([case.level for case in judged.cases])
    if len(set(levels[levels > 0])) > 1:
        rows = np.flatnonzero(levels > 0)
        rates = [judged.cases[i].copy_rate for i in rows]
        known = None not in rates
        written.append(
            plots.dose_response(
                levels[rows],
                {name: judged.means("network", name)[rows] for name in judged.names()},
                {name: judged.means("oracle", name)[rows] for name in judged.names("oracle")},
                np.array(rates) if known else None,
                folder / "dose_response.png",
            )
        )
    return written


def _plot_roc(path: Path, judged: Judged, summaries: Sequence[Summary]) -> Path:
    chosen = np.isin(judged.verdicts, ("memorized", "clean"))
    curves: dict[str, dict[str, Any]] = {"network": {}, "oracle": {}}
    bands = {}
    for summary in summaries:
        for who, found in curves.items():
            figures = getattr(summary, who)
            if figures is not None:
                values = direction(summary.name) * judged.means(who, summary.name)
                labels = judged.verdicts[chosen] == "memorized"
                fpr, tpr = roc(values[chosen], labels)
                found[summary.name] = fpr, tpr, f"{figures.auc.value:.3f}"
                if who == "network" and not np.isnan(figures.auc.low):
                    bands[summary.name] = roc_band(values[chosen], labels)
    return plots.roc_curves(curves["network"], curves["oracle"], path, bands=bands)


def costs(
    folder: Path, evaluations: dict[str, tuple[str, float, float]]
) -> dict[str, dict[str, float]]:
    """Of each statistic alone, a condition: ``forwards``, ``tangents`` and ``seconds``.

    Args:
        folder: of the run.
        evaluations: part of the run, forward evaluations and tangents of each.

    Seconds are those of the part that it is computed in with others, the median over batches of
    the run without its first, which holds compilation; NaN where there is no other.
    """
    found: dict[str, dict[str, float]] = {}
    taken: dict[str, list[float]] = {}
    for line in read_lines(folder / SECONDS_NAME, {"batch_size", "seconds"}):
        for part, seconds in line["seconds"].items():
            taken.setdefault(part, []).extend(s / line["batch_size"] for s in seconds[1:])
    for name, (part, forwards, tangents) in evaluations.items():
        found[name] = {
            "forwards": forwards,
            "tangents": tangents,
            "seconds": float(np.median(taken[part])) if taken.get(part) else float("nan"),
        }
    return found


def _write_summaries(
    path: Path, summaries: Sequence[Summary], costs: dict[str, dict[str, float]]
) -> Path:
    """A row per statistic and question: which conditions, which noises, whose score."""
    rows = []
    for summary in summaries:
        questions: list[tuple[str, str, str, Evaluation | None]] = [
            ("network", "all", "all", summary.network),
            ("network, first noise", "all", "all", summary.one_noise),
            ("exact score", "all", "all", summary.oracle),
            *(("network", "all", str(k), v) for k, v in summary.by_source.items()),
            *(
                ("network, first noise", "all", str(k), v)
                for k, v in summary.by_source_one_noise.items()
            ),
            *(("network", f"level {k}", "all", v) for k, v in summary.by_level.items()),
        ]
        for who, memorized, clean, figures in questions:
            if figures is None:
                continue
            row: dict[str, Any] = {
                "statistic": summary.name,
                "direction": direction(summary.name),
                "score": who,
                "memorized": memorized,
                "clean": clean,
                "num_memorized": figures.num_positive,
                "num_clean": figures.num_negative,
                "tpr_at_fpr": "nearest to 1%" if figures.nearest else "<= 1%",
            }
            for key in _FIGURES:
                interval = getattr(figures, key)
                row |= {key: interval.value, f"{key}_low": interval.low}
                row |= {f"{key}_high": interval.high}
            cost = costs.get(summary.name.split("@")[0], {})
            row |= {key: cost.get(key, "") for key in ("forwards", "tangents", "seconds")}
            rows.append(row)
    if not rows:  # nothing to judge: correlations are in summary.json
        rows = [{"statistic": s.name, "direction": direction(s.name)} for s in summaries]
    write_csv(path, rows)
    return path


def summary_table(summaries: Sequence[Summary]) -> Table:
    """Detection figures with intervals, of one noise and of all; the oracle's beside."""
    has_oracle = any(s.oracle or s.oracle_rank_correlation for s in summaries)
    ranked = any(s.rank_correlation for s in summaries)
    table = Table(title="Detection of memorized conditions, 95% intervals")
    table.add_column("statistic @ t", no_wrap=True)
    table.add_column("means memorized")
    compared = any(s.comparison for s in summaries)
    nearest = any(s.network and s.network.nearest for s in summaries)
    columns = ["AUC", "TPR at FPR nearest to 1%" if nearest else "TPR at FPR ≤ 1%"]
    columns += ["average precision", "AUC, one noise"]
    columns += ["exact-score AUC"] if has_oracle else []
    columns += ["AUC less score_difference's"] if compared and not has_oracle else []
    columns += ["Spearman with level"] if ranked else []
    columns += ["exact score"] if ranked and has_oracle else []
    for column in columns:
        table.add_column(column, justify="right")
    for summary in summaries:
        network, versus = summary.network, summary.comparison
        row = [summary.name, "large" if direction(summary.name) > 0 else "small"]
        row += ["-"] * 3 if network is None else [str(getattr(network, f)) for f in _FIGURES]
        row.append("-" if summary.one_noise is None else str(summary.one_noise.auc))
        if has_oracle:
            row.append("-" if summary.oracle is None else str(summary.oracle.auc))
        elif compared:
            row.append("-" if versus is None else f"{versus.auc}{_p_value(versus.p_value)}")
        if ranked:
            row.append(_correlation(summary.rank_correlation))
            row += [_correlation(summary.oracle_rank_correlation)] if has_oracle else []
        table.add_row(*row)
    return table


def apart_table(summaries: Sequence[Summary], which: str) -> Table | None:
    """AUC against the clean conditions of each source, or of the memorized ones of each level."""
    field = {"source": "by_source", "level": "by_level"}[which]
    kinds: dict[Any, Evaluation] = {}
    for summary in summaries:
        kinds |= getattr(summary, field)
    if not kinds:
        return None
    title = {
        "source": "AUC against the clean conditions of each source",
        "level": "AUC of the memorized conditions of each level, against all clean ones",
    }[which]
    table = Table(title=title)
    table.add_column("statistic @ t", no_wrap=True)
    for kind, figures in kinds.items():
        name = {"memorized": "planted, not copied", "": "(no source)"}.get(kind, kind)
        count = figures.num_negative if which == "source" else figures.num_positive
        head = f"level {name}" if which == "level" else escape(str(name))
        table.add_column(f"{head} ({count})", justify="right")
    for summary in summaries:
        found = getattr(summary, field)
        table.add_row(summary.name, *(str(found[k].auc) if k in found else "-" for k in kinds))
    return table


def cost_table(costs: dict[str, dict[str, float]]) -> Table:
    """What each statistic takes a condition: network evaluations and seconds."""
    table = Table(title="Cost a condition: forward evaluations and tangents; seconds of its part")
    table.add_column("statistic", no_wrap=True)
    for column in ("forwards", "tangents", "seconds"):
        table.add_column(column, justify="right")
    for name, cost in costs.items():
        seconds = "-" if np.isnan(cost["seconds"]) else f"{cost['seconds']:.3g}"
        table.add_row(name, f"{cost['forwards']:g}", f"{cost['tangents']:g}", seconds)
    return table


def _p_value(p: float) -> str:
    """Of 2,000 resamples, which cannot tell less than one in a thousand; none of too few."""
    if math.isnan(p):
        return ""
    return " p < 0.001" if p < 0.001 else f" p = {p:.2g}"


def _correlation(value: tuple[float, float] | None) -> str:
    if value is None or np.isnan(value[0]):
        return "-"
    return f"{value[0]:+.2f} (p = {value[1]:.1g})"


def remarks(judged: Judged, summaries: Sequence[Summary]) -> list[str]:
    """What a reader must know beside the table: who was judged, and how fine the rates are."""
    lines = []
    verdicts = judged.verdicts.tolist()
    counts = {name: verdicts.count(name) for name in ("memorized", "clean", "between")}
    if any(counts.values()):
        unknown = len(verdicts) - sum(counts.values())
        lines.append(
            f"Known of the conditions: {counts['memorized']} memorized, {counts['clean']} clean, "
            f"{counts['between']} between (left out)"
            + (f", {unknown} without a label (left out)." if unknown else ".")
        )
    if not judged.records:
        return lines + failures(judged)
    figures = summaries[0].network if summaries else None
    if figures is None:
        one = [name for name in ("memorized", "clean") if counts[name]]
        lines.append(
            f"No ROC: all labelled conditions are {one[0]}, and an AUC needs both kinds."
            if len(one) == 1
            else "No ROC: the ground truth of both classes is not known for these conditions."
        )
    elif figures.num_negative < 200 and not figures.nearest:
        lines.append(
            f"Clean conditions: {figures.num_negative}; the false-positive rate moves in steps of "
            f"{1 / figures.num_negative:.1%}, so TPR at FPR ≤ 1% allows "
            f"{int(0.01 * figures.num_negative)} false positives."
        )
    few = min(figures.num_positive, figures.num_negative) if figures else FEWEST
    if few < FEWEST:
        lines.append(
            f"No intervals: a class has only {few}, and resamples of so few hardly differ."
        )
    return lines + failures(judged)


def failures(judged: Judged) -> list[str]:
    """Which conditions gave no numbers."""
    if not judged.failed:
        return []
    shown = "; ".join(
        f"{escape(repr(r['condition'][:60]))}: {escape(r['failed'])}" for r in judged.failed[:5]
    )
    more = f", and {len(judged.failed) - 5} more" if len(judged.failed) > 5 else ""
    return [f"[bold red]Failed: {len(judged.failed)}[/bold red] ({shown}{more}); left out."]


def verdict_table(judged: Judged, calibration: Calibration, name: str, *, count: int = 20) -> Table:
    """The conditions with the largest margins beyond a statistic's threshold."""
    limit = calibration.thresholds[name]
    sign = ">" if limit.direction > 0 else "<"
    means = judged.means("network", name)
    margins = np.array([limit.margin(value) for value in means])
    found = int(np.sum(margins > 0))
    caption = (
        f"threshold: {limit.quantile:.0%} of {limit.num_prompts} clean ones are on this side; its "
        f"95% interval is {interval(limit.low, limit.high)}"
    )
    if len(margins) > count:
        caption += f"; {count} of {len(margins)} shown, all in results.csv"
    table = Table(
        title=f"{found} of {len(margins)} called memorized: {name} {sign} {limit.value:.4g}",
        caption=caption,
    )
    table.add_column("condition")
    for column in (name, "margin", "verdict", "known"):
        table.add_column(column, justify="right" if column in (name, "margin") else "left")
    for i in np.argsort(-margins, kind="stable")[:count]:
        table.add_row(
            escape(judged.cases[i].condition[:60]),
            f"{means[i]:.4g}",
            f"{margins[i]:+.3g}",
            limit.verdict(means[i]),
            judged.cases[i].verdict or "-",
        )
    return table


def values_table(judged: Judged, *, count: int = 20) -> Table:
    """The first conditions with their means: what is left to show where nothing is known."""
    more = len(judged.records) - count
    table = Table(
        title="Means of each condition",
        caption=f"and {more} more in results.csv" if more > 0 else None,
    )
    table.add_column("condition")
    for name in judged.names():
        table.add_column(name, justify="right")
    columns = [judged.means("network", name) for name in judged.names()]
    for case, *values in list(zip(judged.cases, *columns, strict=True))[:count]:
        table.add_row(escape(case.condition[:60]), *(f"{value:.4g}" for value in values))
    return table


def threshold_table(calibration: Calibration) -> Table:
    """Thresholds with their intervals."""
    table = Table(title="Thresholds")
    table.add_column("statistic @ t", no_wrap=True)
    table.add_column("memorized is")
    for column in ("threshold", "95% interval"):
        table.add_column(column, justify="right")
    for name, one in calibration.thresholds.items():
        table.add_row(
            name,
            "above" if one.direction > 0 else "below",
            f"{one.value:.4g}",
            interval(one.low, one.high),
        )
    if calibration.thresholds:
        table.caption = f"{one.quantile:.0%} of {one.num_prompts} clean ones are on the other side"
        if not math.isfinite(one.high - one.low):
            table.caption += (
                "; too few: the interval is open (72 close that of 95%, 368 that of 99%)"
            )
    return table


def dose_table(judged: Judged) -> Table | None:
    """Mean of every statistic by level, with its standard error and the exact score's mean."""
    own = np.array([case.level for case in judged.cases], dtype=int)
    levels = np.unique(own[own > 0])
    if len(levels) < 2:
        return None
    table = Table(
        title="Dose-response: mean ± standard error over conditions"
        + (" | exact score" if judged.names("oracle") else "")
    )
    table.add_column("level", no_wrap=True)
    for level in levels:
        table.add_column(str(level), justify="right")
    rates = [case.copy_rate for case in judged.cases]
    if None not in [rates[i] for i in np.flatnonzero(own > 0)]:
        known = np.array([np.nan if rate is None else rate for rate in rates])
        table.add_row("copy rate", *(f"{known[own == n].mean():.2f}" for n in levels))
        table.add_row(
            "memorized",
            *(
                f"{np.sum(judged.verdicts[own == n] == 'memorized')} of {np.sum(own == n)}"
                for n in levels
            ),
            end_section=True,
        )
    for name in judged.names():
        cells = []
        for level in levels:
            rows = own == level
            values = judged.means("network", name)[rows]
            cell = f"{values.mean():.3g}"
            if len(values) > 1:  # one condition has no spread
                cell += f" ± {values.std(ddof=1) / np.sqrt(len(values)):.1g}"
            if name in judged.names("oracle"):
                cell += f" | {judged.means('oracle', name)[rows].mean():.3g}"
            cells.append(cell)
        table.add_row(name, *cells)
    return table


def copy_shipped_grid(model_directory: Path, folder: Path) -> Path | None:
    """Bring the model's own ``samples.png`` beside the run's plots, if it ships one."""
    source = model_directory / "samples.png"
    if not source.is_file():
        return None
    write_bytes(folder / "samples.png", source.read_bytes())
    return folder / "samples.png"


def as_json(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """The summaries as JSON values."""
    return [plain(dataclasses.asdict(summary)) for summary in summaries]


def plain(value: Any) -> Any:
    """As JSON values, which have neither NaN nor infinity: null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
