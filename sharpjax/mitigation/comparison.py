"""All methods on the same prompts, kind by kind: curves, and points that other prompts chose."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sharpjax.detection.evaluation import holm
from sharpjax.mitigation.methods import NONE
from sharpjax.mitigation.tradeoff import (
    Curve,
    Outcomes,
    Paired,
    Point,
    best,
    curves,
    faithful,
    few,
    paired,
)

ALL = "all"  # kinds together
FEWEST = 2  # prompts of a kind, of either part


@dataclasses.dataclass(frozen=True)
class Kind:
    """Memorized prompts of one kind.

    Attributes:
        tuning: numbers of those that choose strengths.
        judged: of those that judge.
    """

    tuning: Sequence[int]
    judged: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Standing:
    """A method on one kind of prompts, at strengths that other prompts of the kind chose.

    Attributes:
        best: where it has the most successes.
        few: where 5% of its images are copies at most; None where it never comes so low.
        faithful: where it keeps 90% of the fidelity, and copies least; None where it never does.
        against: its successes at `best` less those of `rival`; None for that itself.
        p_value: of these, corrected for all comparisons of all kinds.
    """

    best: Point
    few: Point | None
    faithful: Point | None
    against: Paired | None
    p_value: float | None


@dataclasses.dataclass(frozen=True)
class OfKind:
    """All methods on one kind of prompts.

    Attributes:
        kind: the prompts.
        curves: of each method, on the prompts that judge.
        standings: of each, the most successful first.
        rival: the method with the most successes on the tuning prompts: it was named before
            anything was judged, and the others are tested against it.
    """

    kind: Kind
    curves: dict[str, Curve]
    standings: dict[str, Standing]
    rival: str | None

    @property
    def baseline(self) -> Point:
        """Without mitigation."""
        return self.curves[NONE].points[0]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All methods on the same prompts and seeds.

    Attributes:
        kinds: of prompts, all of them together first.
        reference: fidelity of clean prompts without mitigation.
        diversity: of theirs.
        judges_fidelity: whether somebody says what an image shows; otherwise every image that was
            drawn counts as right.
    """

    kinds: dict[str, OfKind]
    reference: float
    diversity: float
    judges_fidelity: bool


def kinds_of(names: Sequence[str], parts: Sequence[str], index: Sequence[int]) -> dict[str, Kind]:
    """Memorized prompts by kind, all of them first, each with prompts that tune and that judge.

    A kind with fewer than `FEWEST` of either counts among all of them alone.  Where no prompt says
    what it is for, every third of a kind is for tuning.

    Args:
        names: the kind of every prompt.
        parts: what each is for: `tuning`, `test`, or nothing.
        index: numbers of the memorized ones.
    """
    told = any(parts[i] for i in index)
    found: dict[str, Kind] = {}
    for name in dict.fromkeys(names[i] for i in index):
        own = [i for i in index if names[i] == name]
        tuning = [i for i in own if parts[i] == "tuning"] if told else own[1::3]
        found[name] = Kind(tuning, [i for i in own if i not in tuning])
    whole = Kind(
        sorted(i for kind in found.values() for i in kind.tuning),
        sorted(i for kind in found.values() for i in kind.judged),
    )
    if len(found) == 1:
        return {ALL: whole}
    able = {n: k for n, k in found.items() if min(len(k.tuning), len(k.judged)) >= FEWEST}
    return {ALL: whole} | able


def outcomes(rows: Sequence[Mapping[str, Any]], index: Sequence[int]) -> list[Outcomes]:
    """Of every method and strength on these prompts; cells that lack one of them are left out.

    Where nobody judges fidelity it is 1 of every image that was drawn.
    """
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
            values = [row.get(name) for row in members]
            numbers = [np.nan if value is None else float(value) for value in values]
            return np.array(numbers).reshape(len(index), -1)

        refused = np.array([row["file"] is None for row in members]).reshape(len(index), -1)
        fidelity = grid("fidelity")
        drawn = np.where(refused, 0.0, 1.0)
        found.append(
            Outcomes(
                method,
                strength,
                grid("copied") == 1,
                grid("turned") == 1,
                np.where(np.isnan(fidelity), drawn, fidelity),
                float(grid("evaluations").mean()),
                float(grid("seconds").mean()),
                refused,
                grid("maker"),
                grid("diversity")[:, 0],
            )
        )
    return found


def compare(
    rows: Sequence[Mapping[str, Any]], *, kinds: Mapping[str, Kind], clean: Sequence[int]
) -> Comparison:
    """Curves on the judged prompts of each kind, strengths chosen on its tuning prompts.

    Raises:
        ValueError: a prompt in two parts, or a part without any.
    """
    for kind in kinds.values():
        if set(kind.tuning) & set(kind.judged) or not (kind.tuning and kind.judged and clean):
            raise ValueError(
                "a comparison needs prompts to tune on, others to judge by, and clean ones; got "
                f"{len(kind.tuning)}, {len(kind.judged)} and {len(clean)}"
            )
    usual = next(one for one in outcomes(rows, clean) if one.method == NONE)
    reference = float(usual.fidelity.mean())
    found = {name: _of_kind(rows, kind, reference) for name, kind in kinds.items()}
    tests = [
        (name, method, standing.against)
        for name, one in found.items()
        for method, standing in one.standings.items()
        if standing.against is not None
    ]
    corrected = dict(
        zip([t[:2] for t in tests], holm([t[2].p_value for t in tests]).tolist(), strict=True)
    )
    for name, one in found.items():
        for method, standing in one.standings.items():
            p_value = corrected.get((name, method))
            one.standings[method] = dataclasses.replace(standing, p_value=p_value)
    own = [row for row in rows if row["index"] in clean and row["file"] is not None]
    judged = any(row.get("fidelity") is not None for row in own)
    return Comparison(found, reference, _mean(usual.diversity), judged)


def _of_kind(rows: Sequence[Mapping[str, Any]], kind: Kind, reference: float) -> OfKind:
    drawn = curves(outcomes(rows, kind.judged))
    tuned: dict[str, list[Outcomes]] = {}
    for one in outcomes(rows, kind.tuning):
        if one.method != NONE and one.method in drawn:
            tuned.setdefault(one.method, []).append(one)
    successes = {name: best(mine).success.mean() for name, mine in tuned.items()}
    rival = max(successes, key=lambda name: successes[name], default=None)

    def at(name: str, chosen: Outcomes | None) -> Point | None:
        if chosen is None:
            return None
        points = drawn[name].points
        return next((p for p in points if p.outcomes.strength == chosen.strength), None)

    points = {name: at(name, best(mine)) for name, mine in tuned.items()}
    standings = {}
    for name, point in points.items():
        if point is None:
            continue
        against = None
        if rival is not None and name != rival and (other := points[rival]) is not None:
            against = paired(point.outcomes, other.outcomes)
        kept = faithful(tuned[name], reference=reference)
        standings[name] = Standing(point, at(name, few(tuned[name])), at(name, kept), against, None)
    ordered = sorted(standings.items(), key=lambda item: -item[1].best.success.value)
    return OfKind(kind, drawn, dict(ordered), rival)


def _mean(values: np.ndarray | None) -> float:
    """Of what is known."""
    if values is None or np.isnan(values).all():
        return float("nan")
    return float(np.nanmean(values))
