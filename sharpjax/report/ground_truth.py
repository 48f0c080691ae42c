"""What ground truth by generation shows: copy rates, samples beside what they are compared with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sharpjax.detection.oracle import TrainingSet
from sharpjax.report import drawings_truth, plots
from sharpjax.report.blocks import Block, Cell, Column, Table, number
from sharpjax.rundir.files import within
from sharpjax.rundir.run import Run
from sharpjax.runs import truth_of_drawings
from sharpjax.runs.truth_of_conditions import TRUTH_NAME, Truth, load_strip, read_truths
from sharpjax.similarity import pixel_correlation


def blocks_of(run: Run) -> list[Block]:
    """Of a run that has measured it, of conditions, of prompts or of the drawings."""
    if told := run.table(truth_of_drawings.TRUTH_NAME):
        if "prompt" in told[0]:
            return [prompt_table(told)]
        known = truth_of_drawings.read_truth(run.folder / truth_of_drawings.TRUTH_NAME)
        return drawings_truth.blocks(known)
    if not run.table(TRUTH_NAME):
        return []
    return [truth_table(read_truths(run.folder))]


def truth_table(truths: Sequence[Truth]) -> Table:
    """Copy rates by condition."""

    def rate(one: Truth) -> Cell:
        return Cell(f"{one.copy_rate:.2f} [{one.low:.2f}, {one.high:.2f}]", one.copy_rate)

    return Table(
        "Copies among samples, 95% Wilson intervals",
        [
            Column("condition", lambda t: t.condition),
            Column("verdict", lambda t: Cell.verdict(t.verdict), filtered=True),
            number("copies", lambda t: Cell(f"{t.num_copies} of {t.num_samples}", t.num_copies)),
            number("rate", rate), number("images", lambda t: t.set_size),
            number("similarity", lambda t: t.mean_similarity, "{:.3f}"),
            number("threshold", lambda t: t.threshold, "{:.3f}"),
        ],
        truths,
        searchable=True,
    )  # fmt: skip


def prompt_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Of prompts that were compared with a user's references; of rows of `truth.csv`."""

    def rate(row: Mapping[str, Any]) -> Cell:
        share = int(row["copies"]) / int(row["samples"])
        return Cell(f"{share:.2f} [{float(row['low']):.2f}, {float(row['high']):.2f}]", share)

    def copies(row: Mapping[str, Any]) -> Cell:
        return Cell(f"{row['copies']} of {row['samples']}", int(row["copies"]))

    return Table(
        "Copies of the references among samples, exact 95% intervals",
        [
            Column("prompt", short=60), Column("verdict", lambda row: Cell.verdict(row["label"])),
            number("copies", copies), number("rate", rate),
            number("likeness", lambda row: float(row["likeness"]), "{:.3f}"),
            number("of another's image", lambda row: int(row["others"])),
            Column("most of", "copies_of"),
        ],
        rows,
        note="memorized: the lower limit is above the judge's false-alarm rate; clean: none is a "
        "copy of these references, which so few samples do not rule out",
        searchable=True,
    )  # fmt: skip


def write_condition_grid(folder: Path, truths: Sequence[Truth], training_set: TrainingSet) -> Path:
    """`samples.png`: all sets of two digits, samples over their nearest training images."""
    groups = [truth.condition.split()[0] for truth in truths]
    chosen = {"2", "7"} & set(groups) or set(sorted(set(groups))[:2])
    rows = []
    for index in [index for index, group in enumerate(groups) if group in chosen]:
        truth, references = truths[index], training_set.of(index)
        samples = load_strip(within(folder, f"samples/{index:03d}.png"))[:10]
        between = pixel_correlation(samples, references)
        label = f"{truth.condition}\n{truth.copy_rate:.0%} copies"
        rows.append((label, [(samples, between.max(axis=1) > truth.threshold)]))
        rows.append(("", [(references[between.argmax(axis=1)], None)]))
    title = "samples (red frame: copy) above the nearest training image"
    return plots.mosaic(rows, folder / "samples.png", title=title, zoom=2)
