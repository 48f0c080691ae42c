"""What the page shows of samples: grids, copy rates, nearest training images where known."""

from sharpjax.detection.truth import TRUTH_NAME
from sharpjax.generation import GRID_NAME
from sharpjax.page.blocks import Block, Cell, Column, Pictures, Section, Table, Text
from sharpjax.page.runs import Run, number, shown_image

_GRIDS = {
    "samples.png": "Samples beside the nearest training image; copies have a red frame.",
    GRID_NAME: "Samples, a row a prompt.",
}


def sections(run: Run) -> list[Section]:
    """The grid of a run, and the copy rates that were measured on its samples."""
    blocks: list[Block] = [*_grids(run), *_truth(run)]
    if not blocks:
        count = len(run.records())
        told = f"This run is not finished: {count} images are there, and no picture of them yet."
        blocks = [Text(f"{told} The same command goes on from here.", "note")]
    return [Section("Samples", blocks)]


def grid(run: Run) -> list[Section]:
    """Only the picture, where a run of another kind has one."""
    blocks = _grids(run)
    return [Section("Samples", blocks)] if blocks else []


def _grids(run: Run) -> list[Block]:
    found: list[Block] = []
    for name, caption in _GRIDS.items():
        if (one := shown_image(run, name, caption, wide=True)) is not None:
            found.append(Pictures([("", [("", [one])])], caption))
            break
    return found


def _truth(run: Run) -> list[Block]:
    rows = run.table(TRUTH_NAME)
    if not rows:
        return []
    name = "caption" if "caption" in rows[0] else "condition"
    cells = []
    for row in rows:
        count, copies = number(row, "num_samples"), number(row, "num_copies")
        low, high = number(row, "low"), number(row, "high")
        rate = copies / count if count else float("nan")
        cells.append(
            [
                Cell(row[name]), Cell(row.get("verdict", ""), look=row.get("verdict", "")),
                Cell(f"{copies:.0f} of {count:.0f}", copies),
                Cell(f"{rate:.2f} [{low:.2f}, {high:.2f}]", rate),
            ]
        )  # fmt: skip
    columns = [
        Column(name), Column("verdict", filtered=True), Column("copies", numeric=True),
        Column("copy rate, 95% Wilson interval", numeric=True),
    ]  # fmt: skip
    return [Table("Copies among samples", columns, cells, searchable=True)]
