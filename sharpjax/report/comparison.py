"""What a comparison of methods shows: copying against fidelity, kind by kind of prompts.

Tables are made of the rows of its CSV files, as they are written and as they are read again.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sharpjax.detection.evaluation import Interval
from sharpjax.mitigation.comparison import ALL, Comparison
from sharpjax.mitigation.methods import NONE
from sharpjax.mitigation.tradeoff import FEW, KEPT, Point
from sharpjax.report import mitigate, plots
from sharpjax.report.blocks import Block, Column, Figures, Section, Table, Text, number
from sharpjax.report.numbers import p_value
from sharpjax.report.rows import Rows, flat, interval_of, read_rows, write_tables
from sharpjax.rundir.files import within, write_text
from sharpjax.rundir.run import Run

CURVES_TABLE, STANDINGS_TABLE, ABOUT_NAME = "curves.csv", "standings.csv", "comparison.json"
_TEXTS = ("kind", "method", "rival")


def curve_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """`curves.csv`: every method at every strength, on the judging prompts of every kind."""
    return [
        {
            "kind": kind, "method": name, "strength": point.outcomes.strength,
            **flat("copies", point.copy_rate), "other": float(point.outcomes.other.mean()),
            **flat("fidelity", point.fidelity), **flat("success", point.success),
            "maker": _of(point, "maker"), "diversity": _of(point, "diversity"),
            "refused": _of(point, "refused"), **flat("hypervolume", curve.hypervolume),
            "evaluations": point.outcomes.evaluations, "seconds": point.outcomes.seconds,
        }
        for kind, of in comparison.kinds.items()
        for name, curve in of.curves.items()
        for point in curve.points
    ]  # fmt: skip


def _of(point: Point, name: str) -> float | None:
    """The mean of what is known of it; None of nothing."""
    values = getattr(point.outcomes, name)
    known = np.empty(0) if values is None else values[~np.isnan(values.astype(float))]
    return float(known.mean()) if len(known) else None


def standing_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """`standings.csv`: a method at its three chosen strengths, the most successful first."""

    def cells(prefix: str, point: Point | None, *names: str) -> dict[str, Any]:
        found: dict[str, Any] = {prefix: None if point is None else point.outcomes.strength}
        for name in names:
            value: Interval | None = None if point is None else getattr(point, name)
            found |= flat(f"{prefix}_{name}", value)
        return found

    return [
        {
            "kind": kind, "method": name, "prompts": len(of.kind.judged),
            **cells("best", one.best, "success", "copy_rate", "fidelity"),
            **cells("few", one.few, "copy_rate", "fidelity"),
            **cells("faithful", one.faithful, "copy_rate", "fidelity"),
            "rival": of.rival,
            **flat("difference", None if one.against is None else one.against.difference),
            "p_value": one.p_value,
        }
        for kind, of in comparison.kinds.items()
        for name, one in of.standings.items()
    ]  # fmt: skip


def about(comparison: Comparison) -> dict[str, Any]:
    """`comparison.json`: what clean prompts are without mitigation, and how many prompts judge."""
    return {
        "reference": comparison.reference,
        "diversity": None if comparison.diversity != comparison.diversity else comparison.diversity,
        "judges_fidelity": comparison.judges_fidelity,
        "kinds": {
            name: {"tuning": len(of.kind.tuning), "judged": len(of.kind.judged)}
            for name, of in comparison.kinds.items()
        },
    }


def write(folder: Path, comparison: Comparison) -> list[Path]:
    """The tables as CSV, the plot, and what to read them by."""
    tables = {CURVES_TABLE: curve_rows(comparison), STANDINGS_TABLE: standing_rows(comparison)}
    written = write_tables(folder, tables)
    write_text(folder / ABOUT_NAME, json.dumps(about(comparison), indent=1) + "\n")
    if tables[STANDINGS_TABLE]:
        block = figures(tables[CURVES_TABLE], comparison.reference)
        written.append(plots.write(block, folder / "tradeoff.png"))
    return written


def sections_of(run: Run) -> list[Section]:
    """The trade-off, and images of the most successful method; or of the only one."""
    curves, standings = (read_rows(run, n, texts=_TEXTS) for n in (CURVES_TABLE, STANDINGS_TABLE))
    if not curves:
        return mitigate.sections_of(run)
    known = json.loads(within(run.folder, ABOUT_NAME).read_bytes())
    return [
        Section("Mitigation: the trade-off", blocks(curves, standings, known)),
        Section("Mitigation: before and after", _best(run, standings)),
    ]


def blocks_of(comparison: Comparison) -> list[Block]:
    """Of one that was just made."""
    return blocks(curve_rows(comparison), standing_rows(comparison), about(comparison))


def blocks(curves: Rows, standings: Rows, known: Mapping[str, Any]) -> list[Block]:
    """Tables of the rows of the CSV files, the plots, and who reaches the aim."""
    shown: list[Block] = [Text(about_line(known))]
    if standings:
        harmless = [r for r in curves if r["method"] == NONE and r["copies"] <= FEW]
        shown += [
            Text(
                f"{row['kind']}: without mitigation {row['copies']:.0%} of the images are copies: "
                "nothing is to be cured here, or the judge does not know what they repeat.",
                "note",
            )
            for row in harmless
        ]
        kinds = {row["kind"] for row in harmless}
        judged = [row for row in standings if row["kind"] not in kinds]
        shown += [Text(line) for line in verdict_lines(judged, known["reference"])]
        shown += [Text("To use one: sharpjax mitigate --method NAME --strength NUMBER.")]
        shown += [figures(curves, known["reference"]), standing_table(standings)]
    return [*shown, curve_table(curves)]


def about_line(known: Mapping[str, Any]) -> str:
    """How many prompts tune and judge, and what is usual."""
    parts = "; ".join(
        f"{name}: {count['judged']} judge, {count['tuning']} others choose strengths"
        for name, count in known["kinds"].items()
    )
    told = f"Memorized prompts of each kind ({parts}). "
    if not known["judges_fidelity"]:
        return told + "Nobody judges what images show: fidelity is 1 of each that was drawn."
    told += f"Clean prompts show what was asked for in {known['reference']:.2f} of their images"
    if known["diversity"] is not None:
        told += f", two of a prompt's differ by {known['diversity']:.2f}"
    return told + "."


def standing_table(rows: Rows) -> Table:
    """Every method at its chosen strengths."""

    def both(prefix: str, first: str, second: str) -> list[Column]:
        heads = {"copy_rate": "copies", "fidelity": "fidelity", "success": "success"}
        return [
            number(f"{heads[first]}, {prefix}", interval_of(f"{prefix}_{first}")),
            number(f"{heads[second]} there", f"{prefix}_{second}", "{:.2f}"),
            number("at", prefix, "{:g}"),
        ]

    return Table(
        "Each method at strengths that the tuning prompts of the kind chose",
        [
            Column("kind", filtered=True), Column("method", filtered=True),
            *both("best", "success", "copy_rate"),
            *both("few", "fidelity", "copy_rate"),
            *both("faithful", "copy_rate", "fidelity"),
            number("against the rival", interval_of("difference")), number("p", "p_value", p_value),
        ],
        rows,
        note="best: the most successes, shown and no copy; few: copies in "
        f"{FEW:.0%} of the tuning images at most; faithful: at least {KEPT:.0%} of the clean "
        "prompts' fidelity there. The rival is the method with the most successes on the tuning "
        "prompts: successes less its own, paired by prompt; p of the sign-flip test, corrected for "
        "all of the table's (Holm). 95% intervals, the prompt as the unit",
        searchable=True,
        grouped=1,
    )  # fmt: skip


def curve_table(rows: Rows) -> Table:
    """Every method at every strength."""
    return Table(
        "Copying and fidelity over strengths, on prompts that nothing was tuned on",
        [
            Column("kind", filtered=True), Column("method", filtered=True),
            number("hypervolume", interval_of("hypervolume")),
            number("strength", form="{:g}"), number("copies", interval_of("copies")),
            number("other", form="{:.3f}"), number("fidelity", interval_of("fidelity")),
            number("success", interval_of("success")), number("maker", form="{:.2f}"),
            number("diversity", form="{:.2f}"), number("refused", form="{:.2f}"),
            number("evaluations", form="{:.0f}"), number("seconds", form="{:.2f}"),
        ],
        rows,
        note="copies: of any memorized image; other: of one that belongs to another prompt; "
        "success: shown and no copy; maker: by the maker that was asked for; diversity: one less "
        "the likeness of two images of a prompt; refused: not drawn, and so not shown. 95% "
        "intervals, the prompt as the unit. evaluations: forward passes of an image, sampling and "
        "tangents included, as seconds",
        searchable=True,
        grouped=3,
    )  # fmt: skip


def verdict_lines(standings: Rows, reference: float) -> list[str]:
    """Of every kind who copies seldom and keeps the fidelity; of rows as `standing_rows`."""
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in standings):
        own = [row for row in standings if row["kind"] == kind]
        # at either of the strengths that tuning prompts chose
        able = {
            f"{row['method']} at {row[point]:g}": None
            for row in own
            for point in ("few", "best")
            if row[point] is not None
            and row[f"{point}_copy_rate"] <= FEW
            and row[f"{point}_fidelity"] >= KEPT * reference
        }
        aim = f"copies in {FEW:.0%} of the images at most, and {KEPT:.0%} of the fidelity"
        top = max(own, key=lambda row: row["best_success"])
        if able:
            lines.append(f"{kind}: {aim}: {', '.join(able)}.")
        elif not top["best_success"]:
            lines.append(f"{kind}: no method shows what was asked for without a copy.")
        else:
            lines.append(
                f"{kind}: no method has {aim}. The most successful is {top['method']} at "
                f"{top['best']:g}: copies in {top['best_copy_rate']:.0%}, fidelity "
                f"{top['best_fidelity']:.2f}."
            )
    return lines


def figures(curves: Rows, reference: float) -> Figures:
    """Copies against fidelity of every method over its strengths, a line a kind of prompts."""
    copies, fidelity = interval_of("copies"), interval_of("fidelity")
    kinds = list(dict.fromkeys(row["kind"] for row in curves))
    kinds = [kind for kind in kinds if kind != ALL] or kinds
    starts: dict[str, Any] = {}
    points: dict[str, dict[str, list[Any]]] = {}
    for row in curves:
        if row["kind"] not in kinds:
            continue
        point = copies(row), fidelity(row), f"{row['strength']:g}"
        if row["method"] == NONE:
            starts[row["kind"]] = point
        else:
            points.setdefault(row["method"], {}).setdefault(row["kind"], []).append(point)
    draw = partial(plots.tradeoff, starts=starts, reference=reference, most=FEW, kept=KEPT)
    return Figures(
        [
            (
                f"Copies and fidelity of {name} over its strengths",
                partial(draw, name=name, curves=own),
            )
            for name, own in points.items()
        ],
        "Copy rate against fidelity over strengths, a line a kind of memorized prompts, from "
        f"without mitigation (square) on; shaded: copies in {FEW:.0%} at most and {KEPT:.0%} of "
        "the clean prompts' fidelity. Intervals are in the table.",
        x="copies of memorized images (fraction of samples)",
        y="fidelity to the prompt",
        columns=4,
        size=(3.1, 3.0),
        shared=True,
    )


def _best(run: Run, standings: Rows) -> list[Block]:
    """Images of the most successful method beside those without."""
    if not standings:
        return [Text("No images were judged.", "note")]
    best = max(
        (row for row in standings if row["kind"] == ALL), key=lambda row: row["best_success"]
    )
    told = f"{best['method']} at {best['best']:g}"
    wanted = ((NONE, 0.0), (best["method"], best["best"]))
    records = [r for r in run.records() if (r["method"], r["strength"]) in wanted]
    both = [pair for pair in mitigate.pairs(records) if len(pair[1]) == 2]
    said = Text(f"The most successful method of the comparison: {told}.")
    return [said, mitigate.pictures(run, both)]
