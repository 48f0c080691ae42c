"""Conditions with what is known of them: memorized or not, where they come from, how often seen."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sharpjax.prompts import read_labelled

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


def from_file(path: str | Path) -> list[Case]:
    """Prompts of a file with their labels and sources (:func:`sharpjax.prompts.read_labelled`).

    The empty prompt is the condition of the unconditional score, so its differences are 0 whatever
    the model remembers, and a prompt that stands there twice would count twice: both are computed,
    and left out of the figures with a warning.

    Raises:
        ValueError: one prompt with two labels, or as :func:`~sharpjax.prompts.read_labelled`.
    """
    cases: list[Case] = []
    labels: dict[str, str | None] = {}
    empty = repeated = 0
    for line in read_labelled(path):
        label = line.label
        if line.prompt in labels:
            repeated += 1
            if labels[line.prompt] != label:
                raise ValueError(
                    f"{path}: {line.prompt[:60]!r} is labelled {labels[line.prompt]} and {label}; "
                    "a prompt has one label"
                )
            label = None
        elif not line.prompt.strip():
            empty += 1
            label = None
        else:
            labels[line.prompt] = label
        cases.append(Case(line.prompt, label, line.source))
    for count, what in ((empty, "empty"), (repeated, "already there")):
        if count:
            warnings.warn(
                f"{path}: {count} prompts are {what}; computed, and left out of the figures",
                stacklevel=2,
            )
    return cases


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
