r"""The training grid of DDPM and Stable Diffusion.

The forward process is variance preserving,

$$
x_t = \alpha_t x_0 + \sigma_t \epsilon, \qquad
\alpha_t = \sqrt{\bar\alpha_t}, \quad \sigma_t = \sqrt{1 - \bar\alpha_t}, \quad
\bar\alpha_t = \prod_{s \le t} (1 - \beta_s),
$$

with integer timesteps `t = 0, ..., T - 1` as in diffusers.  Betas are computed in float64,
because `1 - alpha_bar` loses its digits in float32 near `t = 0`.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._checks import UNKNOWN, checked_pytree, level
from sharpjax._reprs import one_line
from sharpjax._types import ArrayLike
from sharpjax.checkpoints.directory import SCHEDULER_NAME, read_json
from sharpjax.checkpoints.scheduler import scheduler_settings
from sharpjax.schedules.base import NoiseSchedule, checked_steps

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "trailing", "linspace")
MAX_TIMESTEPS = 100_000  # the longest in use have 4,000; a configuration may claim any number


def betas(
    name: str, num_train_timesteps: int = 1000, *, start: float = 0.0001, end: float = 0.02
) -> np.ndarray:
    r"""The noise added at each training step, shape `(num_train_timesteps,)`, float64.

    `linear`: `beta` from `start` to `end`; `scaled_linear` (Stable Diffusion): its
    square root is linear; `squaredcos_cap_v2` (Nichol & Dhariwal 2021, arXiv:2102.09672):
    $\bar\alpha(s) = \cos^2(\tfrac{\pi}{2}\,\tfrac{s + 0.008}{1.008})$, capped at 0.999,
    which ignores `start` and `end`.

    Raises:
        ValueError: an unknown name, fewer than one step, or not `0 < start <= end < 1`.

    >>> betas("scaled_linear", 3, start=0.01, end=0.04).round(4).tolist()
    [0.01, 0.0225, 0.04]
    """
    if num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps must be at least 1, got {num_train_timesteps!r:.40}")
    if num_train_timesteps > MAX_TIMESTEPS:
        raise ValueError(
            f"num_train_timesteps must be at most {MAX_TIMESTEPS}, got {num_train_timesteps!r:.40}"
        )
    if name == "squaredcos_cap_v2":
        edges = np.arange(num_train_timesteps + 1) / num_train_timesteps
        alpha_bar = np.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    if not 0 < start <= end < 1:
        raise ValueError(
            "betas need 0 < start <= end < 1, got start (beta_start) "
            f"{start!r:.40}, end (beta_end) {end!r:.40}"
        )
    if name == "linear":
        return np.linspace(start, end, num_train_timesteps)
    if name == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, num_train_timesteps) ** 2
    raise ValueError(f"beta_schedule must be one of {', '.join(BETA_SCHEDULES)}, got {name!r:.80}")


def _checked_betas(values: Any) -> np.ndarray:
    """`trained_betas`: numbers, not what NumPy can make into numbers."""
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if (
        not isinstance(values, list | tuple)
        or not 0 < len(values) <= MAX_TIMESTEPS
        or not all(isinstance(v, int | float | np.floating) and 0 < v < 1 for v in values)
    ):
        raise ValueError(
            f"trained_betas must be a list of 1 to {MAX_TIMESTEPS} numbers between 0 and 1"
        )
    return np.asarray(values, np.float64)


def rescale_zero_terminal_snr(beta: np.ndarray) -> np.ndarray:
    """Shift and stretch `sqrt(alpha_bar)` so that the last step is pure noise.

    Lin et al. 2024, arXiv:2305.08891, algorithm 1.
    """
    root = np.sqrt(np.cumprod(1 - beta))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    return 1 - np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


@checked_pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule(NoiseSchedule):
    """`alpha` and `sigma` on the training grid, and the sub-grid that sampling visits.

    Fields are arrays of shape `(T,)` and static settings named as in diffusers'
    `scheduler_config.json`; a `Schedule` is a pytree and crosses `jax.jit` as an argument.
    Built directly, it takes any levels, such as `alpha = 1 - sigma`: nothing here needs
    `alpha^2 + sigma^2 = 1`.

    Attributes:
        alphas: signal `alpha_t`, dimensionless.
        sigmas: noise `sigma_t`, the unit in which the score is `1/sigma`.
        prediction_type: what the network predicts: `epsilon`, `v_prediction`, `sample` or
            `flow_prediction`.
        timestep_spacing: how `timesteps` picks the sub-grid.
        steps_offset: added to every timestep under `leading` spacing.
        set_alpha_to_one: whether the last sampling step lands on the clean image
            (`alpha = 1`) or on `t = 0`.
        clip_sample_range: sampling clips its estimates of the clean image to this in absolute
            value, as pipelines of pixels do; `None` does not.
        config: the remaining settings, kept so that they can be written back.

    Raises:
        ValueError: levels that are not two lists of one length with finite `alpha >= 0` and
            `sigma > 0`, or a setting outside those of `create`.
    """

    alphas: jax.Array
    sigmas: jax.Array
    prediction_type: str = dataclasses.field(default="epsilon", metadata={"static": True})
    timestep_spacing: str = dataclasses.field(default="leading", metadata={"static": True})
    steps_offset: int = dataclasses.field(default=1, metadata={"static": True})
    set_alpha_to_one: bool = dataclasses.field(default=False, metadata={"static": True})
    clip_sample_range: float | None = dataclasses.field(default=None, metadata={"static": True})
    config: tuple[tuple[str, Any], ...] = dataclasses.field(
        default=(), repr=False, metadata={"static": True}
    )
    # Timesteps with alpha = 0; static, because it decides which steps there are under a trace.
    _pure_noise: frozenset[int] = dataclasses.field(
        init=False, default=frozenset(), repr=False, compare=False, metadata={"static": True}
    )

    __repr__ = one_line

    def __post_init__(self) -> None:
        self._check_settings()
        if self.timestep_spacing not in SPACINGS:
            raise ValueError(
                f"timestep_spacing must be one of {', '.join(SPACINGS)}, got "
                f"{self.timestep_spacing!r:.80}"
            )
        if not isinstance(self.steps_offset, int | np.integer) or self.steps_offset < 0:
            raise ValueError(
                f"steps_offset must be an integer of at least 0, got {self.steps_offset!r:.40}"
            )
        levels = self.alphas, self.sigmas
        if any(isinstance(value, UNKNOWN) for value in levels):
            return
        alphas, sigmas = (
            value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)
            for value in level("Schedule", *map(np.asarray, levels), at="t=")
        )
        if alphas.ndim != 1 or alphas.shape != sigmas.shape or not alphas.size:
            raise ValueError(
                "Schedule: alphas and sigmas must be two lists of one length, a number for each "
                f"training timestep, got shapes {alphas.shape} and {sigmas.shape}"
            )
        stored = jnp.asarray(alphas)
        zero = np.flatnonzero(alphas.astype(stored.dtype) == 0)
        object.__setattr__(self, "alphas", stored)
        object.__setattr__(self, "sigmas", jnp.asarray(sigmas))
        object.__setattr__(self, "_pure_noise", frozenset(zero.tolist()))

    @classmethod
    def create(
        cls,
        beta_schedule: str = "scaled_linear",
        *,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        trained_betas: tuple[float, ...] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 1,
        set_alpha_to_one: bool = False,
        clip_sample_range: float | None = None,
    ) -> "Schedule":
        """Build a schedule; the defaults are Stable Diffusion's.

        Raises:
            ValueError: an unknown beta schedule, prediction type or spacing, or betas out of range.

        >>> schedule = Schedule.create()
        >>> int(schedule.timesteps(50)[0])
        981
        """
        if trained_betas is None:
            beta = betas(beta_schedule, num_train_timesteps, start=beta_start, end=beta_end)
        else:
            beta = _checked_betas(trained_betas)
        if np.any(1 - beta == 1):
            raise ValueError(
                f"beta {beta.min():.3g} adds no noise: beta_start and trained_betas must be larger "
                "than 1.2e-16"
            )
        if rescale_betas_zero_snr:
            signal = np.sqrt(np.cumprod(1 - beta))
            if len(beta) < 2 or signal[-2] == signal[-1]:  # 0 / 0 otherwise
                raise ValueError(
                    "rescale_betas_zero_snr needs num_train_timesteps of at least 2, and betas "
                    "that leave a signal until the last step"
                )
            beta = rescale_zero_terminal_snr(beta)
        alpha_bar = np.cumprod(1 - beta)
        kept: dict[str, Any] = {
            "beta_schedule": beta_schedule,
            "num_train_timesteps": beta.size,
            "beta_start": beta_start,
            "beta_end": beta_end,
            "rescale_betas_zero_snr": rescale_betas_zero_snr,
            "trained_betas": None if trained_betas is None else tuple(trained_betas),
        }
        levels: Any = {"alphas": np.sqrt(alpha_bar), "sigmas": np.sqrt(1 - alpha_bar)}
        return cls(
            **levels,
            prediction_type=prediction_type,
            timestep_spacing=timestep_spacing,
            steps_offset=steps_offset,
            set_alpha_to_one=set_alpha_to_one,
            clip_sample_range=clip_sample_range,
            config=tuple(kept.items()),
        )

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | str | Path, *, where: str | Path | None = None
    ) -> "Schedule":
        """Read a diffusers `scheduler_config.json` (a mapping, the file, or its directory).

        Keys that only choose a solver (`skip_prk_steps`, ...) are ignored: sampling here is DDIM
        or ancestral whatever solver the directory names, also for those whose network was distilled
        for few steps (LCM, TCD).  `thresholding` is not applied, with a warning.

        Args:
            config: as above.
            where: what error messages call a mapping.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON, or a scheduler class or value outside the supported set.
        """
        if not isinstance(config, Mapping):
            path = Path(config)
            where = path / SCHEDULER_NAME if path.is_dir() else path
            config = read_json(where, constants=True)
        where = "scheduler configuration" if where is None else where
        fields = scheduler_settings(config, where)
        if fields.get("prediction_type") == "flow_prediction":
            raise ValueError(
                f"{where}: prediction_type flow_prediction is of the schedules of flow matching, "
                "alpha = 1 - sigma; this one's has alpha^2 + sigma^2 = 1"
            )
        try:
            schedule = cls.create(**fields)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        total = fields.get("num_train_timesteps", schedule.num_train_timesteps)
        if total != schedule.num_train_timesteps:
            raise ValueError(
                f"{where}: trained_betas has {schedule.num_train_timesteps} entries, but "
                f"num_train_timesteps is {total}"
            )
        return schedule

    def to_config(self) -> dict[str, Any]:
        """The settings as a diffusers `DDIMScheduler` configuration."""
        return {
            "_class_name": "DDIMScheduler",
            **dict(self.config),
            "prediction_type": self.prediction_type,
            "timestep_spacing": self.timestep_spacing,
            "steps_offset": self.steps_offset,
            "set_alpha_to_one": self.set_alpha_to_one,
            "clip_sample": self.clip_sample_range is not None,
            **({"clip_sample_range": most} if (most := self.clip_sample_range) else {}),
        }

    @property
    def num_train_timesteps(self) -> int:
        """Length `T` of the training grid."""
        return self.alphas.shape[0]

    def alpha(self, t: ArrayLike) -> jax.Array:
        """Signal `alpha_t` at integer timestep(s) `t`; checks `t` when it is concrete."""
        return self.alphas[self.checked_timestep(t)]

    def sigma(self, t: ArrayLike) -> jax.Array:
        """Noise `sigma_t` at integer timestep(s) `t`; checks `t` when it is concrete."""
        return self.sigmas[self.checked_timestep(t)]

    def checked_timestep(self, t: ArrayLike) -> Any:
        """Integer timestep(s) `t` that JAX takes; under a trace they are not checked.

        Raises:
            ValueError: not integers, or outside the training grid.
        """
        if isinstance(t, jax.core.Tracer):
            return t
        given = np.asarray(t)
        if not np.issubdtype(given.dtype, np.integer):
            raise ValueError(f"timestep t must be an integer, got {t!r}")
        if given.size and not (given.min() >= 0 and given.max() < self.num_train_timesteps):
            raise ValueError(
                f"timestep t must lie in 0..{self.num_train_timesteps - 1}, got {given.tolist()}"
            )
        return t if isinstance(t, jax.Array | np.ndarray | np.generic | int) else given

    def timesteps(self, num_steps: int) -> np.ndarray:
        """The sampling sub-grid, descending, shape `(num_steps,)`, as diffusers computes it.

        Raises:
            ValueError: `num_steps` outside `1..T`, or a grid that leaves the training grid.
        """
        total = self.num_train_timesteps
        num_steps = checked_steps(num_steps, total)
        if self.timestep_spacing == "leading":
            grid: np.ndarray = np.arange(num_steps) * (total // num_steps) + self.steps_offset
        elif self.timestep_spacing == "trailing":
            # rounding can make arange one too long; diffusers then has an extra step at t = -1
            grid = np.round(np.arange(total, 0, -total / num_steps)[:num_steps])[::-1] - 1
        else:
            grid = np.linspace(0, total - 1, num_steps).round()
        grid = grid.astype(np.int64)[::-1]
        if grid[0] >= total:
            raise ValueError(
                f"{num_steps} steps with steps_offset={self.steps_offset} reach t={grid[0]}, "
                f"past the last training step {total - 1}; use fewer steps or another spacing"
            )
        return grid.copy()

    @property
    def landing(self) -> tuple[jax.Array, jax.Array]:
        """The clean image if `set_alpha_to_one`, else `t = 0`, as in diffusers' DDIM."""
        return super().landing if self.set_alpha_to_one else (self.alphas[:1], self.sigmas[:1])

    def is_pure_noise(self, t: float) -> bool:
        """Whether `alpha_t = 0`, as at the last step of a schedule of zero terminal SNR.

        Known where the schedule was built from numbers, and from there on under `jax.jit` too.
        """
        return int(t) in self._pure_noise

    def stratified_timesteps(self, key: jax.Array, n: int) -> jax.Array:
        """Draws of the training grid for a batch, `(n,)`, ascending.

        One from each `n`-th of the range, so that together they cover it evenly; each, at a
        random place of the batch, is uniform.
        """
        total = self.num_train_timesteps
        strata = (jnp.arange(n) + jax.random.uniform(key, (n,))) / n
        # (n - 1 + u) / n rounds to one in float32 when u is within a few units of one
        return jnp.minimum((strata * total).astype(jnp.int32), total - 1)
