"""What a measurement of copies of captions shows: a table by group and level, and a picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from sharpjax import plots
from sharpjax.datasets.openmoji import PlantedPictograms
from sharpjax.detection.evaluation import wilson
from sharpjax.replication import CaptionTruth, Control, load_images
from sharpjax.rundir import within
from sharpjax.similarity import outline_correlation


def control_line(limits: Control) -> str:
    """The threshold and what it was fixed on."""
    low, high = np.quantile(limits.copies, [0.05, 0.5])
    return (
        f"A copy has an outline correlation above {limits.threshold:.3f}: 99% of "
        f"{len(limits.others)} fresh renderings of control captions are below (their median "
        f"{np.median(limits.others):.3f}). Of {len(limits.copies)} perfect copies seen through the "
        f"autoencoder {limits.found:.1%} are above (5% and 50% quantiles {low:.3f}, {high:.3f})."
    )


def by_level(truths: Sequence[CaptionTruth]) -> Iterator[tuple[str, list[CaptionTruth]]]:
    """Groups of captions: those with one repeated image by level, and so the hot ones."""
    names = [f"{t.group} x{t.level}" if t.level else t.group for t in truths]
    for name in dict.fromkeys(names):
        yield name, [t for t, n in zip(truths, names, strict=True) if n == name]


def level_table(truths: Sequence[CaptionTruth]) -> Table:
    """Verdicts, copy rates, similarities and concepts shown, by group and level."""
    table = Table(
        title="Copies by group and level",
        caption="verified: captions with at least half of their samples copies, and the 95% Wilson "
        "interval of their fraction; similarity: mean over captions, to the fixed image | to other "
        "renderings; concept: samples that show it, by the classifier",
    )
    for column in (
        "group", "captions", "verified memorized", "between", "clean", "copy rate", "similarity",
        "concept",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "group" else "right")
    for name, rows in by_level(truths):
        verdicts = [t.verdict for t in rows]
        verified = verdicts.count("memorized")
        low, high = wilson(verified, len(rows))
        own, other = (np.mean([getattr(t, k) for t in rows]) for k in _SIMILARITIES)
        table.add_row(
            name,
            str(len(rows)),
            f"{verified} ({verified / len(rows):.2f} [{low:.2f}, {high:.2f}])",
            str(verdicts.count("between")),
            str(verdicts.count("clean")),
            f"{np.mean([t.copy_rate for t in rows]):.3f}",
            f"{own:.3f} | {other:.3f}",
            f"{np.mean([t.concept_rate for t in rows]):.3f}",
        )
    return table


_SIMILARITIES = ("similarity", "other_similarity")


def write_grid(
    folder: Path,
    truths: Sequence[CaptionTruth],
    pictograms: PlantedPictograms,
    threshold: float,
    *,
    rows_each: int = 2,
    count: int = 9,
) -> Path:
    """``samples.png``: samples of the first captions of every group, after their fixed image."""
    rows = []
    place = {truth.caption: i for i, truth in enumerate(truths)}
    for name, members in by_level(truths):
        for truth in members[:rows_each]:
            index = place[truth.caption]
            fixed = pictograms.fixed_images(np.array([pictograms.captions.index(truth.caption)]))
            files = [within(folder, f"images/{index:05d}-{j}.png") for j in range(count)]
            samples = load_images([file for file in files if file.is_file()])
            copies = outline_correlation(samples, fixed)[:, 0] > threshold
            label = f"{truth.caption}\n{name}: {truth.copy_rate:.0%} copies"
            rows.append((label, fixed[0], samples, copies))
    return plots.caption_grid(
        rows, folder / "samples.png",
        title="the one fixed image (left), and samples (red frame: copy)",
    )  # fmt: skip
