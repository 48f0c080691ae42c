"""What local dimension shows: a curve of every image, and the level that says the most."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sharpjax.report import plots
from sharpjax.report.blocks import Block, Cell, Column, Figures, Section, Table, Text, number
from sharpjax.report.drawing import MOST
from sharpjax.report.rows import Rows, read_rows, write_tables
from sharpjax.rundir.run import Run

DIMENSION_TABLE, PICTURE_NAME = "dimension.csv", "dimension.png"
_NAMES = ("lhsd", "flipd", "transition_mass")


def rows_of(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row an image and level."""
    rows = []
    for record in records:
        for k, t in enumerate(record.get("times", ())):
            row = {"image": record["condition"], "t": t, "chosen": int(t == record["chosen"])}
            for name in _NAMES:
                errors = record.get(f"{name}_error")
                row |= {name: record[name][k], f"{name}_error": errors and errors[k]}
            rows.append(row | {"coordinates": record["coordinates"]})
    return rows


def write(folder: Path, records: Sequence[dict[str, Any]]) -> list[Path]:
    """The table and the plot of a run; their paths."""
    rows = rows_of(records)
    if not rows:
        return []
    figure = plots.write(curves(rows), folder / PICTURE_NAME)
    return [*write_tables(folder, {DIMENSION_TABLE: rows}), figure]


def table(rows: Rows) -> Table:
    """Of every image the level of the least transition mass."""
    return Table(
        "Local dimension, at the level that says the most",
        [
            Column("image"), number("t"), number("LHSD", partial(_with_error, "lhsd")),
            number("FLIPD", partial(_with_error, "flipd")),
            number("coordinates"),
            number("transition mass", partial(_with_error, "transition_mass")),
        ],
        [row for row in rows if row["chosen"]],
        note="± standard error over probes. transition mass: share of eigenvalues at the cutoff of "
        "LHSD, which means little where it is large. FLIPD of a learned score may be below 0. All "
        "levels are in " + DIMENSION_TABLE,
        searchable=True,
    )  # fmt: skip


def _with_error(name: str, row: Any) -> Cell:
    value, error = row[name], row[f"{name}_error"]
    digits = 3 if name == "transition_mass" else 1
    told = f"{value:.{digits}f}"
    if error is not None and math.isfinite(error):
        told += f" ± {error:.{digits}f}"
    return Cell(told, value)


def curves(rows: Rows) -> Figures:
    """Both dimensions over the levels, an image a plot."""
    images = list(dict.fromkeys(row["image"] for row in rows))[:MOST]
    mine = [[row for row in rows if row["image"] == image] for image in images]
    draws = (
        partial(plots.dimension, image=i, rows=own) for i, own in zip(images, mine, strict=True)
    )
    return Figures(
        list(zip(images, draws, strict=True)),
        "Dimension about an image as the noise grows: thin directions close. Dashed: the level of "
        "the least transition mass.",
        x="timestep",
        y="dimension",
        columns=4,
        size=(3.0, 2.4),
        shared=True,
    )


def blocks(records: Sequence[dict[str, Any]], rows: Rows) -> list[Block]:
    """The table, and which images could not be read."""
    failed = [f"{r['condition']} ({r['failed']})" for r in records if "failed" in r]
    told = f"Not read: {'; '.join(failed)}."
    return [*([table(rows)] if rows else []), *([Text(told, "wrong")] if failed else [])]


def sections_of(run: Run) -> list[Section]:
    """Of a run's files."""
    records, total = run.records(), run.settings["num_images"]
    found: list[Block] = []
    if len(records) < total:
        told = f"This run is not finished: {len(records)} of {total} images are measured."
        found.append(Text(f"{told} The same command goes on from here.", "note"))
    rows = read_rows(run, DIMENSION_TABLE, texts=("image",))
    figures = [curves(rows)] if rows else []
    return [Section("Local dimension", [*found, *blocks(records, rows), *figures])]
