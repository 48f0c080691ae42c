"""How plots are drawn, once each: a PNG file of all of a kind, an SVG of each for the page.

Names of conditions and prompts are shown as they are: a dollar sign begins no formula.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpjax.detection.calibration import Threshold
from sharpjax.report.blocks import Figures
from sharpjax.rundir.files import write_bytes

COLOURS = {  # by what they mean: the page has a light and a dark one of each
    "ink": "#1f3b73",
    "oracle": "#c26a1a",
    "grid": "#d9d9d9",
    "grey": "#808080",
    "copy": "#d62728",
    "arnoldi": "#7a3b73",
    "aim": "#cfe8cf",
    "aim-edge": "#5a9a5a",
}
_INK, _ORACLE, _GRID, _GREY, *_ = COLOURS.values()
_CLASSES = {"memorized": COLOURS["copy"], "clean": _INK}
_COPY, _REFERENCE, _PLAIN = (0.84, 0.15, 0.16), (0.8, 0.8, 0.8), (1.0, 1.0, 1.0)


def write(block: Figures, path: Path) -> Path:
    """A PNG file of all of these plots; the path."""
    write_bytes(path, _saved(_drawn(block), "png", dpi=130, facecolor="white"))
    return path


def svg(block: Figures, place: int, *, salt: str) -> str:
    """One of these plots by itself, as SVG: text stays text, the page's colour shows through.

    Identifiers are hashed with the salt: no two pictures of a page may share them.
    """
    alone = dataclasses.replace(block, figures=block.figures[place : place + 1])
    with _pyplot().rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        how = {"transparent": True, "metadata": {"Date": None}}
        return _saved(_drawn(alone), "svg", **how).decode()


def _pyplot() -> Any:
    """Matplotlib without a window, imported with the first picture: commands start sooner."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _drawn(block: Figures) -> Any:
    columns = min(block.columns, len(block.figures)) or 1
    rows = -(-len(block.figures) // columns) or 1
    width, height = block.size
    figure, grid = _pyplot().subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False,
        layout="constrained", sharex=block.shared, sharey="row" if block.shared else False,
    )  # fmt: skip
    for axes in grid.flat[len(block.figures) :]:
        axes.set_axis_off()
    for axes, (_, draw) in zip(grid.flat, block.figures, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes)
        for one in block.whole:
            whole = _pyplot().MaxNLocator(integer=True, min_n_ticks=1)
            getattr(axes, f"{one}axis").set_major_locator(whole)
    figure.supxlabel(block.x, fontsize=10)
    figure.supylabel(block.y, fontsize=10)
    return figure


def _saved(figure: Any, kind: str, **how: Any) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=kind, bbox_inches="tight", **how)
    _pyplot().close(figure)
    return data.getvalue()


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10, parse_math=False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=7.5, frameon=False)


def roc(
    axes: Any, name: str, curves: Mapping[str, tuple[Any, float]], band: Sequence[Any] | None
) -> None:
    """ROC curves and areas of a statistic by whose score it is, and the band of the network's."""
    axes.plot([0, 1], [0, 1], color=_GRID, linewidth=1)
    if band is not None:
        axes.fill_between(*band, color=_INK, alpha=0.15, linewidth=0)
    for who, ((fpr, tpr), area) in curves.items():
        colour, style = (_INK, "-") if who == "network" else (_ORACLE, "--")
        axes.plot(fpr, tpr, style, color=colour, linewidth=1.8, label=f"{who} {area:.3f}")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _finish(axes, name.replace("@", "\nat t = "))


def distribution(
    axes: Any, name: str, classes: Mapping[str, np.ndarray], threshold: Threshold | None
) -> None:
    """Histograms of a statistic, one a class; its threshold as a line, the interval shaded.

    `classes` maps `memorized`, `clean` or another name to values.
    """
    everything = np.concatenate(list(classes.values()))
    bins = np.histogram_bin_edges(everything, bins=min(40, max(8, int(len(everything) ** 0.6))))
    for label, values in classes.items():
        colour = _CLASSES.get(label, _GREY)
        axes.hist(
            values, bins.tolist(), histtype="stepfilled", alpha=0.45, linewidth=1.2, label=label,
            color=colour, edgecolor=colour,
        )  # fmt: skip
    if threshold is not None:
        left, right = axes.get_xlim()
        low, high = max(threshold.low, left), min(threshold.high, right)
        axes.axvspan(low, high, color=_GREY, alpha=0.2, linewidth=0)
        axes.axvline(threshold.value, color=_GREY, linewidth=1.2, linestyle="--", label="threshold")
        axes.set_xlim(left, right)
    _finish(axes, name.replace("@", " at t = "))


def dose_response(
    axes: Any, name: str, levels: np.ndarray, series: Mapping[str, np.ndarray]
) -> None:
    """Values against the level of each condition: one of `series` is the exact score's.

    Small dots are conditions; the line joins the means of equal levels, its bar is their standard
    error.
    """
    jitter = np.exp(np.random.default_rng(0).uniform(-0.12, 0.12, len(levels)))
    different = np.unique(levels)
    for label, values in series.items():
        exact = label == "exact score"
        colour = _ORACLE if exact else _INK
        axes.plot(levels * jitter, values, ".", color=colour, alpha=0.35, markersize=4)
        groups = [values[levels == one] for one in different]
        errors = [one.std(ddof=int(len(one) > 1)) / np.sqrt(len(one)) for one in groups]
        axes.errorbar(
            different * (1.06 if exact else 1), [one.mean() for one in groups], errors,
            color=colour, linewidth=1.5, linestyle="--" if exact else "-", marker="o",
            markersize=3.5, label=label,
        )  # fmt: skip
    axes.set_xscale("log", base=4)
    axes.set_xticks(different, [str(one) for one in different])
    _finish(axes, name.replace("@", " at t = "))


def spectra(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    """Sorted eigenvalues of `sigma^2 H` of one condition at one step of the path.

    The exact spectrum as a line (one a noise), the exact score's dashed, by rank from the largest
    on a logarithmic scale, as only few eigenvalues differ from -1 at most levels. The Ritz values
    of Lanczos and Arnoldi are ticks at the right, at the height of what they approximate.
    """
    first = records[0]
    count = len(first["exact"])
    rank = np.arange(count, 0, -1)
    for record in records:
        told = record is first
        label = "network" if told else None
        values = np.asarray(record["exact"], float)
        axes.plot(rank, values, color=_INK, linewidth=1.6, label=label)
        if record["oracle"] is not None:
            label = "exact score" if told else None
            axes.plot(rank, record["oracle"], "--", color=_ORACLE, linewidth=1.4, label=label)
    for place, name, colour in ((1.4, "lanczos", _INK), (2.0, "arnoldi", COLOURS["arnoldi"])):
        ritz = first[name]["values"]
        axes.plot(
            np.full(len(ritz), place * count), ritz, "_", color=colour, markersize=6,
            markeredgewidth=0.7, label=f"{name.capitalize()}, {len(ritz)}",
        )  # fmt: skip
    axes.axhline(0, color=_GREY, linewidth=0.7)
    axes.set_xscale("log")
    _finish(axes, f"{first['condition'][:40]}, t = {first['t']}")


_KINDS = ("ink", "oracle", "copy", "arnoldi", "aim-edge", "grey")  # a line each


def tradeoff(
    axes: Any, name: str, *, curves: Mapping[str, Sequence[Any]], starts: Mapping[str, Any],
    reference: float, most: float, kept: float,
) -> None:  # fmt: skip
    """Copy rate against fidelity of a method over its strengths, a line a kind of prompts.

    `curves` maps a kind to `(copy rate, fidelity, label)` of each strength, `starts` to that
    without mitigation; `reference` is the fidelity of clean prompts.  The shaded corner copies at
    `most` so often and has `kept` of that fidelity.
    """
    axes.fill_between([-0.03, most], kept * reference, 1.03, color=COLOURS["aim"], zorder=0)
    axes.axhline(reference, color=COLOURS["aim-edge"], linewidth=0.8, linestyle=":")
    for place, (kind, start) in enumerate(starts.items()):
        colour, points = COLOURS[_KINDS[place % len(_KINDS)]], [start, *curves.get(kind, ())]
        line = zip(*((copies.value, shown.value) for copies, shown, _ in points), strict=True)
        axes.plot(*line, color=colour, linewidth=1.2, marker="o", markersize=3, label=kind)
        axes.plot(start[0].value, start[1].value, "s", color=colour, markersize=6)
    for copies, shown, label in curves.get(next(iter(starts)), ()):
        axes.annotate(
            label, (copies.value, shown.value), textcoords="offset points", xytext=(4, 4),
            fontsize=7,
        )  # fmt: skip
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    _finish(axes, name.replace("_", " "))


Group = tuple[np.ndarray, np.ndarray | None]


def dimension(axes: Any, image: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """LHSD and FLIPD of an image over timesteps, bars two standard errors; the chosen level."""
    t = np.array([row["t"] for row in rows], float)
    for name, label, colour in (("lhsd", "LHSD", _INK), ("flipd", "FLIPD", _ORACLE)):
        values = np.array([row[name] for row in rows], float)
        errors = np.array([row[f"{name}_error"] or 0.0 for row in rows], float)
        axes.errorbar(
            t, values, 2 * errors, color=colour, linewidth=1.3, marker="o", markersize=3,
            label=label,
        )  # fmt: skip
    for row in rows:
        if row["chosen"]:
            axes.axvline(row["t"], color=_GREY, linewidth=1, linestyle="--")
    axes.set_xscale("symlog", linthresh=1)
    _finish(axes, image)


def along_training(
    axes: Any, rows: Sequence[Mapping[str, Any]], name: str, band: str | None
) -> None:
    """A figure of every checkpoint with its interval, filled where that lies outside of its band.

    The band is the widest interval about 0 (`band=None`), or that of another figure.
    """
    outside = [row["losses_part" if band is None else "copies_show"] for row in rows]
    steps = np.array([row["step"] for row in rows], float)
    value, low, high = (
        np.array([row[f"{name}{end}"] for row in rows], float) for end in ("", "_low", "_high")
    )
    if band is None:
        half = (high - low) / 2
        axes.fill_between(steps, -half, half, color=_GREY, alpha=0.2, linewidth=0)
        axes.axhline(0, color=_GREY, linewidth=0.8)
    else:
        limits = rows[0][f"{band}_low"], rows[0][f"{band}_high"]
        axes.axhspan(*limits, color=_GREY, alpha=0.2, linewidth=0)
    axes.plot(steps, value, color=_INK, linewidth=1.3)
    for x, y, below, above, out in zip(steps, value, low, high, outside, strict=True):
        axes.errorbar(
            x, y, [[y - below], [above - y]], fmt="o", color=_INK, markersize=5, linewidth=0.8,
            markerfacecolor=_INK if out else "white",
        )  # fmt: skip
    _finish(axes, "gap of losses" if band is None else "copies among samples")


def mosaic(
    rows: Sequence[tuple[str, Sequence[Group]]], path: Path, *, title: str, zoom: int = 1
) -> Path:
    """Images in rows, each with a label and groups of images that stand apart: a PNG file.

    A group is `(images (k, channels, h, w) in [-1, 1], copied (k,))`: copies have a red frame;
    None frames all in grey, as references that nothing was drawn for.
    """
    frame, gap = 2, 3
    height, width = rows[0][1][0][0].shape[2:]
    cell_h, cell_w = height + 2 * frame, width + 2 * frame
    most = [max(len(groups[k][0]) for _, groups in rows) for k in range(len(rows[0][1]))]
    starts = np.cumsum([0, *(count * (cell_w + gap) + 2 * gap for count in most)])
    canvas = np.ones((len(rows) * (cell_h + gap), starts[-1], 3))
    for r, (_, groups) in enumerate(rows):
        for (images, copied), start in zip(groups, starts, strict=False):
            for c, image in enumerate(images):
                top, left = r * (cell_h + gap), start + c * (cell_w + gap)
                cell = canvas[top : top + cell_h, left : left + cell_w]
                cell[:] = _REFERENCE if copied is None else _COPY if copied[c] else _PLAIN
                pixels = (np.clip(image, -1, 1).transpose(1, 2, 0) + 1) / 2
                cell[frame:-frame, frame:-frame] = pixels
    canvas = canvas.repeat(zoom, axis=0).repeat(zoom, axis=1)
    figure, axes = _pyplot().subplots(
        figsize=(canvas.shape[1] / 80 + 2.4, canvas.shape[0] / 80 + 0.6)
    )
    axes.imshow(canvas, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)
    for r, (label, _) in enumerate(rows):
        axes.text(
            -6, (r + 0.47) * (cell_h + gap) * zoom, label, ha="right", va="center", fontsize=7,
            parse_math=False,
        )  # fmt: skip
    write_bytes(path, _saved(figure, "png", dpi=80, facecolor="white"))
    return path
