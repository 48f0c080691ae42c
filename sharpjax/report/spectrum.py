"""What spectra show: how the landscape curves along the sampling path."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sharpjax.report import plots
from sharpjax.report.blocks import Block, Column, Figures, Section, Table, Text, number
from sharpjax.report.rows import Rows, read_rows
from sharpjax.rundir.run import Run
from sharpjax.runs.spectrum import TOLERANCE, write_table

SPECTRUM_TABLE, PICTURE_NAME = "spectrum.csv", "spectrum.png"
_SOURCES = {"network": "network", "lanczos": "Lanczos", "arnoldi": "Arnoldi", "oracle": "exact"}


def sections_of(run: Run) -> list[Section]:
    """Plots of every spectrum, and their ends and traces as a table."""
    records, settings = run.records(), run.settings
    total = len(settings["conditions"]) * settings["num_noises"] * settings["num_stages"]
    blocks: list[Block] = []
    if len(records) < total:
        told = f"This run is not finished: {len(records)} of {total} spectra are computed."
        blocks.append(Text(f"{told} The same command goes on from here.", "note"))
    if records:
        blocks.append(figures(records))
    if rows := read_rows(run, SPECTRUM_TABLE, texts=("condition", "source")):
        blocks.append(spectrum_table(rows))
    return [Section("Spectra", blocks)]


def write(folder: Path, records: Rows) -> list[dict[str, Any]]:
    """The table and the plot of a run; the rows."""
    plots.write(figures(records), folder / PICTURE_NAME)
    return write_table(folder / SPECTRUM_TABLE, records)


def figures(records: Rows) -> Figures:
    """The spectra of every step, a condition beside the other."""
    conditions = list(dict.fromkeys(record["condition"] for record in records))
    groups = [
        mine
        for step in sorted({record["step"] for record in records})
        for name in conditions
        if (mine := [r for r in records if (r["condition"], r["step"]) == (name, step)])
    ]
    names = (f"Eigenvalues of {mine[0]['condition']} at t = {mine[0]['t']}" for mine in groups)
    draws = (partial(plots.spectra, records=mine) for mine in groups)
    return Figures(
        list(zip(names, draws, strict=True)),
        "Eigenvalues of σ²H, H the Hessian of log p at a state of the sampling path: -1 is pure "
        "noise or a landscape as sharp as the noise allows, 0 a flat direction, above 0 a valley "
        "between modes. Ticks at the right: what Lanczos and Arnoldi approximate. Dashed: the "
        "exact score, where the training set is known.",
        x="rank of the eigenvalue, largest first",
        y="eigenvalue of σ²H",
        columns=len(conditions),
        size=(4.2, 2.7),
        shared=True,
    )


def _condition(row: Mapping[str, Any]) -> str:
    return row["condition"] + (f" #{row['noise']}" if row.get("noise") else "")


def spectrum_table(rows: Rows) -> Table:
    """Number and size of the eigenvalues of every spectrum, the exact score's below."""
    return Table(
        "Eigenvalues of σ²H along the sampling path",
        [
            Column("condition", _condition), number("t"),
            Column("score", lambda row: _SOURCES[row["source"]], filtered=True),
            number("< 0", "negative"), number("≈ 0", "near_zero"), number("> 0", "positive"),
            number("smallest", form="{:.4f}"), number("largest", form="{:.4f}"),
            number("tr K", "effective_dimension", "{:.1f}"),
        ],
        rows,
        note=f"< 0: below -{TOLERANCE:g}; ≈ 0: within; > 0: above. tr K: effective dimension, the "
        "sum of 1 + eigenvalue",
        searchable=True,
        grouped=2,
    )  # fmt: skip
