"""What a detection run computes: statistics, noises, probes, paths; or of images."""

import dataclasses
import math

import numpy as np

from sharpjax._checks import positive_integer
from sharpjax.detection.registry import Bound, Where, at, at_time, unknown
from sharpjax.detection.statistics import STATISTICS
from sharpjax.schedules import NoiseSchedule

FIRST_STEP, TRACES = at("first"), at("level")
# Ours: Stable Diffusion's grid has t = 1 of 1,000 at its end, and the p-Laplacian is taken at 10.
NEAR_THE_END = 10
PARTS = 4  # of the directions about an image: their means are the samples that the error is from


def _as_plain(settings: "DetectSettings | ImageSettings") -> None:
    """NumPy's scalars as Python's, which a run's settings are; counts are at least 1, places 0."""
    for field in dataclasses.fields(settings):
        name, value = field.name, getattr(settings, field.name)
        if isinstance(value, np.generic | np.ndarray):
            value = value.tolist()
        if name.startswith("num_") or name in ("trace_noises", "path_steps"):
            value = positive_integer(name, value)
        elif name in ("seed", "timestep", "first_noise"):
            value = positive_integer(name, value, least=0)
        elif name == "trace_timesteps":
            value = tuple(positive_integer(name, t, least=0) for t in value)
        elif name == "alignment_weights":
            value = tuple(float(weight) for weight in value)
        elif isinstance(value, list):
            value = tuple(value)
        object.__setattr__(settings, name, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectSettings:
    """What defines the numbers of a detection run.

    Attributes:
        statistics: names, in the order of `sharpjax.detection.statistics.STATISTICS`.
        num_noises: initial noises a condition.
        first_noise: number of the first of them; each depends on its number and the seed alone.
        squared: `hessian_score_difference` as the paper prints it.
        alignment_weights: of `guidance_alignment`'s length and cosine; as published for
            Stable Diffusion 1.4, for 2 it is `(1, 0.1)`.
        trace_noises: how many of these noises the traces are taken at.
        trace_timesteps: where; the state there is the noise, up to the first step, and then reached
            by DDIM under the condition.
        num_probes: Hutchinson probes a trace, or of `diagonal_distance`, shared by all
            conditions.
        path_steps: DDIM steps between two trace timesteps.
        num_steps: of the grid: its first timestep with `alpha > 0` is where the statistics of the
            first step are taken, and whole paths have so many steps.
        guidance: of whole paths.
        num_directions: of the p-Laplacian's flux.
        seed: of noises, probes and directions.
        plugins: name and SHA-256 of those of the statistics that come from a file of a user's;
            follows from the names.
    """

    statistics: tuple[str, ...] = FIRST_STEP + TRACES
    num_noises: int = 4
    first_noise: int = 0
    squared: bool = False
    alignment_weights: tuple[float, float] = (1.0, 2.0)
    trace_noises: int = 2
    trace_timesteps: tuple[int, ...] = (981, 800, 600)
    num_probes: int = 4
    path_steps: int = 4
    num_steps: int = 50
    guidance: float = 7.5
    num_directions: int = 128
    seed: int = 0
    plugins: tuple[tuple[str, str], ...] | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        _as_plain(self)
        if not self.statistics:
            raise ValueError("statistics must name at least one")
        if wrong := [name for name in self.statistics if name not in STATISTICS]:
            raise ValueError(unknown(wrong[0]))
        if len(set(self.statistics)) != len(self.statistics):
            raise ValueError(f"statistics must be distinct, got {', '.join(self.statistics)}")
        for name in self.statistics:
            if self.num_noises < (least := STATISTICS[name].least_noises):
                raise ValueError(
                    f"num_noises must be at least {least} for {name}, got {self.num_noises}"
                )
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance}")
        weights = self.alignment_weights
        if len(weights) != 2 or not all(map(math.isfinite, weights)) or not any(weights):
            raise ValueError(
                "alignment_weights must be two finite numbers, of the length and of the cosine, "
                f"not both 0, got {weights}"
            )
        if list(self.trace_timesteps) != sorted(set(self.trace_timesteps), reverse=True):
            raise ValueError(f"trace_timesteps must descend, got {self.trace_timesteps}")
        files = [(name, STATISTICS[name].digest) for name in sorted(self.statistics)]
        object.__setattr__(self, "plugins", tuple((n, d) for n, d in files if d) or None)

    def chosen(self, *places: Where) -> tuple[Bound, ...]:
        """Of the statistics, those computed at these places, with their options."""
        return tuple(STATISTICS[n].bound(self) for n in at(*places) if n in self.statistics)

    def timesteps(self, schedule: NoiseSchedule) -> tuple[float, float, float]:
        """First, third-last and last timestep of the grid where `alpha > 0`.

        Raises:
            ValueError: there is none, or `alpha = 0` at one of the trace timesteps.
        """
        grid = schedule.timesteps_with_signal(self.num_steps)
        silent = [t for t in self.trace_timesteps if schedule.is_pure_noise(t)]
        if silent and self.chosen("level", "state"):
            raise ValueError(
                f"trace_timesteps: alpha = 0 at t={silent[0]}, where traces are the same for every "
                f"condition; take timesteps up to {grid[0]}"
            )
        return grid[0].item(), grid[max(len(grid) - 3, 0)].item(), grid[-1].item()

    def names(self, schedule: NoiseSchedule) -> tuple[str, ...]:
        """Names of all columns: `statistic@t`, without `@t` what belongs to a whole path.

        Some are not numbers but what these are made of, by `sharpjax.detection.calibration`:
        those of statistics with `parts`.
        """
        first, later, last = self.timesteps(schedule)
        columns = []
        for name in STATISTICS:
            if name not in self.statistics:
                continue
            where = STATISTICS[name].where
            if where in ("level", "state"):
                columns += [at_time(name, t) for t in self.trace_timesteps]
            elif where in ("path", "images"):
                columns.append(name)
            else:
                near = dict.fromkeys(("latent", "reencoded"), NEAR_THE_END)
                t = ({"first": first, "noise": later, "end": last} | near)[where]
                columns.append(at_time(name, t))
        return tuple(columns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """What defines the numbers of a run on images.

    Attributes:
        p: exponent of the p-Laplacian.
        num_directions: of the flux, a multiple of 4.
        exact: also the exact p-Laplacian at the middle, by `d + 1` tangents an image.
        timestep: of the noise that the sphere is as large as.  Not the smallest: at t = 10 copies
            of the bundled drawings rank behind other images (docs/papers/brokman2025.md).
        seed: of the directions.
    """

    p: float = 1.0
    num_directions: int = 128
    exact: bool = False
    timestep: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        _as_plain(self)
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
