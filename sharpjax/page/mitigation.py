"""What the page shows of a mitigation run: images before and after, and how methods trade off."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sharpjax import plots
from sharpjax.detection.evaluation import Interval
from sharpjax.mitigation.comparison import LESS
from sharpjax.mitigation.methods import NONE
from sharpjax.mitigation.tradeoff import KEPT
from sharpjax.page.blocks import (
    Block,
    Cell,
    Column,
    Figures,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
)
from sharpjax.page.drawing import figure
from sharpjax.page.runs import Run, number, shown_image
from sharpjax.report.comparison import CHOSEN_TABLE, CURVES_TABLE, verdict_line
from sharpjax.report.mitigation import IMAGES_TABLE, PROMPTS_NAME
from sharpjax.report.numbers import p_value

_ROWS, _IMAGES = 24, 5  # prompts that are shown, and images of each side


def sections(run: Run) -> list[Section]:
    """Of one method, or of a comparison of all."""
    if curves := run.table(CURVES_TABLE):
        chosen = run.table(CHOSEN_TABLE)
        return [
            Section("Mitigation: the trade-off", _comparison(run, curves, chosen)),
            Section("Mitigation: before and after", _best(run, chosen)),
        ]
    prompts = run.document(PROMPTS_NAME)
    if prompts is None:
        records = run.records()
        told = (
            "This run is not finished, or an older version made it: "
            f"{sum(bool(r.get('images')) for r in records)} sets of images are there. The same "
            "command goes on from here; tables come with its end."
        )
        return [Section("Mitigation", [Text(told, "note"), *_unfinished(run, records)])]
    return [Section("Mitigation: before and after", _prompts(run, prompts))]


def _unfinished(run: Run, records: Sequence[Mapping[str, Any]]) -> list[Block]:
    pairs: dict[str, dict[str, list[str]]] = {}
    for record in records:
        side = "without" if record["method"] == NONE else record["method"]
        pairs.setdefault(record["prompt"], {})[side] = record.get("images", [])
    return [_pictures(run, list(pairs.items()), set())] if pairs else []


def _copied(run: Run) -> set[str]:
    """Files that copy a training image, where that was judged."""
    return {row["file"] for row in run.table(IMAGES_TABLE) if row.get("copied") == "True"}


def _pictures(
    run: Run, prompts: Sequence[tuple[str, Mapping[str, Sequence[str]]]], copied: set[str]
) -> Pictures:
    """``prompts`` maps each to files by the title that they stand under."""
    rows = []
    for prompt, sides in prompts[:_ROWS]:
        groups = []
        for title, files in sides.items():
            shown: list[Picture] = []
            for j, file in enumerate(files[:_IMAGES]):
                label = f"{prompt}, {title}, image {j + 1}"
                one = shown_image(run, file, label, copied=file in copied)
                if one is not None:
                    shown.append(one)
            if shown:
                groups.append((title, shown))
        if groups:
            rows.append((prompt, groups))
    caption = "Red frame: a copy of a training image." if copied else "Images of each prompt."
    if len(prompts) > _ROWS:
        caption += f" {_ROWS} of {len(prompts)} prompts are shown; all files are in images/."
    return Pictures(rows, caption)


def _prompts(run: Run, prompts: Sequence[Mapping[str, Any]]) -> list[Block]:
    about = run.about
    method = about.get("method", "mitigation")
    what = f"{method} at {about['strength']:g}" if "strength" in about else method
    treated = [row for row in prompts if row["treated"]]
    blocks: list[Block] = [
        Text(
            f"{len(treated)} of {len(prompts)} prompts are treated by {what}; the others' images "
            "are those that no mitigation gives."
        )
    ]
    failed = [row for row in prompts if row.get("error")]
    if failed:
        blocks.append(Text(f"{len(failed)} treatments failed; the table says why.", "note"))
    columns = [Column("prompt"), Column("detection", filtered=True), Column("score difference",
        numeric=True)]  # fmt: skip
    names = {"copied": "copies", "fidelity": "fidelity", "score_difference": "‖s_D‖ of the noise"}
    names = {
        name: head for name, head in names.items()
        if any(row.get(f"{name}_before") is not None for row in prompts)
    }  # fmt: skip
    for head in names.values():
        columns += [Column(f"{head}, without", numeric=True), Column(f"{head}, with", numeric=True)]
    columns += [Column("failed")] if failed else []
    rows = []
    for row in prompts:
        verdict = row.get("verdict") or "not asked"
        look = "unsure" if "unsure" in verdict else verdict.split(" ")[0]
        cells = [Cell(row["prompt"]), Cell(verdict, look=look), _plain(row.get("statistic"))]
        for name in names:
            cells += [_plain(row.get(f"{name}_{side}")) for side in ("before", "after")]
        cells += [Cell(row.get("error") or "")] if failed else []
        rows.append(cells)
    blocks.append(Table("Every prompt", columns, rows, searchable=True))
    shown = [
        (row["prompt"], {"without": row["images_before"], f"with {what}": row["images_after"]})
        for row in sorted(prompts, key=lambda row: not row["treated"])
    ]
    blocks.append(_pictures(run, shown, _copied(run)))
    return blocks


def _plain(value: float | None) -> Cell:
    return Cell("") if value is None else Cell(f"{value:.3g}", value)


def _interval(row: Mapping[str, str], name: str) -> Interval:
    return Interval(*(number(row, f"{name}{end}") for end in ("", "_low", "_high")))


def _cell(row: Mapping[str, str], name: str) -> Cell:
    interval = _interval(row, name)
    return Cell("" if np.isnan(interval.value) else str(interval), interval.value)


def _comparison(
    run: Run, curves: Sequence[dict[str, str]], chosen: Sequence[dict[str, str]]
) -> list[Block]:
    baseline = next((row for row in curves if row["method"] == NONE), None)
    blocks: list[Block] = []
    if chosen:
        figures = ("reduction", "kept", "success")
        told = [{"method": r["method"], **{n: number(r, n) for n in figures}} for r in chosen]
        blocks.append(Text(verdict_line(told)))
    if baseline is not None and chosen:
        first = chosen[0]
        reference = number(first, "fidelity") / number(first, "kept")
        drawn: dict[str, list[tuple[Interval, Interval, str]]] = {}
        for row in curves:
            if row["method"] != NONE:
                point = _interval(row, "copies"), _interval(row, "fidelity")
                label = f"{number(row, 'strength'):g}"
                drawn.setdefault(row["method"], []).append((*point, label))
        start = _interval(baseline, "copies"), _interval(baseline, "fidelity")
        panels = [
            figure(
                f"Copies and fidelity of {name} over its strengths", plots.tradeoff,
                {name: points}, start, reference, less=LESS, kept=KEPT,
            )
            for name, points in drawn.items()
        ]  # fmt: skip
        blocks.append(
            Figures(
                panels,
                "Copy rate against fidelity over strengths, 95% bootstrap intervals over prompts "
                f"and seeds; square: without mitigation; shaded: {LESS:.0%} fewer copies at "
                f"{KEPT:.0%} of the clean prompts' fidelity.",
            )
        )
    if chosen:
        heads = [
            Column("method"), Column("strength", numeric=True), Column("copies", numeric=True),
            Column("fewer copies", numeric=True), Column("fidelity", numeric=True),
            Column("fidelity kept", numeric=True), Column("success", numeric=True),
            Column("p against sail", numeric=True),
        ]  # fmt: skip
        rows = [
            [
                Cell(row["method"]), _value(row, "strength", "{:g}"), _cell(row, "copies"),
                _value(row, "reduction", "{:.0%}"), _cell(row, "fidelity"),
                _value(row, "kept", "{:.0%}"), _cell(row, "success"),
                Cell(p_value(p := number(row, "p_value")), p),
            ]
            for row in chosen
        ]  # fmt: skip
        caption = (
            "Each method at the strength that other prompts chose. Success: the prompt is shown "
            "and nothing copied."
        )
        blocks.append(Table(caption, heads, rows, searchable=True))
    heads = [
        Column("method", filtered=True), Column("strength", numeric=True),
        Column("copies", numeric=True), Column("fidelity", numeric=True),
        Column("success", numeric=True), Column("evaluations", numeric=True),
        Column("seconds", numeric=True),
    ]  # fmt: skip
    rows = [
        [
            Cell(row["method"]), _value(row, "strength", "{:g}"), _cell(row, "copies"),
            _cell(row, "fidelity"), _cell(row, "success"), _value(row, "evaluations", "{:.0f}"),
            _value(row, "seconds", "{:.2f}"),
        ]
        for row in curves
    ]  # fmt: skip
    caption = "Every method at every strength; evaluations and seconds are those of an image."
    blocks.append(Table(caption, heads, rows, searchable=True))
    return blocks


def _value(row: Mapping[str, str], name: str, shape: str) -> Cell:
    value = number(row, name)
    return Cell("" if np.isnan(value) else shape.format(value), value)


def _best(run: Run, chosen: Sequence[dict[str, str]]) -> list[Block]:
    """Images of the most successful method beside those without."""
    rows = run.table(IMAGES_TABLE)
    if not chosen or not rows:
        return [Text("No images were judged.", "note")]
    best = max(chosen, key=lambda row: number(row, "success"))
    name, strength = best["method"], number(best, "strength")
    prompts: dict[str, dict[str, list[str]]] = {}
    with_it = f"with {name} at {strength:g}"
    for row in rows:
        mine = (row["method"], number(row, "strength")) == (name, strength)
        if mine or row["method"] == NONE:
            side = with_it if mine else "without"
            prompts.setdefault(row["prompt"], {}).setdefault(side, []).append(row["file"])
    both = [(prompt, sides) for prompt, sides in prompts.items() if len(sides) == 2]
    return [
        Text(f"The most successful method of the comparison: {name} at {strength:g}."),
        _pictures(run, both, _copied(run)),
    ]
