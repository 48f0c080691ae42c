"""What a method of mitigation is given, and what it gives back."""

import dataclasses
import warnings
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sharpjax._types import Array
from sharpjax.conditional import ConditionalModel
from sharpjax.mitigation.calibration import Levels
from sharpjax.mitigation.perturbation import Vocabulary
from sharpjax.reprs import one_line
from sharpjax.score import ScorePair


@dataclasses.dataclass(frozen=True)
class Problem:
    """A prompt, and the noises that its images start from.

    Attributes:
        model: of prompts.
        prompt: the text.
        noise: ``(n, *shape)``: the same for every method, so that they are compared image by image.
        key: of whatever a method draws.
        guidance: of sampling without mitigation.
        num_steps: of sampling.
        levels: what is usual among clean prompts: thresholds are quantiles of it.
        vocabulary: the model's tokenizer.
        max_steps: of a descent.
        mesh: devices that share the noises.
    """

    model: ConditionalModel
    prompt: str
    noise: Array
    key: Array
    guidance: float
    num_steps: int
    levels: Levels
    vocabulary: Vocabulary
    max_steps: int
    mesh: Mesh | None = None

    __repr__ = one_line

    @property
    def t(self) -> int:
        """The first timestep of sampling with ``alpha > 0``: before it no prompt has a say."""
        return int(self.model.schedule.timesteps_with_signal(self.num_steps)[0])

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

    @property
    def rng(self) -> np.random.Generator:
        """Draws of words and places."""
        return np.random.default_rng(np.asarray(jax.random.key_data(self.key)))


@dataclasses.dataclass(frozen=True)
class Treatment:
    """What is sampled instead.

    Attributes:
        context: encoded prompts, ``(n, tokens, width)``.
        noise: ``(n, *shape)``.
        guidance: one number, or one for each step.
        evaluations: forward passes before sampling, an image: a tangent counts as one, a gradient
            as twice what it goes back through.
        details: of each image: what to report of the method, JSON values.
    """

    context: Array
    noise: Array
    guidance: float | np.ndarray
    evaluations: np.ndarray
    details: list[dict[str, Any]]

    __repr__ = one_line
