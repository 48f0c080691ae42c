"""A schedule of one's own: two functions of time, and the times that sampling visits."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._checks import level
from sharpjax._reprs import one_line
from sharpjax._types import ArrayLike
from sharpjax.schedules.base import NoiseSchedule, checked_steps, checked_times


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnSchedule(NoiseSchedule):
    """Any `x_t = alpha(t) x_0 + sigma(t) eps`.

    Attributes:
        alpha_of: time to signal, by operations of JAX on arrays.
        sigma_of: time to noise, likewise.
        times_of: number of steps to the times that sampling visits, from noise to image.
        prediction_type: what the network predicts.
        clip_sample_range: as of every schedule.
        first_sigma: what noise of unit variance is multiplied by where sampling begins; > 0.

    Raises:
        ValueError: what is called is not a function, or settings that no schedule has.

    >>> import jax.numpy as jnp
    >>> cosine = OwnSchedule(
    ...     alpha_of=lambda t: jnp.cos(t * jnp.pi / 2),
    ...     sigma_of=lambda t: jnp.sin(t * jnp.pi / 2),
    ...     times_of=lambda n: np.linspace(0.99, 0.01, n),
    ... )
    >>> round(float(cosine.alpha(0.5)), 4), [f"{t:.2f}" for t in cosine.timesteps(3)]
    (0.7071, ['0.99', '0.50', '0.01'])
    """

    alpha_of: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    sigma_of: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    times_of: Callable[[int], Any] = dataclasses.field(metadata={"static": True})
    prediction_type: str = dataclasses.field(default="epsilon", metadata={"static": True})
    clip_sample_range: float | None = dataclasses.field(default=None, metadata={"static": True})
    first_sigma: float = dataclasses.field(default=1.0, metadata={"static": True})

    __repr__ = one_line

    def __post_init__(self) -> None:
        self._check_settings()
        for name in ("alpha_of", "sigma_of", "times_of"):
            if not callable(getattr(self, name)):
                raise ValueError(f"{name} must be a function, got {getattr(self, name)!r:.80}")
        first = self.first_sigma
        if isinstance(first, str) or not 0 < float(first) < np.inf:
            raise ValueError(f"first_sigma must be a finite number > 0, got {first!r:.80}")

    def alpha(self, t: ArrayLike) -> jax.Array:
        """Signal."""
        return jnp.asarray(self.alpha_of(self.checked_timestep(t)))

    def sigma(self, t: ArrayLike) -> jax.Array:
        """Noise."""
        return jnp.asarray(self.sigma_of(self.checked_timestep(t)))

    def checked_timestep(self, t: ArrayLike) -> Any:
        """Time(s) at which `alpha >= 0` and `sigma > 0`.

        Raises:
            ValueError: others.
        """
        given = checked_times(t, low=-np.inf, high=np.inf, what="the real numbers")
        if isinstance(given, jax.core.Tracer):
            return given
        level("OwnSchedule", self.alpha_of(given), self.sigma_of(given))
        return given

    def timesteps(self, num_steps: int) -> np.ndarray:
        """What `times_of` says.

        Raises:
            ValueError: not so many, one without noise, or an order in which the share of the image,
                `alpha / sigma`, does not grow from each to the next.
        """
        times = np.asarray(self.times_of(checked_steps(num_steps)), np.float32)
        if times.shape != (num_steps,):
            raise ValueError(f"times_of({num_steps}) must be {num_steps} times, got {times.shape}")
        self.checked_timestep(times)
        share = np.asarray(self.alpha_of(jnp.asarray(times)) / self.sigma_of(jnp.asarray(times)))
        if not (np.diff(share) > 0).all():
            raise ValueError(
                f"times_of({num_steps}) must go from noise to image: alpha / sigma must grow from "
                f"each time to the next, got {np.array2string(share, threshold=6, precision=4)} "
                f"at {np.array2string(times, threshold=6, precision=4)}"
            )
        return times

    def is_pure_noise(self, t: float) -> bool:
        """Whether `alpha_of` says 0."""
        return float(self.alpha_of(jnp.asarray(t, float))) == 0

    def to_config(self) -> dict[str, Any]:
        """Raises: functions have no configuration."""
        raise ValueError("a schedule of your own is two functions, which no file can hold")
