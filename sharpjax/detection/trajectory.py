"""A sampling path with the two scores at every step, from which statistics are computed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax._types import Array
from sharpjax.conditional import ConditionalModel
from sharpjax.reprs import one_line
from sharpjax.sampling import sample


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """A path of ``n`` steps; batches by ``jax.vmap``.

    Attributes:
        states: ``(n + 1, *shape)``, noise first, the example last.
        unconditional: ``(n, *shape)``, ``s_u`` at the state that a step starts from, units 1/sigma.
        conditional: ``(n, *shape)``, ``s_c`` there.
        timesteps: ``(n,)``.
        sigmas: ``(n,)`` noise of each of these states.
    """

    states: Array
    unconditional: Array
    conditional: Array
    timesteps: Array
    sigmas: Array

    __repr__ = one_line

    @property
    def difference(self) -> Array:
        """``s_D = s_c - s_u`` at every step, ``(n, *shape)``."""
        return self.conditional - self.unconditional

    @property
    def displacements(self) -> Array:
        """Length of every step, ``(n,)``, units of the state: 1."""
        steps = jnp.diff(self.states, axis=0)
        lengths: Array = jnp.linalg.norm(steps.reshape(len(steps), -1), axis=1)
        return lengths


def follow(
    model: ConditionalModel,
    condition: Any,
    noise: Array,
    *,
    num_steps: int = 50,
    guidance: float | Array = 7.5,
) -> Trajectory:
    """DDIM from ``noise`` with classifier-free guidance; 2F a step.

    Args:
        model: any conditional model.
        condition: encoded.
        noise: ``x_T``, of the model's shape.
        num_steps: of the sampler.
        guidance: ``s_u + guidance (s_c - s_u)`` leads the path.
    """

    def predict(x: Array, t: Array) -> Any:
        unconditional, conditional = both = model.scores(condition, t).both(x)
        return unconditional + guidance * (conditional - unconditional), both

    states, both = sample(
        predict, noise, model.schedule, num_steps=num_steps, trajectory=True, has_aux=True
    )
    timesteps, _, sigmas = model.schedule.levels(num_steps)
    return Trajectory(
        states, both[:, 0], both[:, 1], jnp.asarray(timesteps), sigmas[: len(timesteps)]
    )
