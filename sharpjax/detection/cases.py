"""Conditions with what is known of them: memorized or not, where they come from, how often seen."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sharpjax.prompts import distinct, read_labelled

NUM_MEMORIZED, NUM_CLEAN = 60, 20  # of the balanced choice; clean ones of each source


@dataclasses.dataclass(frozen=True)
class Case:
    """A condition or prompt to be judged.

    Attributes:
        condition: its name or text.
        verdict: ``memorized``, ``clean``, ``between`` (kept apart), or None if not known.
        source: where it comes from; figures are given against the clean ones of each source.
        level: how often its images were repeated, or how many there are; 0 where not known.
        copy_rate: fraction of samples that are copies, None where not known.
    """

    condition: str
    verdict: str | None = None
    source: str = ""
    level: int = 0
    copy_rate: float | None = None


def from_file(path: str | Path, *, column: str | None = None) -> list[Case]:
    """Prompts of a file with their labels and sources (:func:`sharpjax.prompts.read_labelled`).

    Blank prompts, empty rows and repeats of a prompt are left out
    (:func:`sharpjax.prompts.distinct`), with a warning that counts them; what one line of a prompt
    leaves open, another may say.

    Raises:
        ValueError: one prompt with two labels, only blank ones, or as
            :func:`~sharpjax.prompts.read_labelled`.
    """
    lines = read_labelled(path, column=column)
    places = distinct([line.prompt for line in lines])
    labels: dict[str, str] = {}
    for line in lines:
        prompt, label = line.prompt.strip(), line.label
        if label is not None and labels.setdefault(prompt, label) != label and prompt:
            raise ValueError(
                f"{path}: {prompt[:60]!r} is labelled {labels[prompt]} and {label}; a prompt has "
                "one label"
            )
    blank = sum(not line.prompt.strip() for line in lines)
    repeated = len(lines) - blank - len(places)
    for count, one, many in ((blank, "blank", "blank"), (repeated, "a repeat", "repeats")):
        if count:
            told = f"prompt is {one} and was" if count == 1 else f"prompts are {many} and were"
            warnings.warn(f"{path}: {count} {told} left out", stacklevel=2)
    if not places:
        raise ValueError(f"{path} holds only blank prompts, which tell nothing of a model's memory")
    kept = [lines[place] for place in places]
    return [Case(one.prompt, labels.get(one.prompt.strip()), one.source) for one in kept]


def balanced(cases: Sequence[Case]) -> list[Case]:
    """At most 60 memorized cases, evenly over their levels, and 20 clean ones of each source.

    Clean ones that were planted as memorized, and did not become so, are left out.  The choice is
    spread over the list and always the same.
    """
    memorized = [case for case in cases if case.verdict == "memorized"]
    levels = sorted({case.level for case in memorized})
    groups = [[case for case in memorized if case.level == level] for level in levels]
    chosen: list[Case] = []
    # the smallest groups first, so that what they lack is shared by the others
    for left, group in zip(range(len(groups), 0, -1), sorted(groups, key=len), strict=True):
        chosen += spread(group, (NUM_MEMORIZED - len(chosen)) // left)
    sources = dict.fromkeys(case.source for case in cases if case.verdict == "clean")
    for source in sources:
        if source != "memorized":
            clean = [c for c in cases if c.verdict == "clean" and c.source == source]
            chosen += spread(clean, NUM_CLEAN)
    return [case for case in cases if case in chosen]


def spread(cases: Sequence[Case], count: int) -> list[Case]:
    """At most ``count`` of them, evenly over the list."""
    if len(cases) <= count:
        return list(cases)
    return [cases[i] for i in np.linspace(0, len(cases) - 1, count).round().astype(int)]
