"""What detection and mitigation know of a model."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from sharpjax._types import Array
from sharpjax.schedules import Schedule
from sharpjax.score import ScorePair


class ConditionalModel(Protocol):
    """A diffusion model with conditions: digits, prompts, anything that can be encoded.

    A pytree, so that it crosses ``jax.jit`` as an argument.
    """

    @property
    def schedule(self) -> Schedule:
        """The noise schedule and its sampling grid."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example, channels first."""
        ...

    def encode(self, names: Sequence[str]) -> Array:
        """Encoded conditions, stacked along the first axis."""
        ...

    def scores(self, condition: Any, t: int | Array) -> ScorePair:
        """The pair of scores of one condition, a name or an encoded one, at timestep ``t``."""
        ...

    def sample(self, conditions: Any, key: Array | None = None, **options: Any) -> np.ndarray:
        """One example per condition."""
        ...
