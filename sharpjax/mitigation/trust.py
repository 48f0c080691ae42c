"""Optimizers that keep a noise plausible, as optax transformations."""

import functools
from typing import Any

import jax.numpy as jnp
import optax

from sharpjax.mitigation.descent import STEP_SIZE


def keep_length() -> optax.GradientTransformation:
    """Steps along a sphere: what comes before is followed by a return to the same length.

    A Gaussian noise of ``d`` entries has a length of nearly the square root of ``d``, and a descent
    by Adam adds to it, as nearly every step in many dimensions does.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("keep_length needs the parameters: pass them to update")
        there = params + updates
        scale = jnp.linalg.norm(params) / jnp.linalg.norm(there)
        return there * scale - params, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@functools.cache
def adam_on_sphere(step_size: float = STEP_SIZE) -> optax.GradientTransformation:
    """Adam whose every step ends at the length that it began with."""
    return optax.chain(optax.adam(step_size), keep_length())
