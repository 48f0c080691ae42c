r"""EDM: $x_\sigma = x_0 + \sigma \epsilon$, with the levels and the time of Karras et al.

Karras et al. 2022 (arXiv:2206.00364).  Noise is added and nothing is shrunk, $\alpha = 1$; the
network is told $t = \tfrac14 \ln \sigma$.  Sampling visits

$$ \sigma_i = \Big(\sigma_{max}^{1/\rho} + \frac{i}{n-1}
   (\sigma_{min}^{1/\rho} - \sigma_{max}^{1/\rho})\Big)^{\rho} $$

and ends at the clean image.  Its networks are *preconditioned*: what is asked of the raw network
$F$ is $D(x; \sigma) = c_{skip} x + c_{out} F(c_{in} x, t)$, an estimate of the clean image, with

$$ c_{skip} = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}, \quad
   c_{out} = \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad
   c_{in} = \frac{1}{\sqrt{\sigma^2 + \sigma_d^2}} . $$
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._reprs import one_line
from sharpjax._types import ArrayLike
from sharpjax.schedules.base import NoiseSchedule, checked_steps, checked_times


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KarrasSchedule(NoiseSchedule):
    """`alpha = 1`, `sigma = e^{4t}`.

    Attributes:
        sigma_min: the last level that sampling visits.
        sigma_max: the first.
        sigma_data: standard deviation of the data, of the preconditioning.
        rho: how the levels are spread.
        prediction_type: what the network predicts: of a preconditioned one the `sample`.
        clip_sample_range: as of every schedule.

    Raises:
        ValueError: not `0 < sigma_min < sigma_max`, or settings that no schedule has.

    >>> schedule = KarrasSchedule()
    >>> [f"{sigma:.3f}" for sigma in np.exp(4 * schedule.timesteps(3))]
    ['80.000', '2.515', '0.002']
    """

    sigma_min: float = dataclasses.field(default=0.002, metadata={"static": True})
    sigma_max: float = dataclasses.field(default=80.0, metadata={"static": True})
    sigma_data: float = dataclasses.field(default=0.5, metadata={"static": True})
    rho: float = dataclasses.field(default=7.0, metadata={"static": True})
    prediction_type: str = dataclasses.field(default="sample", metadata={"static": True})
    clip_sample_range: float | None = dataclasses.field(default=None, metadata={"static": True})

    __repr__ = one_line

    def __post_init__(self) -> None:
        self._check_settings()
        if not 0 < self.sigma_min < self.sigma_max < np.inf:
            raise ValueError(
                "sigma_min and sigma_max must be 0 < sigma_min < sigma_max, got "
                f"{self.sigma_min} and {self.sigma_max}"
            )
        for name, value in (("sigma_data", self.sigma_data), ("rho", self.rho)):
            if not 0 < value < np.inf:
                raise ValueError(f"{name} must be positive, got {value}")

    def to_config(self) -> dict[str, Any]:
        """The settings as a diffusers `EDMEulerScheduler` configuration."""
        names = ("sigma_min", "sigma_max", "sigma_data", "rho")
        told = {name: getattr(self, name) for name in names}
        return {"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"} | told

    def alpha(self, t: ArrayLike) -> jax.Array:
        """Signal, 1."""
        return jnp.ones_like(self.sigma(t))

    def sigma(self, t: ArrayLike) -> jax.Array:
        """Noise, `e^{4t}`."""
        return jnp.exp(4 * jnp.asarray(self.checked_timestep(t)))

    def time(self, sigma: ArrayLike) -> jax.Array:
        """What the network is told of a level, `ln(sigma)/4`."""
        return jnp.log(jnp.asarray(sigma)) / 4

    def checked_timestep(self, t: ArrayLike) -> Any:
        """Real time(s) whose `sigma` is a float32.

        Raises:
            ValueError: others.
        """
        return checked_times(t, low=-10.0, high=10.0, what="a quarter of ln sigma")

    def timesteps(self, num_steps: int) -> np.ndarray:
        """As above, as times."""
        num_steps = checked_steps(num_steps)
        roots = np.linspace(
            self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho), num_steps
        )
        return (np.log(roots**self.rho) / 4).astype(np.float32)

    @property
    def first_sigma(self) -> float:
        """`sigma_max`."""
        return self.sigma_max

    def is_pure_noise(self, t: float) -> bool:
        """Never."""
        return False

    def preconditioned(self, network: Any, x: jax.Array, t: jax.Array, *args: Any) -> jax.Array:
        """The estimate of the clean image that a raw network stands for.

        Args:
            network: `(x, t, ...)` of a batch to its output.
            x: `(n, ...)`.
            t: of the batch, a number.
            args: of the network beside.
        """
        sigma, data = self.sigma(t), self.sigma_data
        square = sigma**2 + data**2
        raw = network(x / jnp.sqrt(square), t, *args)
        return data**2 / square * x + sigma * data / jnp.sqrt(square) * raw
