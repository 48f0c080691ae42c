"""What a method of mitigation is given, and what it gives back."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from sharpjax._checks import prng_key
from sharpjax._reprs import one_line
from sharpjax._types import Array
from sharpjax.conditional import ConditionalModel
from sharpjax.mitigation.descent import Descent, descend
from sharpjax.mitigation.levels import Levels
from sharpjax.mitigation.screen import FREE, Look
from sharpjax.networks.text_attention import TextAttention
from sharpjax.score import ScorePair

PENALTY = 1.0


class Vocabulary(Protocol):
    """What is asked of a tokenizer."""

    def num_tokens(self, prompt: str) -> int:
        """Ids that a prompt takes, start and end included, before any is cut."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A prompt, and the noises that its images start from.

    Attributes:
        model: of prompts.
        prompt: the text.
        noise: `(n, *shape)`: the same for every method, so that they are compared image by image.
        key: of whatever a method draws.
        guidance: of sampling without mitigation.
        num_steps: of sampling.
        levels: what is usual among clean prompts: thresholds are quantiles of it.
        vocabulary: the model's tokenizer.
        max_steps: of a descent, at most; None leaves it to the method.
        penalty: of the noise's length in SAIL's loss: its share, at the usual length, of what is
            usual of the sharpness among clean prompts.
        mesh: devices that share the noises.
        look: of screened sampling, without a threshold; None: half-way.
        free: share of the steps without guidance there.
    """

    model: ConditionalModel
    prompt: str
    noise: Array
    key: Array
    guidance: float
    num_steps: int
    levels: Levels
    vocabulary: Vocabulary
    max_steps: int | None = None
    penalty: float = PENALTY
    mesh: Mesh | None = None
    look: Look | None = None
    free: float = FREE

    __repr__ = one_line

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", prng_key(self.key, "Methods draw"))

    @property
    def t(self) -> int:
        """The first timestep of sampling with `alpha > 0`: before it no prompt has a say."""
        return self.model.schedule.first_step(self.num_steps)

    @property
    def pair(self) -> ScorePair:
        """Of the prompt, there."""
        return self.model.scores(self.context, self.t)

    @property
    def context(self) -> Array:
        """The encoded prompt."""
        with warnings.catch_warnings():  # of a prompt that is too long: it was announced
            warnings.simplefilter("ignore", UserWarning)
            return self.model.encode([self.prompt])[0]

    def usual(self, loss: str) -> float:
        """The median of a loss over clean prompts."""
        return self.levels.threshold(loss, 0.5).value

    def descend(
        self,
        loss: Callable[[Any, Array, Array], tuple[Array, Array]],
        threshold: float,
        max_steps: int,
    ) -> Descent:
        """Each noise by itself, by a loss of the pair."""
        return descend(
            loss,
            self.pair,
            self.noise,
            threshold=threshold,
            max_steps=self.budget(max_steps),
            mesh=self.mesh,
        )

    def budget(self, steps: int) -> int:
        """Of a descent that takes so many steps by itself."""
        return steps if self.max_steps is None else self.max_steps


@dataclasses.dataclass(frozen=True)
class Treatment:
    """What is sampled instead.

    Attributes:
        context: encoded prompts, `(n, tokens, width)`.
        noise: `(n, *shape)`.
        guidance: one number, one for each step, or `(n, num_steps)`.
        evaluations: forward passes before sampling, an image: a tangent counts as one, a gradient
            as twice what it goes back through.
        details: of each image: what to report of the method, JSON values.
        refused: `(n,)` images that are not to be drawn, as no noise was found for them; None: none.
        attention: to the prompt, `n` rows; None: as it was trained.
        repulsion: as `guidance`, of what leads away from the prompt as it is.
    """

    context: Array
    noise: Array
    guidance: float | np.ndarray
    evaluations: np.ndarray
    details: list[dict[str, Any]]
    refused: np.ndarray | None = None
    attention: TextAttention | None = None
    repulsion: float | np.ndarray = 0.0

    __repr__ = one_line
