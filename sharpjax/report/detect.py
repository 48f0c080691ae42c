"""What a detection run shows: verdicts, how well the statistics do, what they cost."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sharpjax.detection.calibration import CALIBRATION_NAME, Calibration
from sharpjax.detection.evaluation import FEWEST, Evaluation, Interval, roc, roc_band
from sharpjax.detection.summary import Judged, Summary, direction
from sharpjax.detection.summary import carried as carried_columns
from sharpjax.prompts import VERDICTS, Case
from sharpjax.report import maps, plots, spectrum
from sharpjax.report.blocks import Block, Cell, Column, Figures, Section, Table, Text, number
from sharpjax.report.detection import (
    COMPARISONS_TABLE,
    RATES_TABLE,
    RESULTS_TABLE,
    SUMMARY_TABLE,
    THRESHOLDS_NAME,
    Detection,
    as_json,
    comparison_rows,
    rate_rows,
    read,
    summary_rows,
)  # fmt: skip
from sharpjax.report.numbers import interval, p_value, with_error
from sharpjax.report.rows import Rows, interval_of, write_tables
from sharpjax.rundir.files import within, write_text
from sharpjax.rundir.run import SETTINGS_NAME, Run
from sharpjax.runs.maps import MAPS_NAME
from sharpjax.runs.spectrum import SPECTRA_NAME


def write(folder: Path, found: Detection) -> list[Path]:
    """The tables and plots of a run; their paths. Those that an earlier judgement left go."""
    if not found.judged.records:
        return []
    tables = {
        RESULTS_TABLE: found.rows, SUMMARY_TABLE: summary_rows(found),
        COMPARISONS_TABLE: comparison_rows(found), RATES_TABLE: rate_rows(found),
    }  # fmt: skip
    written = [*write_tables(folder, tables), folder / "summary.json"]
    write_text(written[-1], json.dumps(as_json(found), indent=2) + "\n")
    if found.thresholds is not None:
        written.append(found.thresholds.save(folder / THRESHOLDS_NAME))
    if (curves := roc_figures(found)) is not None:
        written.append(plots.write(curves, folder / "roc.png"))
    if (by_level := dose(found)) is not None:
        written.append(plots.write(by_level[1], folder / "dose_response.png"))
    for name in {*tables, THRESHOLDS_NAME, "roc.png", "dose_response.png"}:
        if folder / name not in written:  # thresholds of old verdicts would be read as these
            (folder / name).unlink(missing_ok=True)
    return written


def sections(found: Detection) -> list[Section]:
    """Everything: what is called memorized, how well that goes, where values lie, costs."""
    shown = [Section("Verdicts", _verdicts(found))]
    if found.judged.records:
        shown += [
            Section("How well each statistic detects", _figures(found)),
            Section("Where the values lie", [_distributions(found)]),
        ]
    if (by_level := dose(found)) is not None:
        shown.append(Section("Dose and response", list(by_level)))
    if found.costs:
        shown.append(Section("Cost", [cost_table(found)]))
    return shown


def sections_of(run: Run) -> list[Section]:
    """Of a run's files: all of a finished one, or what is there of one that is not."""
    if not (rows := run.table(RESULTS_TABLE)):
        return _unfinished(run)
    found = read(run)
    shown = [*sections(found), *_spectra(run, found), *_maps(run)]
    total = run.settings.get("num_conditions", run.settings.get("num_images", len(rows)))
    if len(rows) != total:
        told = f"{RESULTS_TABLE} has {len(rows)} of {total} {found.what}s: it was changed after"
        told += " the run. Nothing is known here of those that it lacks."
        shown[0] = Section("Verdicts", [Text(told, "note"), *shown[0].blocks])
    return shown


def _spectra(run: Run, found: Detection) -> list[Section]:
    """Of the sharpest and the flattest condition, if the run has computed them."""
    column = found.decide_by or next(iter(found.judged.names()), "")
    inside = within(run.folder, Path(SPECTRA_NAME, column))
    if not column or not (inside / SETTINGS_NAME).is_file():
        return []
    computed = Run.open(inside)
    named = zip(("sharpest", "flattest"), computed.settings["conditions"], strict=False)
    told = Text(f"By {column}: {', '.join(f'{which} {name!r}' for which, name in named)}.")
    return [Section(one.title, [told, *one.blocks]) for one in spectrum.sections_of(computed)]


def _maps(run: Run) -> list[Section]:
    """Where its images are memorized, if the run has computed that."""
    inside = within(run.folder, MAPS_NAME)
    return maps.sections_of(Run.open(inside)) if (inside / SETTINGS_NAME).is_file() else []


def _unfinished(run: Run) -> list[Section]:
    path = within(run.folder, CALIBRATION_NAME)
    if path.is_file():
        told = "These thresholds were set on prompts known to be clean. Give "
        told += f"{CALIBRATION_NAME} to sharpjax detect by --calibration to have verdicts."
        return [Section("Thresholds", [Text(told), threshold_table(Calibration.load(path))])]
    records = run.records()
    total = run.settings.get("num_conditions", run.settings.get("num_images"))
    told = (
        f"All {total} are computed, but the table of results ({RESULTS_TABLE}) is missing or "
        "empty. The same command writes it, and computes nothing again."
        if len(records) == total
        else f"This run is not finished: {len(records)} of {total or 'an unknown number of'} are "
        "computed. The same command goes on from here; verdicts, figures and plots come with its "
        "end."
    )
    found = Detection.of(records, [Case(record["condition"]) for record in records])
    blocks: list[Block] = [Text(told, "note"), condition_table(found)]
    return [Section("What is there so far", blocks[: 1 + bool(records)])]


def _verdicts(found: Detection) -> list[Block]:
    judged, name = found.judged, found.verdicts_by
    blocks: list[Block] = []
    if found.baseline:
        note = (
            f"s_D and H_D are here differences from the scores of {found.baseline} under the same "
        )
        blocks.append(Text(note + "condition, not from the score without one.", "note"))
    if name is not None:
        limit = found.limits[name]
        told = [limit.verdict(value) for value in judged.means("network", name)]
        called = sum(one.startswith("memorized") for one in told)
        side = "above" if limit.direction > 0 else "below"
        blocks += [
            Text(
                f"{called} of {len(told)} are called memorized: {name} {side} {limit.value:.4g}, "
                f"set on {limit.num_prompts} clean ones so that {limit.quantile:.0%} of new ones "
                f"are not beyond it (95% interval: {interval(limit.low, limit.high)}). "
                f"{sum('unsure' in one for one in told)} lie within the threshold's interval: "
                "unsure."
            )
        ]
        if rates := rate_rows(found):
            blocks.append(rate_table(rates))
        if found.thresholds and (
            own := found.thresholds.set_on([c.condition for c in judged.cases])
        ):
            told_of = f"{len(own)} of these prompts set the thresholds, {own[0]!r} the first. How "
            told_of += "often clean prompts are called memorized only others can say."
            blocks.append(Text(told_of, "note"))
    elif found.remark or not found.limits:
        blocks += [Text(found.remark or "No verdicts: thresholds are not known.", "note")]
    if spent := noises_used(found):
        blocks.append(Text(spent))
    if judged.records:
        blocks.append(condition_table(found))
        shown = {column.split("@")[0] for column in judged.names()}
        if absent := [name for name in found.costs if name not in shown]:
            told_why = "which are measured by clean prompts; run sharpjax calibrate with the same"
            told_why += " settings and give its file by --calibration."
            blocks.append(Text(f"Not shown: {', '.join(absent)}, {told_why}"))
    return [*blocks, *failures(judged)]


def noises_used(found: Detection) -> str:
    """Of a run that stopped where it was sure: how many noises that took; else empty."""
    rule, judged = found.until_sure, found.judged
    if rule is None or not judged.records:
        return ""
    counts = [len(record["network"][rule["column"]]) for record in judged.records]
    return (
        f"{sum(counts)} noises, {np.mean(counts):.2f} a {found.what} and at most {rule['most']}: "
        "added while more could change the verdict. The chance that a verdict is another than "
        f"that of all {rule['most']} is at most {rule['error']:.0%}. Figures below are of as many "
        "noises as each has."
    )


def rate_table(rates: Rows) -> Table:
    """How the verdicts fare where the truth is known."""
    columns = [
        Column("known"), Column("source"), number("called memorized", "called"), number("of"),
        number("share", interval_of("share")), Column("is the", "rate"),
    ]  # fmt: skip
    return Table("Verdicts against what is known", columns, rates, grouped=1, file=RATES_TABLE)


def condition_table(found: Detection) -> Table:
    """Every condition, the most suspicious first where there are verdicts."""
    judged, chosen, rows = found.judged, found.verdicts_by, found.rows
    if chosen is not None:
        margin = f"margin {chosen}"
        rows = sorted(rows, key=lambda row: math.inf if row[margin] == "" else -row[margin])
    columns = [
        Column(found.what, _shortened, short=60),
        Column("verdict", lambda row: Cell.verdict(row.get("verdict")), filtered=True),
        number("margin", f"margin {chosen}", "{:+.3g}"),
        Column("known", lambda row: Cell.verdict(row.get("known")), filtered=True),
        Column("source", filtered=True, detail=True),
        *(
            number(head + name, partial(_value, f"{who} {name}"), detail=bool(detail))
            for who, head in (("network", ""), ("oracle", "exact score: "))
            for name in judged.names(who)
            for detail in [head or (chosen and name != chosen)]
        ),
        number("level", detail=True),
        number("copy rate", "copy_rate", detail=True),
        Column("failed", detail=True),
        *(Column(name, detail=True) for name in carried_columns(rows[0] if rows else {})),
    ]
    most = 0 if chosen is None and _is_judged(found) else 20
    return Table(
        f"Every {found.what}: mean over noises ± its standard error", columns, rows,
        searchable=True, most=most, file=RESULTS_TABLE,
    )  # fmt: skip


def _shortened(row: Mapping[str, Any], most: int = 500) -> str:
    text: str = row["condition"]
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def _value(name: str, row: Mapping[str, Any]) -> Cell:
    mean, error = row[name], row[f"{name} standard error"]
    return Cell("") if mean == "" else Cell(with_error(mean, error), mean)


def failures(judged: Judged) -> list[Block]:
    """Which conditions gave no numbers."""
    if not judged.failed:
        return []
    told = "; ".join(f"{r['condition'][:60]!r}: {r['failed']}" for r in judged.failed[:5])
    more = f", and {len(judged.failed) - 5} more" if len(judged.failed) > 5 else ""
    return [Text(f"Failed: {len(judged.failed)} ({told}{more}); left out.", "wrong")]


def _is_judged(found: Detection) -> bool:
    return bool(found.summaries) and found.summaries[0].network is not None


def _figures(found: Detection) -> list[Block]:
    compared = comparison_rows(found)
    shown: Sequence[Block | None] = [
        *map(Text, remarks(found)),
        summary_table(found) if _is_judged(found) or _has_levels(found) else None,
        comparison_table(compared) if compared else None,
        apart_table(found.summaries, "by_source", "against the clean ones of each source"),
        apart_table(found.summaries, "by_level", "of the memorized ones of each level"),
        roc_figures(found),
    ]
    return [one for one in shown if one is not None]


def remarks(found: Detection) -> list[str]:
    """What a reader must know beside the figures: who was judged, and how fine the rates are."""
    what, verdicts = f"{found.what}s", found.judged.verdicts.tolist()
    counts = {name: verdicts.count(name) for name in VERDICTS}
    lines = []
    if any(counts.values()):
        told = f"Known of the {what}: {counts['memorized']} memorized, {counts['clean']} clean, "
        told += f"{counts['between']} between (left out)"
        if counts["another"]:
            told += f", {counts['another']} that copy another's image (left out)"
        unknown = len(verdicts) - sum(counts.values())
        lines = [told + (f", {unknown} without a label (left out)." if unknown else ".")]
    figures = found.summaries[0].network if found.summaries else None
    if figures is None:
        one = [name for name in ("memorized", "clean") if counts[name]]
        told = (
            f"all labelled {what} are {one[0]}, and an AUC needs both kinds."
            if one
            else f"the ground truth of both classes is not known for these {what}. Labels "
            "(memorized, clean) come from a column label in the file of prompts, or of images."
        )
        return [*lines, f"No ROC: {told}"]
    fewest, clean = min(figures.num_positive, figures.num_negative), figures.num_negative
    if clean < 368:
        lines.append(
            f"Clean {what}: {clean}; the false-positive rate moves in steps of {1 / clean:.1%}, so "
            f"TPR at FPR ≤ 1% allows {int(0.01 * clean)} false positives, and where the true 1% "
            "lies is not known: below 368 the interval begins at 0."
        )
    if fewest < FEWEST:
        told = f"No intervals: a class has only {fewest}, of which one would say next to nothing."
        lines.append(told)
    return lines


_NAME = Column("statistic @ t", lambda one: one.name)


def _figure(head: str, which: str, name: str, form: str = "") -> Column:
    """A figure of one of the evaluations of a summary."""

    def value(summary: Summary) -> Any:
        found = getattr(summary, which)
        return None if found is None else getattr(found, name)

    return number(head, value, form)


def summary_table(found: Detection) -> Table:
    """Detection figures with intervals, of one noise and of all; the exact score's beside."""
    return Table(
        f"Detection of memorized {found.what}s",
        [
            _NAME,
            Column("means memorized", lambda one: "large" if direction(one.name) > 0 else "small"),
            _figure("AUC", "network", "auc"),
            _figure("TPR at FPR ≤ 1%", "network", "tpr"),
            _figure("average precision", "network", "average_precision", "{:.3f}"),
            _figure("AUC, one noise", "one_noise", "auc"),
            _figure("AUC of the exact score", "oracle", "auc"),
            number("Spearman with level", lambda one: _correlation(one.rank_correlation)),
            number("exact score's", lambda one: _correlation(one.oracle_rank_correlation)),
        ],
        found.summaries,
        note="95% intervals; [-]: too few for one",
        searchable=True,
    )


def _correlation(value: tuple[float, float] | None) -> Cell | None:
    if value is None or math.isnan(value[0]):
        return None
    return Cell(f"{value[0]:+.2f} (p = {value[1]:.1g})", value[0])


def comparison_table(rows: Rows) -> Table:
    """By how much each statistic beats the reference."""

    def difference(row: Mapping[str, Any]) -> Interval:
        return Interval(row["difference"], row["low"], row["high"])

    return Table(
        f"Paired with {rows[0]['reference']}",
        [
            Column("statistic"), number("AUC less the reference's", difference),
            number("p", "p_value", p_value), number("corrected", "p_corrected", p_value),
            number("memorized", "num_memorized"), number("clean", "num_clean"),
        ],
        rows,
        note="on the same conditions, with 95% intervals; p of no difference, two-sided; corrected "
        "for so many comparisons by Holm's procedure",
    )  # fmt: skip


def apart_table(summaries: Sequence[Summary], field: str, whose: str) -> Table | None:
    """AUC `by_source` of the clean conditions, or `by_level` of the memorized ones."""
    count = "num_negative" if field == "by_source" else "num_positive"
    kinds: dict[Any, Evaluation] = {}
    for summary in summaries:
        kinds |= getattr(summary, field)

    def auc(kind: Any, one: Summary) -> Interval | None:
        found = getattr(one, field).get(kind)
        return None if found is None else found.auc

    names = {"memorized": "planted, not copied", "": "(no source)"}
    columns = [
        number(f"{names.get(kind, kind)} ({getattr(one, count)})", partial(auc, kind))
        for kind, one in kinds.items()
    ]
    return Table(f"AUC {whose}", [_NAME, *columns], summaries) if kinds else None


def roc_figures(found: Detection) -> Figures | None:
    """ROC curves of every statistic, the exact score's beside; None without both classes."""
    if not _is_judged(found):
        return None
    judged = found.judged
    chosen = np.isin(judged.verdicts, ("memorized", "clean"))
    labels = judged.verdicts[chosen] == "memorized"
    enough = min(labels.sum(), (~labels).sum()) >= FEWEST
    panels = []
    for one in found.summaries:
        curves, band = {}, None
        for who, label, figures in (
            ("oracle", "exact score", one.oracle), ("network", "network", one.network),
        ):  # fmt: skip
            if figures is not None:
                values = direction(one.name) * judged.means(who, one.name)[chosen]
                curves[label] = roc(values, labels), figures.auc.value
                band = roc_band(values, labels) if enough else None
        label = f"ROC curve of {one.name}, area {curves['network'][1]:.3f}"
        panels.append((label, partial(plots.roc, name=one.name, curves=curves, band=band)))
    told = "True against false positives; the numbers are areas; dashed: the exact score of the "
    told += "training set, where that is known; shaded: pointwise 95% band."
    told += "" if enough else f" No band: a class has fewer than {FEWEST}."
    x, y = "false-positive rate", "true-positive rate"
    return Figures(panels, told, x=x, y=y, size=(3.4, 3.5))


def _distributions(found: Detection) -> Figures:
    labels, panels = found.judged.verdicts, []
    for name in found.judged.names():
        values, limit = found.judged.means("network", name), found.limits.get(name)
        classes = {
            label or "not known": values[labels == label]
            for label in (*VERDICTS, "")
            if (labels == label).any()
        }
        told = f"Histogram of {name}: {', '.join(f'{len(v)} {k}' for k, v in classes.items())}"
        draw = partial(plots.distribution, name=name, classes=classes, threshold=limit)
        panels.append((told, draw))
    told = "Means over noises of every statistic; dashed: its threshold, shaded that one's 95% "
    told += "interval."
    return Figures(panels, told, y=f"{found.what}s", size=(3.6, 2.7), whole="y")


def _has_levels(found: Detection) -> bool:
    return len({case.level for case in found.judged.cases} - {0}) > 1


def dose(found: Detection) -> tuple[Table, Figures] | None:
    """Every statistic, and the copy rate, against the level; None without two levels.

    A table of means with their standard errors, the exact score's beside, and plots.
    """
    if not _has_levels(found):
        return None
    judged, cases = found.judged, found.judged.cases
    planted = np.flatnonzero([case.level > 0 for case in cases])
    levels = np.array([cases[i].level for i in planted])
    series = {
        name: {
            label: judged.means(who, name)[planted]
            for who, label in (("network", "network"), ("oracle", "exact score"))
            if name in judged.names(who)
        }
        for name in judged.names()
    }
    rates = [cases[i].copy_rate for i in planted]
    if None not in rates:
        series["copy rate"] = {"measured": np.array(rates, float)}

    def mean(level: int, name: str) -> str:
        first, *exact = (values[levels == level] for values in series[name].values())
        told = f"{first.mean():.3g}"
        if len(first) > 1:  # one condition has no spread
            told += f" ± {first.std(ddof=1) / np.sqrt(len(first)):.1g}"
        return told + "".join(f" | {values.mean():.3g}" for values in exact)

    heads = [
        number(f"{level} ({np.sum(levels == level)})", partial(mean, level))
        for level in np.unique(levels)
    ]
    title = f"By level (number of {found.what}s): mean ± standard error"
    title += " | exact score" if judged.names("oracle") else ""
    draw = partial(plots.dose_response, levels=levels)
    draws = [
        (f"{name} against the level", partial(draw, name=name, series=one))
        for name, one in series.items()
    ]
    told = f"By level: {found.level}. Dots are {found.what}s, bars standard errors of the mean."
    return (
        Table(title, [Column("level", str), *heads], list(series), note=f"level: {found.level}"),
        Figures(draws, told, x=found.level, size=(3.4, 3.0)),
    )


def cost_table(found: Detection) -> Table:
    """What each statistic takes a condition: network evaluations and seconds."""
    return Table(
        f"Cost of one {found.what}",
        [
            Column("statistic"), number("forward evaluations", "forwards"), number("tangents"),
            number("seconds", form="{:.3g}"),
        ],
        [{"statistic": name, **one} for name, one in found.costs.items()],
        note="seconds are those of the part that a statistic is computed in with others: the "
        "median over batches without the first, which holds compilation",
    )  # fmt: skip


def threshold_table(calibration: Calibration) -> Table:
    """Thresholds with their intervals."""
    limits = calibration.thresholds
    one = next(iter(limits.values()))
    note = f"set on {one.num_prompts} clean ones so that {one.quantile:.0%} of new ones are on "
    note += "the other side"
    if not math.isfinite(one.high - one.low):
        note += "; too few: the interval is open (72 close that of 95%, 368 that of 99%)"
    return Table(
        "Thresholds",
        [
            Column("statistic @ t", str),
            Column("memorized is", lambda n: "above" if limits[n].direction > 0 else "below"),
            number("threshold", lambda n: limits[n].value),
            number("95% interval", lambda n: interval(limits[n].low, limits[n].high)),
        ],
        list(limits),
        note=note,
    )
