"""What a comparison of methods shows: tables on the terminal, CSV files, the plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from sharpjax import plots
from sharpjax.detection.evaluation import Interval
from sharpjax.mitigation.comparison import LESS, REFERENCE_METHOD, Comparison
from sharpjax.mitigation.methods import NONE
from sharpjax.mitigation.tradeoff import KEPT
from sharpjax.report.numbers import p_value
from sharpjax.rundir import write_csv

CURVES_TABLE, CHOSEN_TABLE = "curves.csv", "chosen.csv"


def curve_table(comparison: Comparison) -> Table:
    """Every method at every strength."""
    table = Table(
        title="Copying and fidelity over strengths, on prompts that nothing was tuned on",
        caption="copies: of any memorized image; other: of one that belongs to another prompt; "
        "success: shown and no copy. 95% bootstrap intervals over prompts and seeds. evaluations: "
        "forward passes an image, sampling included",
    )
    for column in (
        "method", "strength", "copies", "other", "fidelity", "success", "hypervolume",
        "evaluations", "s",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, curve in comparison.curves.items():
        for k, point in enumerate(curve.points):
            one = point.outcomes
            table.add_row(
                name if k == 0 else "", "" if name == NONE else f"{one.strength:g}",
                str(point.copy_rate), f"{one.other.mean():.3f}", str(point.fidelity),
                str(point.success), str(curve.hypervolume) if k == 0 else "",
                f"{one.evaluations:.0f}", f"{one.seconds:.2f}",
                end_section=k == len(curve.points) - 1,
            )  # fmt: skip
    return table


def chosen_table(comparison: Comparison) -> Table:
    """Every method at its chosen strength, the most successful first."""
    table = Table(
        title="Each method at the strength that the tuning prompts chose",
        caption=f"fewer copies: relative to none ({comparison.baseline.copy_rate.value:.3f}); "
        "fidelity kept: relative to clean prompts without mitigation "
        f"({comparison.reference:.3f}); against {REFERENCE_METHOD}: difference of success and "
        "p-value of the paired sign-flip test over prompts",
    )
    for column in (
        "method", "strength", "copies", "fewer copies", "fidelity", "kept", "success",
        f"against {REFERENCE_METHOD}", "p",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, one in comparison.by_success():
        point = one.point
        table.add_row(
            name, f"{point.outcomes.strength:g}", str(point.copy_rate), f"{one.reduction:.0%}",
            str(point.fidelity), f"{one.kept:.0%}", str(point.success),
            "" if one.against is None else str(one.against.difference),
            "" if one.against is None else p_value(one.against.p_value),
        )  # fmt: skip
    return table


def level_table(comparison: Comparison, levels: Sequence[int]) -> Table | None:
    """Copies and successes at the chosen strengths by how often a prompt's image was repeated.

    ``levels`` are those of the judged prompts, in their order; None if they are not known.
    """
    repeated = np.asarray(levels)
    if not (repeated > 0).all():
        return None
    kinds = sorted(set(repeated.tolist()))
    table = Table(
        title="By how often the prompt's image was repeated",
        caption="copies | success, of "
        + ", ".join(f"{np.sum(repeated == k)} prompts at x{k}" for k in kinds),
    )
    table.add_column("method")
    for kind in kinds:
        table.add_column(f"x{kind}", justify="right")
    chosen = [(name, one.point) for name, one in comparison.by_success()]
    for name, point in [(NONE, comparison.baseline), *chosen]:
        one = point.outcomes
        table.add_row(
            name,
            *(
                f"{one.copied[repeated == k].mean():.2f} | {one.success[repeated == k].mean():.2f}"
                for k in kinds
            ),
        )
    return table


def verdict_line(chosen: Sequence[Mapping[str, Any]]) -> str:
    """Whether a method reaches the aim, in words; of rows as :func:`chosen_rows` has them."""
    aim = f"{LESS:.0%} fewer copies at {KEPT:.0%} of the clean prompts' fidelity"
    able = [row["method"] for row in chosen if row["reduction"] >= LESS and row["kept"] >= KEPT]
    if able:
        return f"The aim, {aim}, is reached by {', '.join(able)}."
    best = max(chosen, key=lambda row: row["success"])
    return (
        f"No method reaches the aim, {aim}. The most successful at its chosen strength is "
        f"{best['method']}: {best['reduction']:.0%} fewer copies at {best['kept']:.0%} of the "
        "fidelity."
    )


def write_comparison(folder: Path, comparison: Comparison) -> list[Path]:
    """Both tables as CSV, and the plot."""
    write_csv(
        folder / CURVES_TABLE,
        [
            {
                "method": name, "strength": point.outcomes.strength,
                **_flat("copies", point.copy_rate), "other": point.outcomes.other.mean(),
                **_flat("fidelity", point.fidelity), **_flat("success", point.success),
                **_flat("hypervolume", curve.hypervolume),
                "evaluations": point.outcomes.evaluations, "seconds": point.outcomes.seconds,
            }
            for name, curve in comparison.curves.items()
            for point in curve.points
        ],
    )  # fmt: skip
    files = [folder / CURVES_TABLE]
    if comparison.chosen:
        write_csv(folder / CHOSEN_TABLE, chosen_rows(comparison))
        files.append(folder / CHOSEN_TABLE)
    drawn = {
        name: [(p.copy_rate, p.fidelity, f"{p.outcomes.strength:g}") for p in curve.points]
        for name, curve in comparison.curves.items()
        if name != NONE
    }
    baseline = comparison.baseline
    files.append(
        plots.tradeoff(
            drawn, (baseline.copy_rate, baseline.fidelity), comparison.reference,
            folder / "tradeoff.png", less=LESS, kept=KEPT,
        )
    )  # fmt: skip
    return files


def chosen_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Every method at its chosen strength, JSON values."""
    return [
        {
            "method": name, "strength": one.point.outcomes.strength,
            **_flat("copies", one.point.copy_rate), "reduction": one.reduction,
            **_flat("fidelity", one.point.fidelity), "kept": one.kept,
            **_flat("success", one.point.success),
            "difference": None if one.against is None else one.against.difference.value,
            "p_value": None if one.against is None else one.against.p_value,
        }
        for name, one in comparison.by_success()
    ]  # fmt: skip


def _flat(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
