"""All methods on the same prompts: curves, and each at the strength that other prompts chose."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sharpjax.mitigation.methods import NONE
from sharpjax.mitigation.tradeoff import (
    Curve,
    Outcomes,
    Paired,
    Point,
    choose,
    curves,
    paired,
    relative_reduction,
)

REFERENCE_METHOD = "sail"  # that the others are tested against
LESS = 0.8  # of the copies should be gone


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

    def by_success(self) -> list[tuple[str, Chosen]]:
        """Methods at their chosen strengths, the most successful first."""
        return sorted(self.chosen.items(), key=lambda item: -item[1].point.success.value)


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
