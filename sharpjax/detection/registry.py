r"""The registry of statistics: what a run, its tables, thresholds and page know of each.

`register` adds one, of the package or of a user; nothing else knows a statistic by name.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax.numpy as jnp

from sharpjax._reprs import one_line
from sharpjax._types import Array

Where = Literal[
    "first", "level", "state", "end", "noise", "path", "images", "latent", "reencoded"
]  # fmt: skip
Function = TypeVar("Function", bound=Callable[..., Any])

# by the part of a run that computes them
GROUPS: dict[str, tuple[Where, ...]] = {
    "first": ("first", "noise"),
    "traces": ("level",),
    "paths": ("path", "end", "images", "latent"),
    "gap": ("state", "reencoded"),
}
EVERYTHING = "all"
OPTIONS = ("squared", "alignment_weights", "num_probes", "num_directions")  # of the settings
# how many arguments a function of each place is given by position, and which by name
_ARGUMENTS: dict[Where, tuple[int, tuple[str, ...]]] = {
    "first": (2, ("linearized",)), "noise": (3, ()), "level": (2, ("key",)),
    "state": (2, ("key",)), "end": (2, ("key",)),
    "path": (1, ()), "images": (1, ()), "latent": (2, ("key",)), "reencoded": (2, ("key",)),
}  # fmt: skip
_TERM = re.compile(r"(\d+ ?)?(?:(probes|directions) )?([FT])")


def at_time(name: str, t: float) -> str:
    """The column of a statistic at a time, `name@t`.

    >>> at_time("score_difference", 981), at_time("score_difference", 990.3333129882812)
    ('score_difference@981', 'score_difference@990.333')
    """
    return f"{name}@{t:.6g}"


class Parts(NamedTuple):
    """Of a statistic whose record is not a number, but what it is made of.

    Attributes:
        key: of their means and standard deviations over clean prompts in a calibration's file.
        combine: `(parts, mean=, std=)`, `(..., n)` and twice `(n,)`, to `(...)`.
        over_noises: these are over prompts and noises, not over prompts' means.
    """

    key: str
    combine: Callable[..., Array]
    over_noises: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistic:
    """An entry of the registry.

    Attributes:
        function: what it is computed by.
        direction: `+1` if larger means memorized, `-1` if smaller does.
        where: what it is computed from; see `register`.
        cost: network evaluations a noise and level, beside the sampling itself: F forward, T
            tangent, as in `"2F + 2 probes T"` or `"directions F"`, where the words stand for the
            run's settings; `"0"` for none.
        source: where it was published.
        shared: of `cost`, what is computed once for all conditions if the noises are the same.
        options: keywords of the function that the settings have by the same name: of `squared`,
            `alignment_weights`, `num_probes`, `num_directions`.
        unconditional: whether it asks the unconditional score.
        vectors: whether it asks for conditions that are vectors; it is left out of groups where
            they are not.
        least_noises: that it needs.
        terms: what several statistics of a place start from: of the same arguments, computed once
            for them, and given as the keyword `terms`. It asks the scores at `x` alone, where they
            may be known already.
        parts: if its record is no number.
        exact: of `where="level"`, its closed form for an exact score, from `tr K_c`, `tr K_u` and
            sigma.
        digest: SHA-256 of the file that a run has loaded it from.
    """

    function: Callable[..., Any]
    direction: int
    where: Where
    cost: str
    source: str
    shared: str = "0"
    options: tuple[str, ...] = ()
    unconditional: bool = True
    vectors: bool = False
    least_noises: int = 1
    terms: Callable[..., Array] | None = None
    parts: Parts | None = None
    exact: Callable[[Array, Array, Array], Array] | None = None
    digest: str | None = None

    __repr__ = one_line

    @property
    def name(self) -> str:
        """Of its function, of its columns and on the command line."""
        return self.function.__name__

    @property
    def group(self) -> str:
        """Which of `GROUPS` it belongs to."""
        return next(group for group, places in GROUPS.items() if self.where in places)

    @property
    def is_custom(self) -> bool:
        """Whether it is of a user, not of this package."""
        return self.function.__module__.partition(".")[0] != __name__.partition(".")[0]

    def bound(self, settings: Any) -> "Bound":
        """With its options as the settings have them."""
        return Bound(self, tuple((name, getattr(settings, name)) for name in self.options))

    def evaluations(self, settings: Any, *, apart: bool = False) -> tuple[int, int]:
        """Forward evaluations and tangents a noise and level, without what is shared.

        Args:
            settings: of the run.
            apart: nothing is shared.
        """
        words = {"": 1, "probes": settings.num_probes, "directions": settings.num_directions}
        count = {"F": 0, "T": 0}
        for sign, cost in ((1, self.cost), (-1, "0" if apart else self.shared)):
            for number, word, kind in _terms(cost):
                count[kind] += sign * number * words[word]
        return count["F"], count["T"]


class Bound(NamedTuple):
    """A statistic and its options: what a compiled program depends on."""

    statistic: Statistic
    options: tuple[tuple[str, Any], ...]

    def __call__(self, *arguments: Any, **given: Any) -> Any:
        """Its value.

        Raises:
            ValueError: a user's function fails, or does not return one real number.
        """
        function, name = self.statistic.function, self.statistic.name
        if not self.statistic.is_custom:
            return function(*arguments, **given, **dict(self.options))
        try:
            value = jnp.asarray(function(*arguments, **given, **dict(self.options)))
        except Exception as error:
            told = next(iter(str(error).splitlines()), "")
            raise ValueError(
                f"the statistic {name} cannot be computed: {type(error).__name__}: {told}"
            ) from error
        if value.shape or jnp.iscomplexobj(value):
            raise ValueError(
                f"the statistic {name} must be one real number, got {value.dtype} of shape "
                f"{value.shape}; return a scalar of each noise"
            )
        return value


STATISTICS: dict[str, Statistic] = {}
"""Every statistic by its name, in the order of tables."""


def register(
    *,
    direction: int,
    where: Where,
    cost: str,
    source: str,
    options: Sequence[str] = (),
    **others: Any,
) -> Callable[[Function], Function]:
    r"""Decorator: make a function a statistic of detection, by its name.

    Runs compute it, thresholds are set for it, tables and pages show it, as they do the package's
    own.  The first paragraph of its docstring says on the page what it is.  It has to be jittable,
    to map over noises by `jax.vmap` and to return a scalar, from what is at its place:

    - first: `(pair, x, *, linearized=None)`, a `sharpjax.score.ScorePair` at the first timestep of
      sampling with `alpha > 0` (at `alpha = 0` the two scores are one), pure noise `x`, and the
      pair's `linearize(x)`, which the statistics there share
    - noise: `(first, later, x)`, pairs of that timestep and of the third-last, both to be asked at
      pure noise `x`: nothing is denoised
    - level: `(pair, x, *, key)`, at each of the trace timesteps, `x` a state there
    - state: the same, of the group of the gap
    - end: `(pair, x, *, key)`, at the last step of a path
    - path: `(path)`, a `sharpjax.detection.trajectory.Trajectory`
    - images: `(images)`, all finished images of a prompt, `(n, channels, height, width)`, -1 to 1
    - latent: `(pair, z, *, key)`, a finished example `z` and a pair at a small noise level
    - reencoded: the same, of the finished image encoded again

    Under `jax.vmap` over the conditions at one and the same noise, the unconditional score of
    `linearized` is linearized once for all of them.

    The arguments are the fields of `Statistic`.

    Raises:
        ValueError: a name that is no identifier, a group's or another statistic's; another
            direction, place or option; a cost that cannot be read; other arguments.
    """
    if direction not in (1, -1):
        raise ValueError(
            f"direction must be 1 (larger means memorized) or -1 (smaller does), got {direction!r}"
        )
    places = [place for group in GROUPS.values() for place in group]
    if where not in places:
        raise ValueError(f"where must be one of {', '.join(places)}, got {where!r}")
    if wrong := [name for name in options if name not in OPTIONS]:
        raise ValueError(f"options must be of {', '.join(OPTIONS)}, got {wrong[0]!r}")
    if where == "first":
        others = {"shared": "F"} | others
    for value in (cost, others.get("shared", "0")):
        _terms(value)

    fields: dict[str, Any] = {"direction": direction, "where": where, "cost": cost}
    fields |= {"source": source, "options": tuple(options)} | others

    def add(function: Function) -> Function:
        name = function.__name__
        if not name.isidentifier() or name in (*GROUPS, EVERYTHING):
            raise ValueError(
                f"a statistic's name must be an identifier and no group's, got {name!r}; rename "
                "the function"
            )
        count, names = _ARGUMENTS[where]
        try:
            given = dict.fromkeys((*names, *options))
            inspect.signature(function).bind(*[None] * count, **given)
        except TypeError as error:
            keywords = f" and the keywords {', '.join(given)}" if given else ""
            raise ValueError(
                f"{name} must take {count} arguments{keywords} (where={where!r}), got "
                f"{name}{inspect.signature(function)}: {error}"
            ) from error
        entry = Statistic(function=function, **fields)
        other = STATISTICS.get(name)
        # what a notebook's cell or a file defines may be defined again
        same = other is not None and other.function.__module__ == function.__module__
        if other is not None and not (entry.is_custom and same):
            raise ValueError(
                f"a statistic's name must be new, got {name!r}, which is {other.source}'s in "
                f"{other.function.__module__}; rename the function"
            )
        STATISTICS[name] = entry
        return function

    return add


def _terms(cost: str) -> list[tuple[int, str, Literal["F", "T"]]]:
    """How often, of what, and which kind: of every term of a cost."""
    found = [_TERM.fullmatch(term) for term in cost.split(" + ")] if cost != "0" else []
    if not all(found):
        raise ValueError(
            "cost must be terms such as 2F, 2 probes T or directions F with ' + ' between, or 0, "
            f"got {cost!r}"
        )
    return [(int(m[1] or 1), m[2] or "", m[3]) for m in found if m]  # type: ignore[misc]


def at(*places: Where) -> tuple[str, ...]:
    """Names of the statistics computed at these places."""
    return tuple(name for name, entry in STATISTICS.items() if entry.where in places)


def named(
    names: Sequence[str],
    *,
    num_noises: int | None = None,
    vectors: bool = True,
    without: Sequence[str] = (),
) -> tuple[str, ...]:
    """Statistics of a list that may name groups of them; in the registry's order.

    Of a group, what needs more than `num_noises` is left out, what asks for conditions that are
    vectors where they are not, and what `without` names.

    Raises:
        ValueError: neither a statistic nor a group.
    """
    wanted = {name for name in names if name in STATISTICS}
    for name in names:
        if name == EVERYTHING or name in GROUPS:
            of_group = tuple(STATISTICS) if name == EVERYTHING else at(*GROUPS[name])
            entries = (STATISTICS[one] for one in of_group)
            wanted |= {
                entry.name for entry in entries
                if (num_noises is None or entry.least_noises <= num_noises)
                and (vectors or not entry.vectors)
                and entry.name not in without
            }  # fmt: skip
        elif name not in STATISTICS:
            raise ValueError(unknown(name))
    return tuple(name for name in STATISTICS if name in wanted)


def unknown(name: str) -> str:
    """What is said of a name that stands for nothing."""
    return (
        f"a statistic must be one of {', '.join(STATISTICS)}, or a group "
        f"({', '.join((*GROUPS, EVERYTHING))}), got {name!r}"
    )
