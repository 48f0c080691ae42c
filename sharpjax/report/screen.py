"""What setting a screen shows: thresholds, what they drop, and how many copies slip through."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sharpjax.detection.calibration import fewest
from sharpjax.mitigation.copies_bound import ASSUMPTION
from sharpjax.mitigation.screen_calibration import ScreenCalibration
from sharpjax.report.blocks import Block, Column, Table, Text, number

DROPPED, TRIES = (0.05, 0.1, 0.2, 0.3, 0.5), (2, 3, 5, 8)


def rows_of(found: ScreenCalibration) -> list[dict[str, Any]]:
    """Of thresholds that drop so many clean paths, then of ranks; JSON values."""
    rows: list[dict[str, Any]] = []
    for dropped in DROPPED:
        if len(found.clean) < fewest(1 - dropped):
            continue  # of so few no threshold promises it
        look, missed = found.look(dropped), found.missed(dropped)
        passed = [np.array([look.passes(v) for v in own]) for own, _ in found.memorized.values()]
        rows.append(
            {
                "way": f"drops {dropped:.0%} of clean paths", "threshold": look.threshold,
                "passes": float(np.mean(np.concatenate(passed))) if passed else None,
                "missed": missed and missed.value, "upper": missed and missed.upper,
                "prompts": missed and missed.prompts,
            }
        )  # fmt: skip
    for tries in TRIES:
        if (missed := found.missed_by_rank(tries)) is not None:
            rows.append(
                {
                    "way": f"best of {tries}", "threshold": None, "passes": 1 / tries,
                    "missed": missed.value, "upper": missed.upper, "prompts": missed.prompts,
                }
            )  # fmt: skip
    return rows


def blocks(found: ScreenCalibration) -> list[Block]:
    """The table, and what it may be taken for."""
    copies = [copied.mean() for _, copied in found.memorized.values()]
    told = (
        f"{len(found.clean)} clean prompts set {found.quantity} before step {found.step} of "
        f"{found.num_steps}, guidance {found.guidance:g} after {found.free:.0%} of the steps."
    )
    if not copies:
        note = "No memorized prompts were given: nothing bounds the copies that slip through."
        return [Text(told), table(rows_of(found)), Text(note, "note")]
    told += (
        f" {len(copies)} memorized prompts copy in {np.mean(copies):.0%} of their images there; "
        f"they say what slips through. The bound assumes: {ASSUMPTION}."
    )
    return [Text(told), table(rows_of(found))]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row a threshold or rank."""
    return Table(
        "What a screen drops and what it misses",
        [
            Column("way"), number("threshold"),
            number("memorized paths that pass", "passes", "{:.2f}"),
            number("copies missed", "missed", "{:.3f}"), number("at most", "upper", "{:.3f}"),
            number("prompts"),
        ],
        rows,
        note="copies missed: mean over prompts of the share of their copies that pass, or are the "
        "best; at most: its 97.5% limit, the prompt as the unit. Copies among the images of a "
        "prompt are at most that, over its own pass rate",
    )  # fmt: skip
