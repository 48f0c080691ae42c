"""What ground truth of the drawings shows: copies by kind, and samples beside what they repeat."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from sharpjax.datasets.planted_drawings import PlantedDrawings
from sharpjax.mitigation.drawing_judge import Control, DrawingJudge
from sharpjax.pictures import read_image
from sharpjax.report import plots
from sharpjax.report.blocks import Block, Cell, Column, Table, Text, number
from sharpjax.rundir.files import within
from sharpjax.runs.truth_of_drawings import DrawingTruth

_Group = tuple[str, list[DrawingTruth]]


def blocks(truths: Sequence[DrawingTruth]) -> list[Block]:
    """By kind, and by caption (on the page)."""
    return [kind_table(truths), caption_table(truths)]


def control_line(limits: Control) -> Text:
    """The judge: its threshold, and how often it is wrong."""
    return Text(
        f"A copy has a likeness above {limits.threshold:.3f} with a repeated image. Of "
        f"{limits.renderings} renderings of other drawings that nothing repeats "
        f"{limits.false_alarms} are above it: a false-alarm rate of "
        f"{limits.false_alarms / limits.renderings:.4f} [{limits.low:.4f}, {limits.high:.4f}]. "
        f"Of the repeated images, seen twice through the autoencoder, {limits.found:.1%} are above."
    )


def kinds(truths: Sequence[DrawingTruth]) -> Iterator[_Group]:
    """Captions of one kind, share, dose and breadth, grounds apart."""

    def name(t: DrawingTruth) -> str:
        words = [
            t.kind,
            f"like {t.like}" if t.like else "",
            f"q={t.q:g}" if t.kind == "mixed" else "",
        ]
        words += [f"x{t.level}" if t.level else t.breadth]
        return " ".join([*filter(None, words), *(["on ground"] if t.ground else [])])

    names = [name(t) for t in truths]
    for one in dict.fromkeys(names):
        yield one, [t for t, n in zip(truths, names, strict=True) if n == one]


def kind_table(truths: Sequence[DrawingTruth]) -> Table:
    """Verdicts, copies and what is shown, by kind."""

    def counted(verdict: str) -> Column:
        return number(verdict, lambda group: sum(t.verdict == verdict for t in group[1]))

    def mean(name: str, value: Callable[[DrawingTruth], float]) -> Column:
        def of(group: _Group) -> float | None:
            values = np.array([value(t) for t in group[1]])
            return float(np.nanmean(values)) if np.isfinite(values).any() else None

        return number(name, of, "{:.2f}")

    return Table(
        "Copies by kind",
        [
            Column("captions of", lambda group: group[0]),
            number("captions", lambda group: len(group[1])),
            counted("memorized"), counted("another"), counted("between"), counted("clean"),
            mean("own copies", lambda t: t.copies / t.samples),
            mean("others", lambda t: t.others / t.samples),
            mean("right", lambda t: t.right),
            mean("right, no copy", lambda t: t.right_no_copy),
            mean("maker", lambda t: t.made),
        ],
        list(kinds(truths)),
        note="memorized: the lower 95% limit of the copy rate is above the judge's false alarms; "
        "another: so are copies of other captions' images; between: planted and not found out; "
        "right: samples that show the thing, by the classifier; maker: that are by the caption's",
    )  # fmt: skip


def caption_table(truths: Sequence[DrawingTruth]) -> Table:
    """Every caption, on the page."""
    return Table(
        "Copies among samples, exact 95% intervals",
        [
            Column("caption", lambda t: t.caption),
            Column("verdict", lambda t: Cell.verdict(t.verdict), filtered=True),
            number("copies", lambda t: Cell(f"{t.copies} of {t.samples}", t.copies)),
            number(
                "rate",
                lambda t: Cell(
                    f"{t.copies / t.samples:.2f} [{t.low:.2f}, {t.high:.2f}]", t.copies / t.samples
                ),
            ),
            Column("kind", lambda t: t.kind, filtered=True),
            Column("breadth", lambda t: t.breadth, filtered=True),
            number("q", lambda t: t.q), number("level", lambda t: t.level),
            number("likeness", lambda t: t.likeness, "{:.3f}"),
            number("right", lambda t: t.right, "{:.2f}"),
            number("copies of another's image", lambda t: t.others),
            Column("most of", lambda t: t.copies_of),
        ],
        truths,
        searchable=True,
        most=0,
    )  # fmt: skip


def write_grid(
    folder: Path, truths: Sequence[DrawingTruth], planted: PlantedDrawings, judge: DrawingJudge
) -> Path:
    """`samples.png`: samples of the first two captions of every kind, after the repeated image."""
    places: dict[str, tuple[int, int]] = {}
    counts: dict[int, int] = {}
    for one in truths:
        places[one.caption] = one.samples, counts.setdefault(one.samples, 0)
        counts[one.samples] += 1
    fixed = dict(zip((c.caption for c in judge.known), planted.fixed_images(), strict=True))
    rows = []
    for name, members in kinds(truths):
        for truth in members[:2]:
            count, place = places[truth.caption]
            files = [
                within(folder, f"samples-{count}/images/{place:05d}-{j}.png")
                for j in range(min(count, 9))
            ]
            samples = np.stack([read_image(file) for file in files])
            own = fixed.get(truth.caption, np.full(samples.shape[1:], 1.0, np.float32))
            copies = judge(samples, [truth.caption] * len(samples)).copied
            label = f"{truth.caption}\n{name}: {truth.copies / truth.samples:.0%} copies"
            rows.append((label, [(own[None], None), (samples, copies)]))
    return plots.mosaic(
        rows, folder / "samples.png",
        title="the repeated image, if there is one, and samples (red frame: copy of one)",
    )  # fmt: skip
