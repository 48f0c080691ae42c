"""Optimizers of a descent: the same object for the same settings, so that it is compiled once."""

import functools
from typing import Any

import jax.numpy as jnp
import optax

STEP_SIZE = 0.05  # of Adam, per entry


@functools.cache
def adam(step_size: float = STEP_SIZE) -> optax.GradientTransformation:
    """Adam."""
    return optax.adam(step_size)


@functools.cache
def adamw(step_size: float, weight_decay: float = 0.01) -> optax.GradientTransformation:
    """Adam with decay of the point itself (Loshchilov & Hutter 2019, arXiv:1711.05101).

    As PyTorch has it: every entry loses `step_size * weight_decay` of itself at a step, one
    without a gradient too.
    """
    return optax.adamw(step_size, weight_decay=weight_decay)


def keep_length() -> optax.GradientTransformation:
    """Steps along a sphere: what comes before is followed by a return to the same length.

    A Gaussian noise of `d` entries has a length of nearly the square root of `d`, and a descent
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
