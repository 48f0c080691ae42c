"""A number with its standard error and its cost."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtrit

from sharpjax._linalg import safe_norm, scale_of
from sharpjax._reprs import shaped
from sharpjax._types import Array

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False, repr=False)
class Estimate:
    """A number, how sure it is, and what it cost.

    Attributes:
        value: the mean of the samples, or the exact value.
        standard_error: of `value`, in its units; 0 if exact. Asking for that of a single sample is
            a ValueError.
        num_samples: independent samples behind `value`; 0 if it is exact.
        num_matvecs: products with the Jacobian that were spent.
        stopped: why an adaptive estimate ended, "tolerance" (it is as sure as was asked) or
            "budget" (it is not: more products were not allowed); None if nothing was asked.

    It prints as value ± standard error.

    >>> import jax.numpy as jnp
    >>> estimate = Estimate.from_samples(jnp.array([1.0, 2.0, 3.0]), num_matvecs=3)
    >>> estimate
    Estimate(2 ± 0.58, num_samples=3, num_matvecs=3)
    >>> low, high = estimate.interval(level=0.95)
    >>> print(f"{low:.3f} {high:.3f}")
    -0.484 4.484
    """

    value: Any
    _standard_error: Any
    num_samples: int = dataclasses.field(metadata=_STATIC)
    num_matvecs: int = dataclasses.field(metadata=_STATIC)
    stopped: str | None = dataclasses.field(default=None, metadata=_STATIC)

    @classmethod
    def from_samples(cls, samples: Array, *, num_matvecs: int) -> "Estimate":
        """The mean of independent samples (first axis) and its standard error.

        The variance has `n - 1` in its denominator, as Student's t expects. One sample is allowed,
        and then only its standard error is missing.
        """
        n = len(samples)
        scale = scale_of(samples, axis=0)
        scaled = samples / scale
        mean = jnp.mean(scaled, axis=0, keepdims=True)
        error = safe_norm(scaled - mean, axis=0) / math.sqrt(n * (n - 1)) if n > 1 else None
        value, scale = (scale * mean)[0], scale[0]
        return cls(value, None if error is None else scale * error, n, num_matvecs)

    @property
    def standard_error(self) -> Any:
        """The standard error of `value`; ValueError for a single sample."""
        if self._standard_error is None:
            raise ValueError(
                "one sample has no standard error, as its spread is unknown; "
                "use at least 2 samples (num_matvecs >= 2)"
            )
        return self._standard_error

    def interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """`value ± q standard_error`, with q from Student's t of `num_samples - 1` degrees.

        Args:
            level: the nominal probability of covering the truth, between 0 and 1.

        Raises:
            ValueError: a level outside (0, 1), or a single sample.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level!r}; for 95% write 0.95")
        error = self.standard_error
        if self.num_samples > 1:
            error = float(stdtrit(self.num_samples - 1, 0.5 + 0.5 * level)) * error
        return self.value - error, self.value + error

    def as_dict(self) -> dict[str, Any]:
        """Its attributes by name, for tables; `standard_error` is None of a single sample.

        `pd.DataFrame([e.as_dict() for e in estimates])` has a row for each of them, and
        `pd.DataFrame(e.as_dict())` a row for each number of a batch, such as `at_points` gives.

        >>> Estimate(2.0, 0.5, num_samples=4, num_matvecs=4).as_dict()["standard_error"]
        np.float64(0.5)
        """
        numbers = {"value": self.value, "standard_error": self._standard_error}
        return {
            **{name: v if v is None else np.asarray(v)[()] for name, v in numbers.items()},
            "num_samples": self.num_samples,
            "num_matvecs": self.num_matvecs,
            "stopped": self.stopped,
        }

    def __repr__(self) -> str:
        counts = f"num_samples={self.num_samples}, num_matvecs={self.num_matvecs}"
        if self.stopped is not None:
            counts += f", stopped={self.stopped!r}"
        return f"Estimate({_format(self.value, self._standard_error)}, {counts})"


def _format(value: Any, error: Any) -> str:
    try:
        text = f"{float(value):.6g}"
        return text if error is None else f"{text} ± {float(error):.2g}"
    except (TypeError, ValueError, jax.errors.JAXTypeError):  # a batch, a trace, or tree plumbing
        return shaped(value) if error is None else f"{shaped(value)} ± {shaped(error)}"
