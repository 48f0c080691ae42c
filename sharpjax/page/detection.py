"""What the page shows of a detection run: verdicts, how well they do, what they cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpjax import plots
from sharpjax.detection.calibration import CALIBRATION_NAME
from sharpjax.detection.evaluation import FEWEST, roc, roc_band
from sharpjax.detection.statistics import STATISTICS
from sharpjax.page import spectrum
from sharpjax.page.blocks import Block, Cell, Column, Figures, Section, Table, Text
from sharpjax.page.drawing import figure
from sharpjax.page.runs import Run, number, read_run
from sharpjax.report.numbers import interval, with_error
from sharpjax.rundir import SETTINGS_NAME, within
from sharpjax.spectrum import SPECTRA_NAME

_PANELS = 16  # of a kind of plot


def sections(run: Run) -> list[Section]:
    """Of a run that is finished, or of what is there of one that is not."""
    rows = run.table("results.csv")
    if not rows:
        return _unfinished(run)
    names = _names(rows[0])
    if not names:
        raise KeyError("results.csv has no column of a statistic")
    finite = [row for row in rows if not row.get("failed")]
    found = [Section("Verdicts", _verdicts(run, rows, names))]
    if finite:
        found += [
            Section("How well each statistic detects", _figures(run, finite, names)),
            Section("Where the values lie", _distributions(run, finite, names)),
        ]
        if blocks := _dose(finite, names):
            found.append(Section("Dose and response", blocks))
    if blocks := _costs(run):
        found.append(Section("Cost", blocks))
    return found


def spectra(run: Run) -> list[Section]:
    """Of the sharpest and the flattest condition, if the run has computed them."""
    rows = run.table("results.csv")
    column = _deciding(run, _names(rows[0])) if rows else ""
    inside = within(run.folder, Path(SPECTRA_NAME, column))
    if not column or not (inside / SETTINGS_NAME).is_file():
        return []
    computed = read_run(inside)
    named = zip(("sharpest", "flattest"), computed.settings["conditions"], strict=False)
    ends = ", ".join(f"{which} {name!r}" for which, name in named)
    told = f"By {column}: {ends}."
    return [Section(one.title, [Text(told), *one.blocks]) for one in spectrum.sections(computed)]


def _names(row: Mapping[str, str]) -> list[str]:
    names = [name.removeprefix("network ") for name in row if name.startswith("network ")]
    return [name for name in names if not name.endswith(" half-width")]


def _direction(name: str) -> int:
    entry = STATISTICS.get(name.split("@")[0])  # an older version may have had others
    return 1 if entry is None else entry.direction


def _column(rows: Sequence[Mapping[str, str]], name: str) -> np.ndarray:
    return np.array([number(row, name) for row in rows])


def _deciding(run: Run, names: Sequence[str]) -> str:
    chosen = run.about.get("decide_by")
    return str(chosen) if chosen in names else names[0]


def _threshold(run: Run, name: str) -> Mapping[str, Any] | None:
    return (run.about.get("thresholds") or {}).get(name)


def _shortened(text: str, most: int = 500) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def _end(value: float | None, sign: int) -> float:
    """An end of an interval: open ones are null in JSON."""
    return sign * np.inf if value is None else float(value)


def _unfinished(run: Run) -> list[Section]:
    """Of a run that was stopped, or whose tables are not written: what its records say."""
    calibration = run.document(CALIBRATION_NAME)
    if calibration is not None:
        return [Section("Thresholds", _thresholds(calibration))]
    records = run.records()
    total = run.settings.get("num_conditions", run.settings.get("num_images"))
    if len(records) == total:
        told = (
            f"All {total} are computed, but the table of results (results.csv) is missing or "
            "empty. The same command writes it, and computes nothing again."
        )
    else:
        told = (
            f"This run is not finished: {len(records)} of {total or 'an unknown number of'} are "
            "computed. The same command goes on from here; verdicts, figures and plots come with "
            "its end."
        )
    blocks: list[Block] = [Text(told, "note")]
    kept = [record for record in records if "network" in record]
    if kept:
        names = [n for n, v in kept[0]["network"].items() if np.ndim(v) == 1]
        rows = []
        for record in kept:
            cells = [Cell(str(record["condition"]))]
            for name in names:
                values = np.asarray(record["network"].get(name, []), float)
                mean = float(values.mean()) if values.size else float("nan")
                cells.append(Cell(f"{mean:.4g}", mean))
            rows.append(cells)
        columns = [Column("condition"), *(Column(name, numeric=True) for name in names)]
        blocks.append(Table("Means over noises so far", columns, rows, searchable=True))
    return [Section("What is there so far", blocks)]


def _thresholds(calibration: Mapping[str, Any]) -> list[Block]:
    rows = [
        [
            Cell(name),
            Cell("above" if one["direction"] > 0 else "below"),
            Cell(f"{one['value']:.4g}", one["value"]),
            Cell(_interval_text(one)),
        ]
        for name, one in calibration.get("thresholds", {}).items()
    ]
    columns = [
        Column("statistic @ t"), Column("memorized is"), Column("threshold", numeric=True),
        Column("95% interval", numeric=True),
    ]  # fmt: skip
    told = (
        "These thresholds were set on prompts known to be clean. Give "
        f"{CALIBRATION_NAME} to sharpjax detect by --calibration to have verdicts."
    )
    return [Text(told), Table("Thresholds", columns, rows)]


def _interval_text(limit: Mapping[str, Any]) -> str:
    return interval(_end(limit["low"], -1), _end(limit["high"], 1))


def _verdicts(run: Run, rows: Sequence[dict[str, str]], names: Sequence[str]) -> list[Block]:
    what = "image" if run.kind == "detect images" else "condition"
    judged = "verdict" in rows[0]
    failed = sum(bool(row.get("failed")) for row in rows)
    blocks: list[Block] = []
    if judged:
        name = _deciding(run, names)
        called = sum(row["verdict"].startswith("memorized") for row in rows)
        unsure = sum("unsure" in row["verdict"] for row in rows)
        told = f"{called} of {len(rows)} are called memorized"
        if (limit := _threshold(run, name)) is not None:
            told += (
                f": {name} {'above' if _direction(name) > 0 else 'below'} "
                f"{limit['value']:.4g}, which {limit['quantile']:.0%} of "
                f"{limit['num_prompts']} clean ones do not reach (95% interval of the threshold: "
                f"{_interval_text(limit)})"
            )
        blocks.append(Text(f"{told}. {unsure} lie within the threshold's interval: unsure."))
    else:
        remark = run.about.get("remark") or (
            "thresholds are not known. sharpjax calibrate sets them on clean prompts."
        )
        blocks.append(Text(f"No verdicts: {remark.removeprefix('No verdicts: ')}", "note"))
    total = run.settings.get("num_conditions", run.settings.get("num_images", len(rows)))
    if len(rows) != total:
        told = f"results.csv has {len(rows)} of {total} {what}s: it was changed after the run."
        blocks.append(Text(told, "note"))
    if failed:
        blocks.append(Text(f"{failed} failed and are left out of all figures.", "note"))
    oracle = [name.removeprefix("oracle ") for name in rows[0] if name.startswith("oracle ")]
    oracle = [name for name in oracle if not name.endswith(" half-width")]
    columns = [Column(what)]
    columns += [Column("verdict", filtered=True), Column("margin", numeric=True)] if judged else []
    extra = [name for name in ("known", "source") if name in rows[0]]
    columns += [Column(name, filtered=True) for name in extra]
    columns += [Column(n, numeric=True) for n in names]
    columns += [Column(f"exact score: {n}", numeric=True) for n in oracle]
    numbers = [name for name in ("level", "copy_rate") if name in rows[0]]
    columns += [Column(name.replace("_", " "), numeric=True) for name in numbers]
    columns += [Column("failed")] if failed else []
    table = []
    if judged:  # the most suspicious first
        margins = np.nan_to_num(_column(rows, f"margin {_deciding(run, names)}"), nan=-np.inf)
        rows = [rows[i] for i in np.argsort(-margins, kind="stable")]
    for row in rows:
        cells = [Cell(_shortened(row["condition"]))]
        if judged:
            verdict = row["verdict"]
            look = "unsure" if "unsure" in verdict else verdict
            margin = number(row, f"margin {_deciding(run, names)}")
            shown = "" if np.isnan(margin) else f"{margin:+.3g}"
            cells += [Cell(verdict, look=look), Cell(shown, margin)]
        cells += [Cell(row[name], look=row[name] if name == "known" else "") for name in extra]
        for who, chosen in (("network", names), ("oracle", oracle)):
            for name in chosen:
                mean, half = (number(row, f"{who} {name}{end}") for end in ("", " half-width"))
                cells.append(Cell("" if np.isnan(mean) else with_error(mean, half), mean))
        for name in numbers:
            value = number(row, name)
            cells.append(Cell("" if np.isnan(value) else f"{value:g}", value))
        if failed:
            cells.append(Cell(row.get("failed", "")))
        table.append(cells)
    caption = (
        f"Every {what}; ± is the half-width of the 95% t-interval over noises. A head sorts by "
        "its column."
    )
    blocks.append(Table(caption, columns, table, searchable=True))
    return blocks


def _labels(rows: Sequence[Mapping[str, str]]) -> np.ndarray:
    return np.array([row.get("known") or "" for row in rows], dtype=str)


def _figures(run: Run, rows: Sequence[dict[str, str]], names: Sequence[str]) -> list[Block]:
    labels = _labels(rows)
    chosen = np.isin(labels, ("memorized", "clean"))
    positive = labels[chosen] == "memorized"
    if not positive.any() or positive.all():
        told = (
            "No ground truth of both kinds is known for these, so there is nothing to judge the "
            "statistics by: no ROC curve, no error rates. Labels come from a column label "
            "(memorized, clean) in the file of prompts."
        )
        return [Text(told, "note")]
    counts = f"{positive.sum()} memorized and {(~positive).sum()} clean"
    enough = min(positive.sum(), (~positive).sum()) >= FEWEST
    panels = []
    for name in names[:_PANELS]:
        curves: list[dict[str, Any]] = [{}, {}]
        bands = {}
        for place, who in enumerate(("network", "oracle")):
            values = _direction(name) * _column(rows, f"{who} {name}")[chosen]
            if np.isfinite(values).all():
                fpr, tpr = roc(values, positive)
                area = float(np.trapezoid(tpr, fpr))
                curves[place][name] = fpr, tpr, f"{area:.3f}"
                if who == "network" and enough:
                    bands[name] = roc_band(values, positive)
        if not curves[0]:
            continue
        label = f"ROC curve of {name}, area {curves[0][name][2]}"
        panels.append(figure(label, plots.roc_curves, *curves, bands=bands))
    blocks: list[Block] = [
        Text(f"Judged by {counts}, of which it is known from elsewhere."),
        *_summary_tables(run.document("summary.json") or []),
        Figures(
            panels,
            "True against false positives; shaded: pointwise 95% bootstrap band; dashed: the exact "
            "score, what a perfect network would give, where the training set is known; the "
            "numbers are areas."
            + ("" if enough else f" No band: a class has fewer than {FEWEST}."),
        ),
    ]
    if len(names) > _PANELS:
        blocks.append(Text(f"The first {_PANELS} of {len(names)} statistics are drawn."))
    return blocks


def _interval(value: Mapping[str, Any] | None) -> Cell:
    if value is None:
        return Cell("")
    if value["low"] is None:
        return Cell(f"{value['value']:.3f} [-]", value["value"])
    text = f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return Cell(text, value["value"])


def _summary_tables(summaries: Sequence[Mapping[str, Any]]) -> list[Block]:
    judged = [one for one in summaries if one.get("network")]
    if not judged:
        return []
    nearest = judged[0]["network"].get("nearest")
    columns = [
        Column("statistic @ t"), Column("means memorized"), Column("AUC", numeric=True),
        Column("TPR at FPR nearest to 1%" if nearest else "TPR at FPR ≤ 1%", numeric=True),
        Column("average precision", numeric=True), Column("AUC, one noise", numeric=True),
    ]  # fmt: skip
    others = ["one_noise"]
    if any(one.get("oracle") for one in judged):
        columns.append(Column("AUC of the exact score", numeric=True))
        others.append("oracle")
    rows = [
        [
            Cell(one["name"]),
            Cell("large" if _direction(one["name"]) > 0 else "small"),
            *(_interval(one["network"][f]) for f in ("auc", "tpr", "average_precision")),
            *(_interval((one.get(k) or {}).get("auc")) for k in others),
        ]
        for one in judged
    ]
    tables: list[Block] = [
        Table(
            "Detection figures with 95% intervals; [-]: too few for one",
            columns,
            rows,
            searchable=True,
        )
    ]
    for field, title in (
        ("by_source", "AUC against the clean ones of each source"),
        ("by_level", "AUC of the memorized ones of each level, against all clean ones"),
    ):
        kinds = list(dict.fromkeys(kind for one in judged for kind in one.get(field, {})))
        if kinds:
            heads = [Column(kind or "(no source)", numeric=True) for kind in kinds]
            body = [
                [
                    Cell(one["name"]),
                    *(_interval((one[field].get(k) or {}).get("auc")) for k in kinds),
                ]
                for one in judged
            ]
            tables.append(Table(title, [Column("statistic @ t"), *heads], body))
    return tables


def _distributions(run: Run, rows: Sequence[dict[str, str]], names: Sequence[str]) -> list[Block]:
    labels = _labels(rows)
    panels = []
    for name in names[:_PANELS]:
        values = _column(rows, f"network {name}")
        classes = {
            label or "not known": values[labels == label]
            for label in ("memorized", "clean", "between", "")
            if (labels == label).any()
        }
        limit = _threshold(run, name)
        ends = limit and (
            float(limit["value"]), _end(limit["low"], -1), _end(limit["high"], 1)
        )  # fmt: skip
        label = f"Histogram of {name}: {', '.join(f'{len(v)} {k}' for k, v in classes.items())}"
        panels.append(figure(label, plots.distributions, name, classes, ends))
    return [
        Figures(
            panels,
            "Means over noises of every statistic; dashed: the threshold of verdicts, shaded its "
            "95% interval.",
        )
    ]


def _dose(rows: Sequence[dict[str, str]], names: Sequence[str]) -> list[Block]:
    levels = np.nan_to_num(_column(rows, "level")).astype(int)
    planted = levels > 0
    if len(np.unique(levels[planted])) < 2:
        return []
    kept = [row for row, chosen in zip(rows, planted, strict=True) if chosen]
    sizes = levels[planted]
    panels = []
    rates = _column(kept, "copy_rate")
    for name in names[:_PANELS]:
        exact = _column(kept, f"oracle {name}")
        panels.append(
            figure(
                f"{name} against the level", plots.dose_response, sizes,
                {name: _column(kept, f"network {name}")},
                {name: exact} if np.isfinite(exact).all() else {}, None,
            )
        )  # fmt: skip
    if np.isfinite(rates).all():
        panels.append(
            figure("Copy rate against the level", plots.dose_response, sizes, {}, {}, rates)
        )
    return [
        Figures(
            panels,
            "By level: how often an image was repeated, or how many images a condition has. Dots "
            "are conditions, bars standard errors of the mean.",
        )
    ]


def _costs(run: Run) -> list[Block]:
    costs = run.about.get("costs")
    if not costs:
        return []
    rows = [
        [
            Cell(name),
            Cell(f"{one['forwards']:g}", one["forwards"]),
            Cell(f"{one['tangents']:g}", one["tangents"]),
            Cell("" if one["seconds"] is None else f"{one['seconds']:.3g}", one["seconds"]),
        ]
        for name, one in costs.items()
    ]
    columns = [
        Column("statistic"), Column("forward evaluations", numeric=True),
        Column("tangents", numeric=True), Column("seconds", numeric=True),
    ]  # fmt: skip
    caption = (
        "Of one condition. Seconds are those of the part that a statistic is computed in with "
        "others: the median over batches without the first, which holds compilation."
    )
    return [Table(caption, columns, rows)]
