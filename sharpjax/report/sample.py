"""What samples of a run show: a grid of them, and copy rates where those were measured."""

from pathlib import Path

from sharpjax.report import ground_truth
from sharpjax.report.blocks import Block, Pictures, Section, Text
from sharpjax.report.drawing import picture
from sharpjax.rundir.files import write_bytes
from sharpjax.rundir.run import Run
from sharpjax.runs.sample import GRID_NAME

_GRIDS = {
    "samples.png": "Samples, and what they are compared with; red frame: copy of a training image.",
    GRID_NAME: "Samples, a row a prompt.",
}


def sections_of(run: Run) -> list[Section]:
    """The grid of a run, and the copy rates that were measured on its samples."""
    blocks = [*_grids(run), *ground_truth.blocks_of(run)]
    if not blocks:
        count = len(run.records())
        told = f"This run is not finished: {count} images are there, and no picture of them yet."
        blocks = [Text(f"{told} The same command goes on from here.", "note")]
    return [Section("Samples", blocks)]


def grid_of(run: Run) -> list[Section]:
    """Only the picture, where a run of another kind has one."""
    return [Section("Samples", blocks)] if (blocks := _grids(run)) else []


def _grids(run: Run) -> list[Block]:
    for name, caption in _GRIDS.items():
        if (one := picture(run.folder, name, caption, wide=True)) is not None:
            return [Pictures([("", [("", [one])])], caption)]
    return []


def copy_shipped_grid(model_directory: Path, folder: Path) -> Path | None:
    """Bring the model's own `samples.png` beside the run's plots, if it ships one."""
    source = model_directory / "samples.png"
    if not source.is_file():
        return None
    write_bytes(folder / "samples.png", source.read_bytes())
    return folder / "samples.png"
