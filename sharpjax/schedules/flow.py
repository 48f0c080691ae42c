r"""Flow matching: $x_t = (1 - \sigma) x_0 + \sigma \epsilon$, as Stable Diffusion 3 has it.

Lipman et al. 2023 (arXiv:2210.02747); the shift of the noise levels is that of Esser et al. 2024
(arXiv:2403.03206), section 5.3.2:

$$ \sigma \mapsto \frac{s\,\sigma}{1 + (s - 1)\,\sigma} . $$

The network is told $t = T\sigma$, a real number.  The grid of sampling begins at $\sigma = 1$, pure
noise, where the score difference of every prompt is 0 and scores do not say where to go:
statistics begin at the next level, and sampling goes by predictions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._reprs import one_line
from sharpjax._types import ArrayLike
from sharpjax.schedules.base import NoiseSchedule, checked_steps, checked_times
from sharpjax.schedules.discrete import MAX_TIMESTEPS

CLASS_NAME = "FlowMatchEulerDiscreteScheduler"
_OFF = (
    "use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "invert_sigmas", "shift_terminal", "stochastic_sampling",
)  # fmt: skip
_IGNORED = (
    "base_shift", "max_shift", "base_image_seq_len",
    "max_image_seq_len", "time_shift_type",
)  # fmt: skip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowSchedule(NoiseSchedule):
    """`alpha = 1 - sigma`, `sigma = t/T`.

    Attributes:
        shift: of the grid of sampling towards noise, 3 of Stable Diffusion 3.
        num_train_timesteps: `T`, what the network is told of pure noise.
        prediction_type: what the network predicts.
        clip_sample_range: as of every schedule.

    Raises:
        ValueError: a shift that is not positive, or settings that no schedule has.

    >>> schedule = FlowSchedule()
    >>> [f"{t:.2f}" for t in schedule.timesteps(3)]
    ['1000.00', '751.12', '8.93']
    >>> float(schedule.alpha(750.0)), float(schedule.sigma(750.0))
    (0.25, 0.75)
    """

    shift: float = dataclasses.field(default=3.0, metadata={"static": True})
    num_train_timesteps: int = dataclasses.field(default=1000, metadata={"static": True})
    prediction_type: str = dataclasses.field(default="flow_prediction", metadata={"static": True})
    clip_sample_range: float | None = dataclasses.field(default=None, metadata={"static": True})

    __repr__ = one_line

    def __post_init__(self) -> None:
        self._check_settings()
        if not 0 < self.shift < np.inf:
            raise ValueError(f"shift must be positive, got {self.shift}")
        if not 1 <= self.num_train_timesteps <= MAX_TIMESTEPS:
            raise ValueError(
                f"num_train_timesteps must be from 1 to {MAX_TIMESTEPS}, got "
                f"{self.num_train_timesteps!r:.40}"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: Any) -> "FlowSchedule":
        """Read the configuration of a `FlowMatchEulerDiscreteScheduler`; `where` is for errors.

        Raises:
            ValueError: a way to place the levels that is not here, or values of the wrong type.
        """
        for key in _OFF:
            if config.get(key):
                raise ValueError(f"{where}: {key} must be off, got {config[key]!r:.80}")
        known = ("shift", "num_train_timesteps", *_OFF, *_IGNORED)
        if other := sorted(key for key in config if key not in known and key[0] != "_"):
            raise ValueError(
                f"{where}: unknown key {other[0]!r} of a {CLASS_NAME}; known: {', '.join(known)}"
            )
        shift, total = config.get("shift", 1.0), config.get("num_train_timesteps", 1000)
        if isinstance(shift, bool) or not isinstance(shift, int | float):
            raise ValueError(f"{where}: shift must be a number, got {shift!r:.80}")
        if isinstance(total, bool) or not isinstance(total, int):
            raise ValueError(f"{where}: num_train_timesteps must be an integer, got {total!r:.80}")
        try:
            return cls(shift=float(shift), num_train_timesteps=total)
        except (ValueError, OverflowError) as error:  # JSON's integers have any size
            raise ValueError(f"{where}: {error}") from error

    def to_config(self) -> dict[str, Any]:
        """The settings as a diffusers `FlowMatchEulerDiscreteScheduler` configuration."""
        told = {"shift": self.shift, "num_train_timesteps": self.num_train_timesteps}
        return {"_class_name": CLASS_NAME} | told

    def alpha(self, t: ArrayLike) -> jax.Array:
        """Signal, `1 - t/T`."""
        return 1 - self.sigma(t)

    def sigma(self, t: ArrayLike) -> jax.Array:
        """Noise, `t/T`."""
        return jnp.asarray(self.checked_timestep(t)) / self.num_train_timesteps

    def checked_timestep(self, t: ArrayLike) -> Any:
        """Real time(s) in `(0, T]`.

        Raises:
            ValueError: others.
        """
        return checked_times(t, low=0.0, high=self.num_train_timesteps, what="T times sigma")

    def timesteps(self, num_steps: int) -> np.ndarray:
        """As diffusers places them: from 1 to the shifted 1/T evenly, and then shifted."""
        num_steps = checked_steps(num_steps)
        lowest = self._shifted(np.float64(1 / self.num_train_timesteps))
        levels = self._shifted(np.linspace(1.0, lowest, num_steps))
        return (levels * self.num_train_timesteps).astype(np.float32)

    def _shifted(self, sigma: Any) -> Any:
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def is_pure_noise(self, t: float) -> bool:
        """At `t = T`."""
        return float(t) == self.num_train_timesteps

    def stratified_timesteps(self, key: jax.Array, n: int) -> jax.Array:
        """Draws of `(0, T]` for a batch, `(n,)`, descending: one from each `n`-th of it."""
        strata = (jnp.arange(n) + jax.random.uniform(key, (n,))) / n
        return self.num_train_timesteps * (1 - strata)
