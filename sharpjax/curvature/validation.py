"""Checks that every estimator shares: what was given, what is allowed, what to do.

Values are checked where they are known. Inside `jit` and `vmap` they are not: there a non-finite
number stays in the result, and `at_points` names the point it came from.
"""

import math
import operator

import jax
import numpy as np

from sharpjax._types import Array, ArrayLike

__all__ = ["check_finite", "noise_level", "positive_integer", "positive_number"]


def positive_integer(name: str, count: int, *, least: int = 1) -> int:
    """`count` as an int, or a ValueError that names it."""
    try:
        valid = not isinstance(count, bool) and operator.index(count) >= least
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(f"{name} must be an integer >= {least}, got {count!r}.")
    return operator.index(count)


def positive_number(name: str, value: ArrayLike) -> ArrayLike:
    """One finite number > 0, or a ValueError; under a trace only its shape can be checked."""
    if np.shape(value) != ():
        raise ValueError(f"{name} must be one number, got shape {np.shape(value)}; use jax.vmap.")
    if not isinstance(value, jax.core.Tracer) and not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {value!r}.")
    return value


def noise_level(sigma: ArrayLike) -> ArrayLike:
    """A valid noise level."""
    return positive_number("sigma", sigma)


def check_finite(what: str, value: Array) -> None:
    """A ValueError that counts the entries of `value` that are NaN or infinite, if it is known.

    Raises:
        ValueError: such an entry; the message says where the first is.
    """
    if isinstance(value, jax.core.Tracer):
        return
    bad = ~np.isfinite(np.asarray(value))
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        where = f", the first at index {first}" if first else ""
        raise ValueError(f"{what} is not finite: {bad.sum()} of {bad.size} entries{where}.")
