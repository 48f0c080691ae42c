"""What all noise schedules have: levels by time, and the times that sampling visits."""

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import ArrayLike

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")


class NoiseSchedule(abc.ABC):
    """Signal `alpha` and noise `sigma` as functions of time, and the times that sampling visits.

    Attributes:
        prediction_type: what the network predicts: `epsilon`, `v_prediction`, `sample` or
            `flow_prediction`.
        clip_sample_range: sampling clips its estimates of the clean image to this in absolute
            value, as pipelines of pixels do; `None` does not.
    """

    prediction_type: Any
    clip_sample_range: Any

    @abc.abstractmethod
    def alpha(self, t: ArrayLike) -> jax.Array:
        """Signal at time(s) `t`; checks `t` when it is concrete."""

    @abc.abstractmethod
    def sigma(self, t: ArrayLike) -> jax.Array:
        """Noise at time(s) `t`; checks `t` when it is concrete."""

    @abc.abstractmethod
    def checked_timestep(self, t: ArrayLike) -> Any:
        """Time(s) `t` that JAX takes; under a trace they are not checked.

        Raises:
            ValueError: no such times.
        """

    @abc.abstractmethod
    def timesteps(self, num_steps: int) -> np.ndarray:
        """The times that sampling visits, from noise to image, shape `(num_steps,)`.

        Raises:
            ValueError: `num_steps` out of range.
        """

    @property
    def landing(self) -> tuple[jax.Array, jax.Array]:
        """`(alpha, sigma)`, each `(1,)`, of where the last step lands: the clean image."""
        return jnp.ones(1), jnp.zeros(1)

    @property
    def first_sigma(self) -> float:
        """What noise of unit variance is multiplied by where sampling begins."""
        return 1.0

    def levels(self, num_steps: int) -> tuple[np.ndarray, jax.Array, jax.Array]:
        """`(timesteps, alphas, sigmas)` of a sampling run: lengths `n`, `n + 1`, `n + 1`.

        The extra last level is where the final step lands.

        Raises:
            ValueError: as `timesteps`.
        """
        grid = self.timesteps(num_steps)
        alpha, sigma = self.landing
        return (
            grid,
            jnp.concatenate([self.alpha(grid), alpha]),
            jnp.concatenate([self.sigma(grid), sigma]),
        )

    @abc.abstractmethod
    def is_pure_noise(self, t: float) -> bool:
        """Whether `alpha_t = 0`."""

    def timesteps_with_signal(self, num_steps: int) -> np.ndarray:
        """Those of `timesteps` with `alpha > 0`: where scores depend on the condition.

        At `alpha = 0` every image leads to the same noise, and the score difference of any
        condition is 0.  The *first step* of detection and mitigation is the first of these.

        Raises:
            ValueError: as `timesteps`, or a grid of pure noise only.
        """
        grid = self.timesteps(num_steps)
        kept = grid[[not self.is_pure_noise(t) for t in grid]]
        if not kept.size:
            raise ValueError(
                f"{num_steps} step(s) visit t={grid.tolist()} only, where alpha = 0 and the score "
                "difference is 0 for every condition; use more steps"
            )
        return kept

    def first_step(self, num_steps: int) -> Any:
        """The first of `timesteps_with_signal`, a number of Python's."""
        return self.timesteps_with_signal(num_steps)[0].item()

    def without_clipping(self) -> Any:
        """The same, whose samplers clip nothing: what latents need."""
        same: Any = self
        return dataclasses.replace(same, clip_sample_range=None)

    def add_noise(self, x0: jax.Array, noise: jax.Array, t: ArrayLike) -> jax.Array:
        """`x_t = alpha_t x0 + sigma_t noise` for one example (`t` a scalar)."""
        return self.alpha(t) * x0 + self.sigma(t) * noise

    def target(self, x0: jax.Array, noise: jax.Array, t: ArrayLike) -> jax.Array:
        """What a network of this `prediction_type` should predict, for one example.

        `noise`, `alpha noise - sigma x0` (v, Salimans & Ho 2022, arXiv:2202.00512), `x0`, or
        `noise - x0` (flow matching, Lipman et al. 2023, arXiv:2210.02747).
        """
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return self.alpha(t) * noise - self.sigma(t) * x0
        return x0 if self.prediction_type == "sample" else noise - x0

    @abc.abstractmethod
    def to_config(self) -> dict[str, Any]:
        """The settings as the configuration of a scheduler of diffusers."""

    def _check_settings(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got "
                f"{self.prediction_type!r:.80}"
            )
        most = self.clip_sample_range
        if most is not None and not 0 < most < math.inf:
            raise ValueError(f"clip_sample_range must be positive, got {most}")


def check_schedule(schedule: NoiseSchedule) -> None:
    """Refuse what is no noise schedule.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(schedule, NoiseSchedule):
        raise ValueError(
            "schedule must be a noise schedule, such as sharpjax.Schedule.create(), got "
            f"{schedule!r:.80}"
        )


def checked_times(t: ArrayLike, *, low: float, high: float, what: str) -> Any:
    """Real times in `(low, high]`, as float32; under a trace they are not checked.

    Raises:
        ValueError: not such.
    """
    if isinstance(t, jax.core.Tracer):
        return t.astype(jnp.float32) if t.dtype != jnp.float64 else t
    given = np.asarray(t)
    real = np.issubdtype(given.dtype, np.floating) or np.issubdtype(given.dtype, np.integer)
    if not real or not np.all((given > low) & (given <= high)):
        raise ValueError(f"time t must lie in ({low:g}, {high:g}], {what}, got {given.tolist()}")
    return t if isinstance(t, jax.Array) and t.dtype == jnp.float32 else jnp.asarray(t, float)


def checked_steps(num_steps: int, most: int = 100_000) -> int:
    """A number of sampling steps.

    Raises:
        ValueError: it is none from 1 to `most`.
    """
    if num_steps != int(num_steps) or not 1 <= num_steps <= most:
        raise ValueError(f"num_steps must lie in 1..{most}, got {num_steps}")
    return int(num_steps)
