"""What a mitigation run shows: tables, the trade-off, images side by side."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from sharpjax import plots
from sharpjax.detection.calibration import Threshold
from sharpjax.detection.evaluation import Interval
from sharpjax.judging import Judge
from sharpjax.mitigation.methods import NONE
from sharpjax.mitigation.plausibility import ODD
from sharpjax.mitigation.tradeoff import (
    KEPT,
    Curve,
    Outcomes,
    Paired,
    Point,
    choose,
    curves,
    paired,
    relative_reduction,
)
from sharpjax.replication import load_images
from sharpjax.rundir import write_csv

IMAGES_TABLE, CURVES_TABLE, CHOSEN_TABLE = "images.csv", "curves.csv", "chosen.csv"
PROMPTS_NAME = "prompts.json"
REFERENCE_METHOD = "sail"  # that the others are tested against
LESS = 0.8  # of the copies should be gone


def judged_rows(
    folder: Path, records: Sequence[Mapping[str, Any]], judge: Judge | None
) -> list[dict[str, Any]]:
    """A row for every image: what was done, what it copies, whether it shows its prompt."""
    rows = []
    for record in records:
        if not record["images"]:
            continue
        prompts = [record["prompt"]] * len(record["images"])
        verdict = None if judge is None else judge(_images(folder, record), prompts)
        for j, file in enumerate(record["images"]):
            row = {
                "method": record["method"], "strength": record["strength"],
                "index": record["index"], "prompt": record["prompt"], "image": j, "file": file,
                "evaluations": record["evaluations"][j], "seconds": record["seconds"],
                "score_difference": record["score_difference"][j],
            }  # fmt: skip
            if verdict is not None:
                row |= {
                    "own": float(verdict.own[j]), "other": float(verdict.other[j]),
                    "nearest": verdict.nearest[j], "structural": float(verdict.structural[j]),
                    "copied": bool(verdict.copied[j]), "turned": bool(verdict.turned[j]),
                    "fidelity": float(verdict.fidelity[j]),
                }  # fmt: skip
            rows.append(row)
    return rows


def _images(folder: Path, record: Mapping[str, Any]) -> np.ndarray:
    return load_images([folder / name for name in record["images"]])


def outcomes(rows: Sequence[Mapping[str, Any]], index: Sequence[int]) -> list[Outcomes]:
    """Of every method and strength on these prompts; cells that lack one of them are left out."""
    cells: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["index"] in index:
            cells.setdefault((row["method"], row["strength"]), []).append(row)
    found = []
    for (method, strength), members in cells.items():
        members = sorted(members, key=lambda row: (row["index"], row["image"]))
        if {row["index"] for row in members} != set(index):
            continue

        def grid(name: str, members: list[Mapping[str, Any]] = members) -> np.ndarray:
            return np.array([row[name] for row in members]).reshape(len(index), -1)

        found.append(
            Outcomes(
                method, strength, grid("copied"), grid("turned"), grid("fidelity").astype(float),
                float(grid("evaluations").mean()), float(grid("seconds").mean()),
            )
        )  # fmt: skip
    return found


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A method at the strength that other prompts chose, judged on the rest.

    Attributes:
        point: there, on the prompts that it is judged by.
        reduction: of the copy rate, relative to no mitigation.
        kept: fidelity relative to that of clean prompts without mitigation.
        against: success less that of the reference method; None for itself.
    """

    point: Point
    reduction: float
    kept: float
    against: Paired | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All methods on the same prompts and seeds.

    Attributes:
        curves: of each, on the prompts that they are judged by.
        chosen: of each, at the strength that the tuning prompts chose.
        reference: fidelity of clean prompts without mitigation.
    """

    curves: dict[str, Curve]
    chosen: dict[str, Chosen]
    reference: float

    @property
    def baseline(self) -> Point:
        """Without mitigation."""
        return self.curves[NONE].points[0]


def compare(
    rows: Sequence[Mapping[str, Any]], *, tuning: Sequence[int], judged: Sequence[int],
    clean: Sequence[int],
) -> Comparison:  # fmt: skip
    """Curves on the judged prompts, strengths chosen on the tuning prompts.

    Raises:
        ValueError: a prompt in two of these, or none to judge by.
    """
    if set(tuning) & set(judged) or not tuning or not judged or not clean:
        raise ValueError(
            "a comparison needs prompts to tune on, others to judge by, and clean ones; got "
            f"{len(tuning)}, {len(judged)} and {len(clean)}"
        )
    reference = float(np.mean([row["fidelity"] for row in rows if row["index"] in clean]))
    judged_outcomes, tuning_outcomes = outcomes(rows, judged), outcomes(rows, tuning)
    drawn = curves(judged_outcomes)
    baseline = drawn[NONE].points[0]
    picked: dict[str, Point] = {}
    for name, curve in drawn.items():
        mine = [one for one in tuning_outcomes if one.method == name]
        if name == NONE or not mine:
            continue
        strength = choose(mine, reference=reference).strength
        picked[name] = next(p for p in curve.points if p.outcomes.strength == strength)
    rival = picked.get(REFERENCE_METHOD)
    chosen = {
        name: Chosen(
            point, relative_reduction(point, baseline), point.fidelity.value / reference,
            None if rival is None or name == REFERENCE_METHOD
            else paired(point.outcomes, rival.outcomes),
        )
        for name, point in picked.items()
    }  # fmt: skip
    return Comparison(drawn, chosen, reference)


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
    for name, one in _by_success(comparison):
        point = one.point
        table.add_row(
            name, f"{point.outcomes.strength:g}", str(point.copy_rate), f"{one.reduction:.0%}",
            str(point.fidelity), f"{one.kept:.0%}", str(point.success),
            "" if one.against is None else str(one.against.difference),
            "" if one.against is None else f"{one.against.p_value:.3f}",
        )  # fmt: skip
    return table


def _by_success(comparison: Comparison) -> list[tuple[str, Chosen]]:
    return sorted(comparison.chosen.items(), key=lambda item: -item[1].point.success.value)


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
    chosen = [(name, one.point) for name, one in _by_success(comparison)]
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


def verdict_line(comparison: Comparison) -> str:
    """Whether a method reaches the aim, in words."""
    able = [n for n, c in comparison.chosen.items() if c.reduction >= LESS and c.kept >= KEPT]
    aim = f"{LESS:.0%} fewer copies at {KEPT:.0%} of the clean prompts' fidelity"
    if able:
        return f"The aim, {aim}, is reached by {', '.join(able)}."
    name, best = _by_success(comparison)[0]
    return (
        f"No method reaches the aim, {aim}. The most successful at its chosen strength is {name}: "
        f"{best.reduction:.0%} fewer copies at {best.kept:.0%} of the fidelity."
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


def _flat(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def side_by_side(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    title: str,
    *,
    name: str = "side_by_side.png",
    most: int = 5,
) -> Path:
    """Images of each prompt without mitigation, and beside them with it; copies are framed red."""
    copied = {
        (row["method"], row["strength"], row["index"], row["image"]): row.get("copied", False)
        for row in rows
    }
    lines = []
    for record in records:
        if record["method"] == NONE or not record["images"]:
            continue
        before = next(r for r in records if (r["method"], r["index"]) == (NONE, record["index"]))
        pair = []
        for one in (before, record):
            cells = _images(folder, one)[:most]
            marks = [
                copied.get((one["method"], one["strength"], one["index"], j), False)
                for j in range(len(cells))
            ]
            pair.append((cells, np.array(marks)))
        lines.append((record["prompt"], *pair))
    return plots.before_and_after(lines, folder / name, title=title)


def prompt_rows(
    rows: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    prompts: Sequence[str],
    found: tuple[Sequence[tuple[float, str]], Threshold] | None,
) -> list[dict[str, Any]]:
    """Of each prompt: what detection says, and its figures without and with mitigation."""
    table = []
    for index, prompt in enumerate(prompts):
        mine = [row for row in rows if row["index"] == index]
        row: dict[str, Any] = {"prompt": prompt, "statistic": None, "verdict": None}
        if found is not None:
            value, row["verdict"] = found[0][index]
            row["statistic"] = value if np.isfinite(value) else None
        for side, members in (
            ("before", [r for r in mine if r["method"] == NONE]),
            ("after", [r for r in mine if r["method"] != NONE]),
        ):
            for name in ("score_difference", "copied", "fidelity"):
                values = [r[name] for r in members if name in r]
                mean = float(np.mean(values)) if values else np.nan
                row[f"{name}_{side}"] = mean if np.isfinite(mean) else None  # JSON has no NaN
            row[f"images_{side}"] = [r["file"] for r in members]
        after = [r for r in records if r["index"] == index and r["method"] != NONE]
        row["treated"] = any(r["images"] for r in after)
        row["details"] = [d for r in after for d in r.get("details", [])]
        row["error"] = next((r["error"] for r in after if "error" in r), None)
        table.append(row)
    return table


def prompt_table(
    rows: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    prompts: Sequence[str],
    found: tuple[Sequence[tuple[float, str]], Threshold] | None,
    what: str,
) -> Table:
    """The same on screen."""
    caption = "without → with; ‖s_D‖ at the noises that these images start from"
    if found is not None:
        caption += (
            f"; detection: score_difference at other noises, memorized above {found[1].value:.3f}, "
            "unsure within the threshold's interval"
        )
    table = Table(title=f"Mitigation by {what}", caption=caption)
    columns = ["prompt", "detection", "‖s_D‖", "copies", "fidelity"]
    for column in columns:
        table.add_column(column, justify="left" if column == "prompt" else "right")
    for row in prompt_rows(rows, records, prompts, found):
        value = "" if row["statistic"] is None else f"{row['statistic']:.3f} "
        told = "" if found is None else value + row["verdict"]
        cells = []
        for name in ("score_difference", "copied", "fidelity"):
            before, after = row[f"{name}_before"], row[f"{name}_after"]
            if before is None:
                cells.append("")
            else:
                cells.append(f"{before:.2f}" + ("" if after is None else f" → {after:.2f}"))
        table.add_row(escape(row["prompt"][:60] or "(empty prompt)"), told, *cells)
    return table


def prompt_remarks(
    records: Sequence[Mapping[str, Any]], prompts: Sequence[str], treated: Sequence[int],
    found: tuple[Sequence[tuple[float, str]], Threshold] | None,
) -> list[str]:  # fmt: skip
    """What was treated, what failed, and which noises no longer look like noise."""
    done = sum(1 for r in records if r["method"] != NONE and r["images"])
    if found is None:
        lines = [f"{done} of {len(prompts)} prompts are treated (--all-prompts: none was judged)."]
    else:
        lines = [
            f"{len(treated)} of {len(prompts)} prompts are called memorized, {done} are treated; "
            f"the images of the other {len(prompts) - len(treated)} are those that no mitigation "
            "gives."
        ]
    details = [d for r in records for d in r.get("details", [])]
    stopped = [d["outcome"] for d in details if "outcome" in d]
    for outcome, said in (
        ("budget", "spent their steps above the threshold; --max-steps gives more"),
        ("not finite", "stopped at NaN or infinity and keep their last finite noise"),
    ):
        if count := stopped.count(outcome):
            lines.append(f"{count} of {len(stopped)} descents {said}.")
    odd = [
        d for d in details
        if any(abs(d.get(n, 0)) > ODD for n in ("norm_z", "kurtosis_z", "autocorrelation_z"))
    ]  # fmt: skip
    if odd:
        worst = max(odd, key=lambda d: abs(d["norm_z"]))
        lines.append(
            f"{len(odd)} noises no longer look like draws of N(0, I) (a z-score beyond {ODD:g}); "
            f"the longest has {worst['norm']:.2f} times the usual length."
        )
    if failed := sum("error" in r for r in records):
        lines.append(f"[red]{failed} failed[/red], as told above; results.jsonl has the reasons.")
    return lines


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
        for name, one in _by_success(comparison)
    ]  # fmt: skip
