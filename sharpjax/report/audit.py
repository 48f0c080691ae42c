"""What an audit shows: losses that part and copies that appear, over the checkpoints."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sharpjax.detection.audit import audited, first_to_stay
from sharpjax.report import plots
from sharpjax.report.blocks import Block, Cell, Column, Figures, Section, Table, Text, number
from sharpjax.report.rows import Rows, flat, interval_of, read_rows, write_tables
from sharpjax.rundir.run import Run
from sharpjax.runs.audit import HELD_OUT, SAMPLES, SUSPECTED

AUDIT_TABLE, PICTURE_NAME = "audit.csv", "audit.png"


def rows_of(
    records: Sequence[dict[str, Any]], names: Sequence[str], steps: Sequence[int]
) -> list[dict[str, Any]]:
    """A row a checkpoint, of a run that is finished."""

    def values(place: int, part: str, name: str) -> np.ndarray:
        own = (r for r in records if (r["checkpoint"], r["part"]) == (place, part))
        return np.array([r[name] for r in sorted(own, key=lambda r: r["index"])])

    places = range(len(names))
    found = audited(
        [values(place, SUSPECTED, "losses") for place in places],
        [values(place, HELD_OUT, "losses") for place in places],
        [values(place, SAMPLES, "ratio") for place in places],
        values(0, HELD_OUT, "ratio"),
    )
    return [
        {"checkpoint": name, "step": step}
        | flat("gap", one.gap) | flat("copies", one.copies) | flat("by_chance", one.by_chance)
        | {"losses_part": int(one.losses_part), "copies_show": int(one.copies_show)}
        for name, step, one in zip(names, steps, found, strict=True)
    ]  # fmt: skip


def write(folder: Path, rows: Rows) -> list[Path]:
    """The table and the plot; their paths."""
    figure = plots.write(figures(rows), folder / PICTURE_NAME)
    return [*write_tables(folder, {AUDIT_TABLE: rows}), figure]


def blocks(rows: Rows, *, texts: bool) -> list[Block]:
    """What the audit finds, and the table of it; `texts`, whether losses are those under texts."""
    under = "under each image's text" if texts else "of the score without a condition"
    return [
        Text(_told(rows, "losses_part", "The losses of suspected images are below held-out ones")),
        Text(_told(rows, "copies_show", "Samples are copies of suspected images")),
        Text(f"{_advice(rows)} Losses are those {under}."),
        table(rows),
    ]


def _told(rows: Rows, name: str, what: str) -> str:
    first = first_to_stay([bool(row[name]) for row in rows])
    if first is None:
        last = rows[-1]["checkpoint"]
        return f"{what}: not by the last checkpoint, {last}, beyond what chance explains."
    if not first:
        return f"{what} from the first checkpoint on, {rows[0]['checkpoint']}."
    before = rows[first - 1]["checkpoint"]
    return f"{what} from {rows[first]['checkpoint']} on; {before} is within its band."


def _advice(rows: Rows) -> str:
    """What to do next: losses may part long before a sample is a copy."""
    parted = first_to_stay([bool(row["losses_part"]) for row in rows])
    copied = first_to_stay([bool(row["copies_show"]) for row in rows])
    if copied is None and parted is None:
        return "What to do: nothing; the audit found no memorization."
    thin = "leave out or thin the suspected images that are repeated."
    if copied is None:
        return f"What to do: no copies are shown yet; before training on, {thin}"
    if copied:
        return f"What to do: stop at {rows[copied - 1]['checkpoint']}, or before training on {thin}"
    return f"What to do: look at earlier checkpoints, and before training again {thin}"


def table(rows: Rows) -> Table:
    """Gap and copies of every checkpoint."""
    return Table(
        "Along training",
        [
            Column("checkpoint"), number("step"),
            number("gap of losses", partial(_marked, "gap", "losses_part")),
            number("copies", partial(_marked, "copies", "copies_show")),
            number("held-out ones", interval_of("by_chance")),
        ],
        rows,
        note="gap: mean log loss of held-out images less that of suspected ones. copies: share of "
        "samples that lie three times nearer to one suspected image than to any other; held-out "
        "ones: how many held-out images do. Intervals hold at 95% for all checkpoints at once. "
        "Figures: " + AUDIT_TABLE,
    )  # fmt: skip


def _marked(name: str, outside: str, row: Any) -> Cell:
    interval = interval_of(name)(row)
    look = "memorized" if row[outside] else ""
    return Cell(str(interval), interval.value if interval else None, look)


def figures(rows: Rows) -> Figures:
    """Both curves over training, with their bands."""
    drawn = [
        ("gap of losses", partial(plots.along_training, rows=rows, name="gap", band=None)),
        ("copies", partial(plots.along_training, rows=rows, name="copies", band="by_chance")),
    ]
    return Figures(
        drawn,
        "Left: by how much suspected images have less loss (logarithms). Right: share of samples "
        "that are copies. Bars: 95% for all at once. Grey: what chance explains. Filled: outside.",
        x="step",
        columns=2,
        size=(4.2, 2.8),
    )


def sections_of(run: Run) -> list[Section]:
    """Of a run's files."""
    rows = read_rows(run, AUDIT_TABLE, texts=("checkpoint",))
    if not rows:
        told = "This audit is not finished. The same command goes on from where it stopped."
        return [Section("Along training", [Text(told, "note")])]
    return [
        Section(
            "Along training",
            [*blocks(rows, texts=run.settings["texts"] is not None), figures(rows)],
        )
    ]
