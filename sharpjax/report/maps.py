"""What maps show: every image, and where it is memorized."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sharpjax.pictures import read_picture, write_png
from sharpjax.report.blocks import Block, Pictures, Section, Text
from sharpjax.report.drawing import MOST, picture
from sharpjax.rundir.files import within
from sharpjax.rundir.run import Run

OVERLAYS_NAME = "overlays"
_COVER = 0.99  # quantile of all values that has the strongest colour
_STRONGEST = np.array([179, 32, 42], float)  # the page's colour of what is memorized


def write(folder: Path, records: Sequence[dict[str, Any]]) -> list[Path]:
    """An overlay of every image: grey where nothing is memorized, red where most of all is.

    One scale for all, so that two of them can be compared.
    """
    done = [record for record in records if "failed" not in record]
    if not done:
        return []
    values = {r["index"]: np.load(within(folder, r["map"]), allow_pickle=False) for r in done}
    scale = max(float(np.quantile(np.stack(list(values.values())), _COVER)), 1e-12)
    (folder / OVERLAYS_NAME).mkdir(exist_ok=True)
    written = []
    for record in done:
        image = read_picture(within(folder, record["image"]))
        path = folder / _overlay(record)
        write_png(path, overlay(image, values[record["index"]] / scale))
        written.append(path)
    return written


def overlay(image: Image.Image, share: np.ndarray) -> Image.Image:
    """A picture in grey, and red by a share `(height, width)`, which is cut at 0 and 1."""
    grey = np.asarray(image.convert("L"), float)[..., None] * np.ones(3)
    weight = 0.85 * np.clip(share, 0, 1)[..., None]
    pixels = (1 - weight) * (0.4 * 255 + 0.6 * grey) + weight * _STRONGEST
    return Image.fromarray(np.round(pixels).astype(np.uint8))


def _overlay(record: dict[str, Any]) -> str:
    return f"{OVERLAYS_NAME}/{record['index']:05d}.png"


def sections_of(run: Run) -> list[Section]:
    """Images and overlays, those with the largest mean first."""
    records, total = run.records(), len(run.settings["names"])
    blocks: list[Block] = []
    if len(records) < total:
        told = f"This run is not finished: {len(records)} of {total} maps are computed."
        blocks.append(Text(f"{told} The same command goes on from here.", "note"))
    done = [record for record in records if "failed" not in record]
    done.sort(key=lambda record: -record["mean"])
    rows = []
    for record in done[:MOST]:
        sides = [("image", record["image"]), ("where it is memorized", _overlay(record))]
        groups = [
            (title, [shown])
            for title, file in sides
            if (shown := picture(run.folder, file, f"{record['condition']}, {title}")) is not None
        ]
        rows.append((f"{record['condition']}: mean {record['mean']:.3g}", groups))
    caption = (
        "How much sharper the model is under the condition than without it, or than the baseline, "
        "at the last step, pixel by pixel; red: most, on one scale. The largest means first."
    )
    if len(done) > MOST:
        caption += f" {MOST} of {len(done)} are shown; all files are in the run's directory."
    if rows:
        blocks.append(Pictures(rows, caption))
    return [Section("Where images are memorized", blocks)] if blocks else []
