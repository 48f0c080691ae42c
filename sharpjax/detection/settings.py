"""What a detection run computes: statistics, noises, probes, paths; or of images."""

import dataclasses
import math

import numpy as np

from sharpjax.curvature.validation import positive_integer
from sharpjax.detection.statistics import STATISTICS, Where
from sharpjax.schedules import Schedule


def _of(*places: Where) -> tuple[str, ...]:
    return tuple(name for name, entry in STATISTICS.items() if entry.where in places)


FIRST_STEP, TRACES = _of("first"), _of("level")
ALONG_PATHS = _of("path", "end", "images", "latent")
GROUPS = {
    "first": FIRST_STEP + _of("noise"),
    "traces": TRACES,
    "paths": ALONG_PATHS,
    "all": tuple(STATISTICS),
}
# Ours: Stable Diffusion's grid has t = 1 of 1,000 at its end, and the p-Laplacian is taken at 10.
NEAR_THE_END = 10
PARTS = 4  # of the directions about an image: their means are the samples that the error is from


def _as_plain(settings: "DetectSettings | ImageSettings", *counts: str) -> None:
    """NumPy's scalars as Python's, which a run's settings are; counts are at least 1, places 0."""
    for field in dataclasses.fields(settings):
        name, value = field.name, getattr(settings, field.name)
        if isinstance(value, np.generic | np.ndarray):
            value = value.tolist()
        if name in counts:
            value = positive_integer(name, value)
        elif name in ("seed", "timestep"):
            value = positive_integer(name, value, least=0)
        elif name == "trace_timesteps":
            value = tuple(positive_integer(name, t, least=0) for t in value)
        elif isinstance(value, list):
            value = tuple(value)
        object.__setattr__(settings, name, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectSettings:
    """What defines the numbers of a detection run.

    Attributes:
        statistics: names, in the order of :data:`~sharpjax.detection.statistics.STATISTICS`.
        num_noises: initial noises a condition.
        independent: other noises for every condition, not the same for all. The unconditional
            score is then linearized for each condition anew.
        squared: :func:`hessian_score_difference` as the paper prints it.
        trace_noises: how many of these noises the traces are taken at.
        trace_timesteps: where; the state there is the noise, up to the first step, and then reached
            by DDIM under the condition.
        num_probes: Hutchinson probes a trace or diagonal, shared by all conditions.
        path_steps: DDIM steps between two trace timesteps.
        num_steps: of the grid: its first timestep with ``alpha > 0`` is where the statistics of the
            first step are taken, and whole paths have so many steps.
        guidance: of whole paths.
        num_directions: of the p-Laplacian's flux.
        seed: of noises, probes and directions.
    """

    statistics: tuple[str, ...] = FIRST_STEP + TRACES
    num_noises: int = 4
    independent: bool = False
    squared: bool = False
    trace_noises: int = 2
    trace_timesteps: tuple[int, ...] = (981, 800, 600)
    num_probes: int = 4
    path_steps: int = 4
    num_steps: int = 50
    guidance: float = 7.5
    num_directions: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        _as_plain(
            self, "num_noises", "trace_noises", "num_probes", "path_steps", "num_steps",
            "num_directions",
        )  # fmt: skip
        if not self.statistics:
            raise ValueError("statistics must name at least one")
        if unknown := [name for name in self.statistics if name not in STATISTICS]:
            raise ValueError(
                f"unknown statistic {unknown[0]!r}; choose of {', '.join(STATISTICS)}, or a group: "
                f"{', '.join(GROUPS)}"
            )
        if len(set(self.statistics)) != len(self.statistics):
            raise ValueError(f"statistics must be distinct, got {', '.join(self.statistics)}")
        if "tiled_l2" in self.statistics and self.num_noises < 2:
            raise ValueError(
                "tiled_l2 compares images of one prompt: num_noises must be at least 2"
            )
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance}")
        if list(self.trace_timesteps) != sorted(set(self.trace_timesteps), reverse=True):
            raise ValueError(f"trace_timesteps must descend, got {self.trace_timesteps}")

    def chosen(self, *places: Where) -> tuple[str, ...]:
        """Of the statistics, those computed at these places."""
        return tuple(n for n in _of(*places) if n in self.statistics)

    def timesteps(self, schedule: Schedule) -> tuple[int, int, int]:
        """First, third-last and last timestep of the grid where ``alpha > 0``.

        Raises:
            ValueError: there is none, or ``alpha = 0`` at one of the trace timesteps.
        """
        grid = schedule.timesteps_with_signal(self.num_steps)
        silent = [t for t in self.trace_timesteps if schedule.is_pure_noise(t)]
        if silent and self.chosen("level"):
            raise ValueError(
                f"trace_timesteps: alpha = 0 at t={silent[0]}, where traces are the same for every "
                f"condition; take timesteps up to {grid[0]}"
            )
        return int(grid[0]), int(grid[max(len(grid) - 3, 0)]), int(grid[-1])

    def names(self, schedule: Schedule) -> tuple[str, ...]:
        """Names of all columns: ``statistic@t``, without ``@t`` what belongs to a whole path.

        Two of them are not numbers but what these are made of, by :mod:`sharpjax.detection.
        calibration`: ``guidance_alignment`` has two terms, ``step_displacement`` one a step.
        """
        first, later, last = self.timesteps(schedule)
        columns = []
        for name in STATISTICS:
            if name not in self.statistics:
                continue
            where = STATISTICS[name].where
            if where == "level":
                columns += [f"{name}@{t}" for t in self.trace_timesteps]
            elif where in ("path", "images"):
                columns.append(name)
            else:
                at = {"first": first, "noise": later, "end": last, "latent": NEAR_THE_END}[where]
                columns.append(f"{name}@{at}")
        return tuple(columns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """What defines the numbers of a run on images.

    Attributes:
        p: exponent of the p-Laplacian.
        num_directions: of the flux, a multiple of 4.
        exact: also the exact p-Laplacian at the middle, by ``d + 1`` tangents an image.
        timestep: a small one.
        seed: of the directions.
    """

    p: float = 1.0
    num_directions: int = 128
    exact: bool = False
    timestep: int = NEAR_THE_END
    seed: int = 0

    def __post_init__(self) -> None:
        _as_plain(self, "num_directions")
        if self.num_directions < PARTS or self.num_directions % PARTS:
            raise ValueError(
                f"num_directions must be a positive multiple of {PARTS}, got {self.num_directions}"
            )
        if not 1 <= self.p < math.inf:
            raise ValueError(f"p must be a finite number >= 1, got {self.p}")

    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        flux = f"p_laplacian@{self.timestep}"
        return (flux, f"{flux}, exact") if self.exact else (flux,)


def named(names: list[str]) -> tuple[str, ...]:
    """Statistics of a list that may name groups of them; in the registry's order.

    Raises:
        ValueError: neither a statistic nor a group.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in GROUPS and name not in STATISTICS:
            raise ValueError(
                f"unknown statistic {name!r}; choose of {', '.join(STATISTICS)}, or a group: "
                f"{', '.join(GROUPS)}"
            )
        wanted |= set(GROUPS.get(name, (name,)))
    return tuple(name for name in STATISTICS if name in wanted)
