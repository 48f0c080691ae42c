"""What a mitigation run shows: a table of prompts, images without and with it side by side."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sharpjax.detection.calibration import Threshold
from sharpjax.detection.evaluation import Interval
from sharpjax.mitigation.copies_bound import ASSUMPTION, MissRate, copies_bound, pass_rate
from sharpjax.mitigation.judging import Judge
from sharpjax.mitigation.methods import NONE
from sharpjax.mitigation.plausibility import ODD
from sharpjax.pictures import read_images
from sharpjax.report import plots
from sharpjax.report.blocks import Block, Cell, Column, Pictures, Section, Table, Text, number
from sharpjax.report.drawing import picture
from sharpjax.report.rows import Rows
from sharpjax.rundir.files import within, write_csv, write_text
from sharpjax.rundir.run import Run
from sharpjax.similarity import likeness

IMAGES_TABLE = "images.csv"
PROMPTS_NAME = "prompts.json"
_ROWS, _IMAGES = 24, 5  # prompts whose images a page shows, and how many of each


def judged_rows(folder: Path, records: Rows, judge: Judge | None) -> list[dict[str, Any]]:
    """A row for every image: what was done, what it copies, whether it shows its prompt.

    One that was refused is no copy, and shows nothing.
    """
    rows = []
    for record in records:
        files = [file for file in record["images"] if file is not None]
        diversity = None
        if judge is not None and files:
            images = _images(folder, files)
            verdict, diversity = judge(images, [record["prompt"]] * len(files)), _diversity(images)
        for j, file in enumerate(record["images"]):
            row = {
                "method": record["method"], "strength": record["strength"],
                "index": record["index"], "prompt": record["prompt"], "image": j, "file": file,
                "evaluations": record["evaluations"][j], "seconds": record["seconds"],
                "score_difference": record["score_difference"][j],
            }  # fmt: skip
            if judge is not None and file is None:
                row |= dict.fromkeys(("own", "other", "nearest"))
                row |= {"copied": False, "turned": False, "fidelity": 0.0, "maker": None}
                row |= {"diversity": diversity}
            elif judge is not None:
                k = files.index(file)
                row |= {
                    "own": float(verdict.own[k]), "other": float(verdict.other[k]),
                    "nearest": verdict.nearest[k],
                    "copied": bool(verdict.copied[k]), "turned": bool(verdict.turned[k]),
                    "fidelity": _known(verdict.fidelity[k]),
                    "maker": None if verdict.maker is None else _known(verdict.maker[k]),
                    "diversity": diversity,
                }  # fmt: skip
            rows.append(row)
    return rows


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _diversity(images: np.ndarray) -> float | None:
    """One less the mean likeness of two images of a prompt; None of fewer."""
    if len(images) < 2:
        return None
    rows = likeness(images)
    above = np.triu_indices(len(rows), 1)
    return float(1 - (rows @ rows.T)[above].mean())


def _images(folder: Path, files: Sequence[str]) -> np.ndarray:
    return read_images([within(folder, name) for name in files])


def write(
    folder: Path,
    records: Rows,
    prompts: Mapping[int, str],
    judge: Judge | None,
    *,
    method: str,
    strength: float,
    found: tuple[Sequence[tuple[float, str]], Threshold] | None = None,
    missed: MissRate | None = None,
) -> tuple[list[dict[str, Any]], list[Path]]:
    """The tables and the picture of a run of one method: what `prompt_rows` has; the paths."""
    rows = judged_rows(folder, records, judge)
    written = [folder / IMAGES_TABLE]
    write_csv(written[0], rows)
    title = f"without mitigation (left) and with {method} at {strength:g} (right)"
    if any(r["images"] for r in records if r["method"] != NONE):
        written.append(side_by_side(folder, pairs(records), rows, title))
    table = prompt_rows(rows, records, prompts, found, missed)
    write_text(folder / PROMPTS_NAME, json.dumps(table, indent=1) + "\n")
    return table, written


Pairs = Sequence[tuple[str, Mapping[str, Sequence[str]]]]


def pairs(records: Rows) -> Pairs:
    """The prompts, those with two sides first: files of images without mitigation, and with it."""
    found: dict[tuple[int, str], dict[str, Sequence[str]]] = {}
    for record in records:
        side = f"with {record['method']} at {record['strength']:g}"
        sides = found.setdefault((record["index"], record["prompt"]), {})
        if files := [file for file in record.get("images", ()) if file is not None]:
            sides["without" if record["method"] == NONE else side] = files
    return sorted(
        ((prompt, sides) for (_, prompt), sides in found.items()), key=lambda pair: -len(pair[1])
    )


def side_by_side(
    folder: Path, chosen: Pairs, rows: Rows, title: str, *, name: str = "side_by_side.png"
) -> Path:
    """A picture of those with two sides; of rows as `judged_rows` has them.

    Copies are framed red where somebody judged, and the title says which of the two it is.
    """
    judged = any("copied" in row for row in rows)
    title += "; red frame: copy" if judged else "; whether they copy was not judged"
    copied = {row["file"]: row.get("copied", False) for row in rows}
    lines = []
    for prompt, sides in chosen:
        if len(sides) == 2:
            shown = [files[:_IMAGES] for files in sides.values()]
            marks = [np.array([copied[file] for file in files]) for files in shown]
            images = (_images(folder, files) for files in shown)
            lines.append((prompt[:40], list(zip(images, marks, strict=True))))
    return plots.mosaic(lines, folder / name, title=title)


def prompt_rows(
    rows: Rows,
    records: Rows,
    prompts: Mapping[int, str],
    found: tuple[Sequence[tuple[float, str]], Threshold] | None,
    missed: MissRate | None = None,
) -> list[dict[str, Any]]:
    """Of each prompt: what detection says, and its figures without and with mitigation.

    `prompts` are by their numbers, `found` in their order; `missed` is the miss rate of the screen
    or rank that was used, where one was set by verified prompts: with it comes the bound
    on this prompt's copies.
    """
    table = []
    for place, (index, prompt) in enumerate(prompts.items()):
        mine = [row for row in rows if row["index"] == index]
        row: dict[str, Any] = {"prompt": prompt, "statistic": None, "verdict": None}
        if found is not None:
            value, row["verdict"] = found[0][place]
            row["statistic"] = value if np.isfinite(value) else None
        for side, members in (
            ("before", [r for r in mine if r["method"] == NONE]),
            ("after", [r for r in mine if r["method"] != NONE]),
        ):
            for name in ("score_difference", "copied", "fidelity"):
                values = [r[name] for r in members if r.get(name) is not None]
                mean = float(np.mean(values)) if values else np.nan
                row[f"{name}_{side}"] = mean if np.isfinite(mean) else None  # JSON has no NaN
            row[f"images_{side}"] = [r["file"] for r in members if r["file"] is not None]
            row[f"refused_{side}"] = sum(r["file"] is None for r in members)
        after = [r for r in records if r["index"] == index and r["method"] != NONE]
        row["treated"] = any(r["images"] for r in after)
        row["details"] = [d for r in after for d in r.get("details", [])]
        row["evaluations"] = float(sum(sum(r.get("evaluations", [])) for r in after))
        row |= _tries(row["details"], missed)
        row["error"] = next((r["error"] for r in after if "error" in r), None)
        table.append(row)
    return table


def _tries(details: Sequence[Mapping[str, Any]], missed: MissRate | None) -> dict[str, Any]:
    """Of a screen: tries of a prompt's images together, the rate at which they pass, the bound.

    Of a rank every path is the best of n with probability 1/n.
    """
    tried = [d for d in details if "tries" in d]
    if not tried:
        return {}
    tries = sum(d["tries"] for d in tried)
    is_screen = any("passed" in d for d in tried)
    passed = sum(d.get("passed", True) for d in tried)
    rate = pass_rate(passed, tries) if is_screen else Interval(*(passed / tries,) * 3)
    bound = None if missed is None or not passed else copies_bound(missed, rate)
    return {
        "tries": tries, "pass_rate": rate.value, "pass_rate_interval": [rate.low, rate.high],
        "copies_bound": bound,
    }  # fmt: skip


def sections_of(run: Run) -> list[Section]:
    """Of one method; images alone of a run that is not finished."""
    path, records = within(run.folder, PROMPTS_NAME), run.records()
    images = pictures(run, pairs(records))
    if not path.is_file():
        told = (
            "This run is not finished, or an older version made it: "
            f"{sum(bool(r.get('images')) for r in records)} sets of images are there. The same "
            "command goes on from here; tables come with its end."
        )
        return [Section("Mitigation", [Text(told, "note"), images])]
    what = f"{run.about['method']} at {run.about['strength']:g}"
    rows = json.loads(path.read_bytes())
    found = blocks(rows, records, what, run.about.get("threshold"))
    if control := run.about.get("control"):
        found.append(Text(control, "note"))
    return [Section("Mitigation: before and after", [*found, images])]


def blocks(rows: Rows, records: Rows, what: str, threshold: float | None) -> list[Block]:
    """Of rows as `prompt_rows` has them: the table, and what to know beside it."""
    return [prompt_table(rows, what, threshold), *remarks(rows, records, what)]


def prompt_table(rows: Rows, what: str, threshold: float | None = None) -> Table:
    """Every prompt: what detection says, and its figures without mitigation and with it."""
    note = "without → with; ‖s_D‖ at the noises that these images start from"
    if any(row.get("tries") for row in rows):
        note += "; tries: of all images of a prompt together, pass: the share that was kept"
    if threshold is not None:
        note += (
            f"; detection: score_difference at other noises, memorized above {threshold:.3f}, "
            "unsure within the threshold's interval"
        )
    heads = {"score_difference": "‖s_D‖", "copied": "copies", "fidelity": "fidelity"}
    columns = [
        Column("prompt", lambda row: row["prompt"] or "(empty prompt)", short=60),
        Column("detection", lambda row: Cell.verdict(row["verdict"]), filtered=True),
        number("value", "statistic"),
        *(number(head, partial(_change, name)) for name, head in heads.items()),
        number("tries"),
        number("pass", "pass_rate", "{:.2f}"),
        number("copies at most", "copies_bound", "{:.2f}"),
        Column("failed", "error"),
    ]
    return Table(f"Mitigation by {what}", columns, rows, note, searchable=True)


def _change(name: str, row: Mapping[str, Any]) -> Cell:
    """Sorted by what the prompt's images are in the end."""
    sides = [one for end in ("before", "after") if (one := row[f"{name}_{end}"]) is not None]
    return Cell(" → ".join(f"{one:.2f}" for one in sides), sides[-1] if sides else None)


def remarks(rows: Rows, records: Rows, what: str) -> list[Block]:
    """What was treated, what failed, and which noises no longer look like noise."""
    treated = sum(row["treated"] for row in rows)
    told = f"{treated} of {len(rows)} prompts are treated by {what}"
    lines = [f"{told} (--all-prompts: none was judged)."]
    if any(row["verdict"] for row in rows):
        called = sum((row["verdict"] or "").startswith("memorized") for row in rows)
        lines = [
            f"{called} of {len(rows)} prompts are called memorized. {told}; the others' images are "
            "those that no mitigation gives."
        ]
    details = [d for row in rows for d in row["details"]]
    stopped = [d["outcome"] for d in details if "outcome" in d]
    for outcome, said in (
        ("budget", "spent their steps above the threshold; --max-steps gives more"),
        ("not finite", "stopped at NaN or infinity and keep their last finite noise"),
    ):
        if count := stopped.count(outcome):
            lines.append(f"{count} of {len(stopped)} descents {said}.")
    if refused := sum(row.get("refused_after", 0) for row in rows):
        none = [row["prompt"] for row in rows if row["refused_after"] and not row["images_after"]]
        told = f"{refused} images were refused: none of their noises passed the screen."
        if none:
            named = ", ".join(none[:5]) + (f" and {len(none) - 5} more" if len(none) > 5 else "")
            told += f" No image at all of: {named}."
        lines.append(told)
    bounds = [b for row in rows if (b := row.get("copies_bound")) is not None]
    if bounds:
        lines.append(
            "Of the images of a prompt copies are at most the share under 'copies at most' (95%; "
            f"smallest {min(bounds):.2f}, largest {max(bounds):.2f}), if {ASSUMPTION}."
        )
    elif any(row.get("tries") and row["images_after"] for row in rows):
        lines.append(
            "Nothing bounds the copies among these: what this screen misses is not known. sharpjax "
            "screen finds out, by prompts whose copies are known; give what it writes by --screen."
        )
    transitions = [d["transition"] for d in details if "transition" in d]
    if count := transitions.count(None):
        lines.append(
            f"{count} of {len(transitions)} images had no local minimum on their way, and no usual "
            "guidance from one on: more --steps find it, or delayed_guidance does without."
        )
    names = ("norm_z", "kurtosis_z", "autocorrelation_z")
    if odd := [d for d in details if any(abs(d.get(n, 0)) > ODD for n in names)]:
        worst = max(odd, key=lambda d: abs(d["norm_z"]))
        lines.append(
            f"{len(odd)} noises no longer look like draws of N(0, I) (a z-score beyond {ODD:g}); "
            f"the longest has {worst['norm']:.2f} times the usual length."
        )
    failed = sum("error" in record for record in records)
    told = f"{failed} failed, as told above; results.jsonl has the reasons."
    return [*map(Text, lines), *([Text(told, "wrong")] if failed else [])]


def pictures(run: Run, prompts: Pairs) -> Pictures:
    """Images of prompts, copies framed where somebody judged."""
    judged = {row["file"]: row["copied"] for row in run.table(IMAGES_TABLE) if "copied" in row}
    rows = []
    for prompt, sides in prompts[:_ROWS]:
        groups = []
        for title, files in sides.items():
            images = (
                picture(
                    run.folder, file, f"{prompt}, {title}, image {j + 1}",
                    copied=judged.get(file) == "True",
                )
                for j, file in enumerate(files[:_IMAGES])
            )  # fmt: skip
            groups.append((title, [one for one in images if one is not None]))
        rows.append((prompt, [group for group in groups if group[1]]))
    not_judged = "Images of each prompt; whether they copy was not judged."
    caption = "None is judged a copy." if judged else not_judged
    if "True" in judged.values():
        caption = "Red frame: a copy of a training image."
    if len(prompts) > _ROWS:
        caption += f" {_ROWS} of {len(prompts)} prompts are shown; all files are in images/."
    return Pictures([row for row in rows if row[1]], caption)
