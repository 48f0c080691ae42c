"""What a mitigation run shows: a table of images, one of prompts, images side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from sharpjax import plots
from sharpjax.detection.calibration import Threshold
from sharpjax.judging import Judge
from sharpjax.mitigation.methods import NONE
from sharpjax.mitigation.plausibility import ODD
from sharpjax.replication import load_images
from sharpjax.rundir import within

IMAGES_TABLE = "images.csv"
PROMPTS_NAME = "prompts.json"


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
    return load_images([within(folder, name) for name in record["images"]])


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
