"""A sampling path with the two scores at every step, from which statistics are computed."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax._reprs import one_line
from sharpjax._types import Array
from sharpjax.conditional import ConditionalModel
from sharpjax.detection.baseline import Baseline
from sharpjax.sampling import sample
from sharpjax.score import score_from_prediction


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """A path of `n` steps; batches by `jax.vmap`.

    Attributes:
        states: `(n + 1, *shape)`, noise first, the example last.
        unconditional: `(n, *shape)`, `s_u` at the state that a step starts from, units 1/sigma.
        conditional: `(n, *shape)`, `s_c` there.
        timesteps: `(n,)`.
        sigmas: `(n,)` noise of each of these states.
    """

    states: Array
    unconditional: Array
    conditional: Array
    timesteps: Array
    sigmas: Array

    __repr__ = one_line

    @property
    def difference(self) -> Array:
        """`s_D = s_c - s_u` at every step, `(n, *shape)`."""
        return self.conditional - self.unconditional

    @property
    def displacements(self) -> Array:
        """Length of every step, `(n,)`, units of the state: 1."""
        steps = jnp.diff(self.states, axis=0)
        return jnp.linalg.norm(steps.reshape(len(steps), -1), axis=1)


def follow(
    model: ConditionalModel,
    condition: Any,
    noise: Array,
    *,
    num_steps: int = 50,
    guidance: float | Array = 7.5,
) -> Trajectory:
    """DDIM from `noise` with classifier-free guidance; 2F a step, 4F with a baseline.

    Of a `Baseline` guidance is by the judged model's own scores, and what is kept are its own
    conditional score and the baseline's.

    A path that starts at `alpha = 0` (zero terminal signal-to-noise ratio) follows the network's
    predictions instead of the scores: the two scores are one there, `-x/sigma^2`.

    Args:
        model: any conditional model.
        condition: encoded.
        noise: `x_T`, of the model's shape.
        num_steps: of the sampler.
        guidance: `s_u + guidance (s_c - s_u)` leads the path.

    Raises:
        ValueError: a start at `alpha = 0` with a network that predicts the noise.
    """
    schedule = model.schedule
    timesteps, *levels = schedule.levels(num_steps)
    silent = schedule.is_pure_noise(timesteps[0])
    kind = schedule.prediction_type if silent else "score"

    leading, own = model, condition
    if isinstance(model, Baseline):
        leading, own = model.model, condition[0]

    def both_of(of: Any, condition: Any, x: Array, t: Array) -> Array:
        return of.predictions(condition, t)(x) if silent else of.scores(condition, t).both(x)

    def predict(x: Array, t: Array) -> Any:
        unconditional, conditional = both = both_of(leading, own, x, t)
        kept = both if leading is model else both_of(model, condition, x, t)
        return unconditional + guidance * (conditional - unconditional), kept

    options: Any = {"trajectory": True, "has_aux": True, "prediction_type": kind}
    states, both = sample(predict, noise, schedule, num_steps=num_steps, **options)
    alphas, sigmas = (level[: len(timesteps)] for level in levels)
    if silent:
        alpha, sigma = (level.reshape(-1, *[1] * noise.ndim) for level in (alphas, sigmas))
        convert = functools.partial(
            score_from_prediction, x=states[:-1], alpha=alpha, sigma=sigma, prediction_type=kind
        )
        both = jax.vmap(convert, in_axes=1, out_axes=1)(both)
    return Trajectory(states, both[:, 0], both[:, 1], jnp.asarray(timesteps), sigmas)
