"""What the ground truth of conditions shows: copy rates, samples beside their sources."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from sharpjax import plots
from sharpjax.detection.oracle import TrainingSet
from sharpjax.detection.truth import Truth, load_strip
from sharpjax.rundir import within
from sharpjax.similarity import pixel_correlation


def truth_table(truths: Sequence[Truth]) -> Table:
    """Copy rates by condition."""
    table = Table(title="Copies among samples, 95% Wilson intervals")
    for column in ("condition", "images", "copies", "rate", "similarity", "threshold", "verdict"):
        table.add_column(column, justify="left" if column in ("condition", "verdict") else "right")
    for truth in truths:
        table.add_row(
            truth.condition,
            str(truth.set_size),
            f"{truth.num_copies} of {truth.num_samples}",
            f"{truth.copy_rate:.2f} [{truth.low:.2f}, {truth.high:.2f}]",
            f"{truth.mean_similarity:.3f}",
            f"{truth.threshold:.3f}",
            truth.verdict,
        )
    return table


def write_sample_grid(
    folder: Path, truths: Sequence[Truth], training_set: TrainingSet, *, count: int = 10
) -> Path:
    """``samples.png``: all sets of two digits, samples over their nearest training images."""
    groups = [truth.condition.split()[0] for truth in truths]
    chosen = {"2", "7"} & set(groups) or set(sorted(set(groups))[:2])
    shown = [index for index, group in enumerate(groups) if group in chosen]
    rows = []
    for index in shown:
        truth, references = truths[index], training_set.of(index)
        samples = load_strip(within(folder, f"samples/{index:03d}.png"))[:count]
        between = pixel_correlation(samples, references)
        rows.append(
            (
                f"{truth.condition}\n{truth.copy_rate:.0%} copies",
                samples[:, 0],
                references[between.argmax(axis=1), 0],
                between.max(axis=1) > truth.threshold,
            )
        )
    return plots.sample_grid(
        rows, folder / "samples.png",
        title="samples (red frame: copy) above the nearest training image",
    )  # fmt: skip
