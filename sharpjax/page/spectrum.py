"""What the page shows of spectra: how the landscape curves along the sampling path."""

import numpy as np

from sharpjax import plots
from sharpjax.page.blocks import Block, Cell, Column, Figures, Section, Table, Text
from sharpjax.page.drawing import figure
from sharpjax.page.runs import Run, number

_SOURCES = {"network": "network", "lanczos": "Lanczos", "arnoldi": "Arnoldi", "oracle": "exact"}
_PANELS = 24


def sections(run: Run) -> list[Section]:
    """Plots of every spectrum, and their ends and traces as a table."""
    records = run.records()
    names = run.settings["conditions"]
    per_name = run.settings["num_noises"] * run.settings["num_stages"]
    total = per_name * len(names)
    blocks: list[Block] = []
    if len(records) < total:
        told = f"This run is not finished: {len(records)} of {total} spectra are computed."
        blocks.append(Text(f"{told} The same command goes on from here.", "note"))
    panels = []
    for name in names:
        for step in sorted({r["step"] for r in records if r["condition"] == name}):
            mine = [r for r in records if (r["condition"], r["step"]) == (name, step)]
            label = f"Eigenvalues of {name} at t = {mine[0]['t']}"
            panels.append(figure(label, plots.spectra, mine))
    told = (
        "Eigenvalues of σ²H, H the Hessian of log p at a state of the sampling path: -1 is pure "
        "noise or a landscape as sharp as the noise allows, 0 a flat direction, above 0 a valley "
        "between modes. Ticks at the right: what Lanczos and Arnoldi approximate. Dashed: the "
        "exact score, where the training set is known."
    )
    if panels:
        blocks.append(Figures(panels[:_PANELS], told))
    if rows := run.table("spectrum.csv"):
        heads = ("negative", "near_zero", "positive", "smallest", "largest", "effective_dimension")
        columns = [
            Column("condition"), Column("t", numeric=True), Column("score", filtered=True),
            *(Column(head.replace("_", " "), numeric=True) for head in heads),
        ]  # fmt: skip
        cells = [
            [
                Cell(row["condition"]), Cell(row["t"], number(row, "t")),
                Cell(_SOURCES.get(row["source"], row["source"])),
                *(Cell(_short(number(row, head)), number(row, head)) for head in heads),
            ]
            for row in rows
        ]  # fmt: skip
        blocks.append(Table("Numbers and ends of the spectra", columns, cells, searchable=True))
    return [Section("Spectra", blocks)]


def _short(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4g}"
