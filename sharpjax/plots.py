"""The pictures of runs: PNG files, or SVG for a page, by the suffix of the path.

Names of conditions and prompts are shown as they are: a dollar sign begins no formula.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sharpjax.rundir import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _ORACLE, _GRID, _GREY = "#1f3b73", "#c26a1a", "#d9d9d9", "#808080"
_CLASSES = {"memorized": "#d62728", "clean": _INK}
_COPY = (0.84, 0.15, 0.16)


def _pyplot() -> Any:
    """Matplotlib without a window, imported with the first picture: commands start sooner."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: "Figure", path: Path) -> Path:
    data = io.BytesIO()
    if path.suffix == ".svg":  # text stays text, the page's own colour shows through
        how: dict[str, Any] = {"transparent": True, "metadata": {"Date": None}}
    else:
        how = {"dpi": 130, "facecolor": "white"}
    # ids are hashed with the salt: several pictures of one page must not share them
    with _pyplot().rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(data, format=path.suffix[1:], bbox_inches="tight", **how)
    _pyplot().close(figure)
    write_bytes(path, data.getvalue())
    return path


def _clean(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def roc_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, str]],
    oracle: Mapping[str, tuple[np.ndarray, np.ndarray, str]],
    path: Path,
    *,
    bands: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None,
) -> Path:
    """ROC curve of every statistic with its 95% band, the exact-score oracle's beside it.

    Both map a statistic's name to ``(fpr, tpr, label)``; ``bands`` to ``(fpr, low, high)``.
    """
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure, grid = _pyplot().subplots(
        rows, columns, figsize=(3.4 * columns, 3.5 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(curves) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, curves, strict=False):
        _clean(axes)
        axes.plot([0, 1], [0, 1], color=_GRID, linewidth=1)
        if bands and name in bands:
            axes.fill_between(*bands[name], color=_INK, alpha=0.15, linewidth=0)
        for source, colour, style, who in (
            (curves, _INK, "-", "network"),
            (oracle, _ORACLE, "--", "exact score"),
        ):
            if name in source:
                fpr, tpr, label = source[name]
                axes.plot(fpr, tpr, style, color=colour, linewidth=1.8, label=f"{who} {label}")
        axes.set(title=name.replace("@", "\nat t = "), xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.title.set_fontsize(10)
        axes.legend(loc="best", fontsize=7.5, frameon=False)
    figure.supxlabel("false-positive rate", fontsize=10)
    figure.supylabel("true-positive rate", fontsize=10)
    return _save(figure, path)


def distributions(
    name: str,
    classes: Mapping[str, np.ndarray],
    threshold: tuple[float, float, float] | None,
    path: Path,
) -> Path:
    """Histograms of a statistic, one a class; its threshold as a line, the interval shaded.

    ``classes`` maps ``memorized``, ``clean`` or another name to values; ``threshold`` is
    ``(value, low, high)``, whose ends may be infinite.
    """
    figure, axes = _pyplot().subplots(figsize=(3.6, 2.7), layout="constrained")
    _clean(axes)
    everything = np.concatenate(list(classes.values()))
    bins = np.histogram_bin_edges(everything, bins=min(40, max(8, int(len(everything) ** 0.6))))
    for label, values in classes.items():
        axes.hist(
            values, bins.tolist(), histtype="stepfilled", alpha=0.45, linewidth=1.2, label=label,
            color=_CLASSES.get(label, _GREY), edgecolor=_CLASSES.get(label, _GREY),
        )  # fmt: skip
    if threshold is not None:
        value, low, high = threshold
        left, right = axes.get_xlim()
        axes.axvspan(max(low, left), min(high, right), color=_GREY, alpha=0.2, linewidth=0)
        axes.axvline(value, color=_GREY, linewidth=1.2, linestyle="--", label="threshold")
        axes.set_xlim(left, right)
    axes.set_title(name.replace("@", " at t = "), fontsize=10)
    axes.set_ylabel("conditions", fontsize=9)
    axes.legend(fontsize=7.5, frameon=False)
    return _save(figure, path)


def dose_response(
    sizes: np.ndarray,
    values: Mapping[str, np.ndarray],
    oracle: Mapping[str, np.ndarray],
    copy_rates: np.ndarray | None,
    path: Path,
) -> Path:
    """Every statistic against the number of training images, and the copy rate.

    Small dots are conditions; the line joins the means of equal set sizes and its bar is their
    standard error.
    """
    panels = list(values) + (["copy rate"] if copy_rates is not None else [])
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = _pyplot().subplots(
        rows, columns, figsize=(3.4 * columns, 3.0 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    levels = np.unique(sizes)
    for axes, name in zip(grid.flat, panels, strict=False):
        _clean(axes)
        series = (
            [(copy_rates, _INK, "measured")]
            if name == "copy rate"
            else [
                (values[name], _INK, "network"),
                (oracle.get(name), _ORACLE, "exact score"),
            ]
        )
        for shift, (data, colour, label) in enumerate(series):
            if data is None:
                continue
            jitter = np.exp(np.random.default_rng(0).uniform(-0.12, 0.12, len(sizes)))
            axes.plot(sizes * jitter, data, ".", color=colour, alpha=0.35, markersize=4)
            means = [data[sizes == level].mean() for level in levels]
            errors = [
                data[sizes == level].std(ddof=int(np.sum(sizes == level) > 1))
                / np.sqrt(np.sum(sizes == level))
                for level in levels
            ]
            axes.errorbar(
                levels * (1 + 0.06 * shift), means, errors, color=colour, linewidth=1.5,
                linestyle="--" if shift else "-", marker="o", markersize=3.5, label=label,
            )  # fmt: skip
        axes.set_xscale("log", base=4)
        axes.set_xticks(levels, [str(level) for level in levels])
        axes.set_title(name.replace("@", " at t = "), fontsize=10)
        axes.legend(fontsize=7.5, frameon=False)
    figure.supxlabel("training images of the condition", fontsize=10)
    return _save(figure, path)


def sample_grid(
    rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]], path: Path, *, title: str = ""
) -> Path:
    """Samples with the nearest training image under each; copies have a red frame.

    Each row is ``(label, samples (k, h, w), nearest (k, h, w), copied (k,))`` in ``[-1, 1]``.
    """
    frame, gap, zoom = 2, 3, 2
    count, (height, width) = len(rows[0][1]), rows[0][1].shape[1:]
    cell_h, cell_w = height + 2 * frame, width + 2 * frame
    row_h = 2 * cell_h + 2 * gap
    mosaic = np.ones((row_h * len(rows), count * (cell_w + gap), 3))
    for r, (_, samples, nearest, copied) in enumerate(rows):
        for c in range(count):
            for k, image in enumerate((samples[c], nearest[c])):
                top, left = r * row_h + k * cell_h, c * (cell_w + gap)
                cell = mosaic[top : top + cell_h, left : left + cell_w]
                cell[:] = _COPY if copied[c] and k == 0 else 1.0 if k == 0 else 0.8
                pixels = (np.clip(image, -1, 1)[..., None] + 1) / 2
                cell[frame:-frame, frame:-frame] = pixels
    mosaic = mosaic.repeat(zoom, axis=0).repeat(zoom, axis=1)
    size = mosaic.shape[1] / 100, mosaic.shape[0] / 100
    figure, axes = _pyplot().subplots(figsize=(size[0] + 1.2, size[1] + 0.5))
    axes.imshow(mosaic, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)
    for r, (label, *_) in enumerate(rows):
        axes.text(
            -8,
            (r + 0.47) * row_h * zoom,
            label,
            ha="right",
            va="center",
            fontsize=8,
            parse_math=False,
        )
    return _save(figure, path)


def caption_grid(
    rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]], path: Path, *, title: str = ""
) -> Path:
    """A reference image and the samples beside it, a caption a row; copies have a red frame.

    Each row is ``(label, reference (3, h, w), samples (k, 3, h, w), copied (k,))`` in ``[-1, 1]``.
    """
    frame, gap = 2, 3
    height, width = rows[0][1].shape[1:]
    cell_h, cell_w = height + 2 * frame, width + 2 * frame
    count = 1 + max(len(samples) for _, _, samples, _ in rows)
    mosaic = np.ones((len(rows) * (cell_h + gap), count * (cell_w + gap) + 2 * gap, 3))
    for r, (_, reference, samples, copied) in enumerate(rows):
        top = r * (cell_h + gap)
        for c, image in enumerate([reference, *samples]):
            left = c * (cell_w + gap) + (2 * gap if c else 0)  # the reference stands apart
            cell = mosaic[top : top + cell_h, left : left + cell_w]
            cell[:] = 0.8 if c == 0 else _COPY if copied[c - 1] else 1.0
            cell[frame:-frame, frame:-frame] = (np.clip(image, -1, 1).transpose(1, 2, 0) + 1) / 2
    figure, axes = _pyplot().subplots(
        figsize=(mosaic.shape[1] / 80 + 2.4, mosaic.shape[0] / 80 + 0.5)
    )
    axes.imshow(mosaic, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)
    for r, (label, *_) in enumerate(rows):
        axes.text(
            -6, (r + 0.47) * (cell_h + gap), label, ha="right", va="center", fontsize=7,
            parse_math=False,
        )  # fmt: skip
    return _save(figure, path)


def spectra(records: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Sorted eigenvalues of ``sigma^2 H``: a row per step of the path, a column per condition.

    The exact spectrum as a line (one a noise), the exact score's dashed, by rank from the largest
    on a logarithmic scale, as only few eigenvalues differ from -1 at most levels. The Ritz values
    of Lanczos and Arnoldi are ticks at the right, at the height of what they approximate.
    """
    conditions = list(dict.fromkeys(record["condition"] for record in records))
    steps = sorted({record["step"] for record in records})
    figure, grid = _pyplot().subplots(
        len(steps), len(conditions), figsize=(4.2 * len(conditions) + 0.4, 2.7 * len(steps)),
        squeeze=False, sharex=True, sharey="row", layout="constrained",
    )  # fmt: skip
    for record in records:
        row, column = steps.index(record["step"]), conditions.index(record["condition"])
        axes, values = grid[row, column], np.array(record["exact"])
        count, first = len(values), record["noise"] == 0
        rank = np.arange(count, 0, -1)
        axes.plot(rank, values, color=_INK, linewidth=1.6, label="network" if first else None)
        if record["oracle"] is not None:
            axes.plot(
                rank, record["oracle"], "--", color=_ORACLE, linewidth=1.4,
                label="exact score" if first else None,
            )  # fmt: skip
        if first:
            for place, name, colour in ((1.4, "lanczos", _INK), (2.0, "arnoldi", "#7a3b73")):
                ritz = record[name]["values"]
                axes.plot(
                    np.full(len(ritz), place * count), ritz, "_", color=colour,
                    markersize=6, markeredgewidth=0.7, label=f"{name.capitalize()}, {len(ritz)}",
                )  # fmt: skip
            axes.axhline(0, color="#808080", linewidth=0.7)
            axes.set_xscale("log")
            axes.set_title(
                f"{record['condition'][:40]}, t = {record['t']}", fontsize=10, parse_math=False
            )
            _clean(axes)
    for axes in grid[-1]:
        axes.set_xlabel("rank of the eigenvalue, largest first", fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel("eigenvalue of σ²H", fontsize=9)
    grid[-1, -1].legend(fontsize=7.5, frameon=False, loc="best")
    return _save(figure, path)


def tradeoff(
    curves: Mapping[str, Sequence[tuple[Any, Any, str]]],
    baseline: tuple[Any, Any],
    reference: float,
    path: Path,
    *,
    less: float,
    kept: float,
) -> Path:
    """Copy rate against fidelity of every method over its strengths, with 95% bars.

    ``curves`` maps a method to ``(copy rate, fidelity, label)`` of each strength, the two as
    intervals; ``baseline`` is without mitigation; ``reference`` the fidelity of clean prompts.  The
    shaded corner holds what ``less`` fewer copies at ``kept`` of that fidelity would be.
    """
    columns = min(4, len(curves)) or 1
    rows = -(-len(curves) // columns) or 1
    figure, grid = _pyplot().subplots(
        rows, columns, figsize=(3.1 * columns, 3.0 * rows), squeeze=False, sharex=True, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for axes in grid.flat[len(curves) :]:
        axes.set_axis_off()
    aim = ((1 - less) * baseline[0].value, kept * reference)
    for axes, (name, points) in zip(grid.flat, curves.items(), strict=False):
        _clean(axes)
        axes.fill_between([-0.03, aim[0]], aim[1], 1.03, color="#cfe8cf", linewidth=0, zorder=0)
        axes.axhline(reference, color="#5a9a5a", linewidth=0.8, linestyle=":")
        for other, theirs in curves.items():
            if other != name:
                axes.plot(
                    [p[0].value for p in theirs], [p[1].value for p in theirs],
                    color=_GRID, linewidth=0.9, zorder=1,
                )  # fmt: skip
        axes.plot(baseline[0].value, baseline[1].value, "s", color=_ORACLE, markersize=6)
        path_x = [baseline[0].value, *(p[0].value for p in points)]
        path_y = [baseline[1].value, *(p[1].value for p in points)]
        axes.plot(path_x, path_y, color=_INK, linewidth=1.3)
        for copies, shown, label in points:
            axes.errorbar(
                copies.value, shown.value, fmt="o", color=_INK, markersize=4, linewidth=0.8,
                xerr=[[copies.value - copies.low], [copies.high - copies.value]],
                yerr=[[shown.value - shown.low], [shown.high - shown.value]],
            )  # fmt: skip
            axes.annotate(
                label, (copies.value, shown.value), textcoords="offset points", xytext=(4, 4),
                fontsize=7,
            )  # fmt: skip
        axes.set(title=name.replace("_", " "), xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.title.set_fontsize(10)
    figure.supxlabel("copies of memorized images (fraction of samples)", fontsize=10)
    figure.supylabel("fidelity to the prompt", fontsize=10)
    return _save(figure, path)


def before_and_after(
    rows: Sequence[tuple[str, tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]],
    path: Path,
    *,
    title: str,
) -> Path:
    """Images without and with mitigation side by side, a prompt a row; copies have a red frame.

    Each row is ``(prompt, (images, copied), (images, copied))``.
    """
    frame, gap = 2, 3
    height, width = rows[0][1][0].shape[2:]
    cell_h, cell_w = height + 2 * frame, width + 2 * frame
    count = max(len(images) for _, (images, _), _ in rows)
    half = count * (cell_w + gap) + 4 * gap
    mosaic = np.ones((len(rows) * (cell_h + gap), 2 * half, 3))
    for r, (_, *sides) in enumerate(rows):
        for s, (images, copied) in enumerate(sides):
            for c, (image, is_copy) in enumerate(zip(images, copied, strict=True)):
                top, left = r * (cell_h + gap), s * half + c * (cell_w + gap)
                cell = mosaic[top : top + cell_h, left : left + cell_w]
                cell[:] = _COPY if is_copy else 1.0
                cell[frame:-frame, frame:-frame] = (
                    np.clip(image, -1, 1).transpose(1, 2, 0) + 1
                ) / 2
    figure, axes = _pyplot().subplots(
        figsize=(mosaic.shape[1] / 80 + 2.4, mosaic.shape[0] / 80 + 0.6)
    )
    axes.imshow(mosaic, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)
    for r, (label, *_) in enumerate(rows):
        axes.text(
            -6, (r + 0.47) * (cell_h + gap), label[:40], ha="right", va="center", fontsize=7,
            parse_math=False,
        )  # fmt: skip
    return _save(figure, path)
