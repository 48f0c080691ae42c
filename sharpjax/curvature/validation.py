"""Checks that every estimator shares: what was given, what is allowed, what to do.

Values are checked where they are known. Inside `jit` and `vmap` they are not: there a non-finite
number stays in the result, and `at_points` names the point it came from.
"""

import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array, ArrayLike

__all__ = [
    "check_finite",
    "noise_level",
    "number",
    "point",
    "positive_integer",
    "positive_number",
]


def positive_integer(name: str, count: int, *, least: int = 1, largest: int | None = None) -> int:
    """`count` as an int, or a ValueError that names it."""
    try:
        valid = not isinstance(count, bool) and operator.index(count) >= least
    except TypeError:
        valid = False
    if not valid or (largest is not None and count > largest):
        allowed = f">= {least}" if largest is None else f"from {least} to {largest}"
        raise ValueError(f"{name} must be an integer {allowed}, got {count!r}.")
    return operator.index(count)


def positive_number(name: str, value: ArrayLike) -> ArrayLike:
    """One finite number > 0, or a ValueError; under a trace only its shape can be checked."""
    if np.shape(value) != ():
        raise ValueError(f"{name} must be one number, got shape {np.shape(value)}; use jax.vmap.")
    if isinstance(value, jax.core.Tracer):
        return value
    if not 0 < number(value) < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {value!r}.")
    return value


def number(value: ArrayLike) -> float:
    """A known scalar as a float, NaN if it is no real number.

    By NumPy: while something else is traced, JAX would trace the comparison of a known array too.
    """
    host = np.asarray(value)
    is_real = jnp.issubdtype(host.dtype, jnp.number) or host.dtype == bool
    return float(host) if is_real and not np.iscomplexobj(host) else math.nan


def point(x: ArrayLike) -> Array:
    """`x` as an array that curvature can be taken at.

    Raises:
        ValueError: not float32 or float64, empty, or not finite (where that is known).
    """
    x = jnp.asarray(x)
    if x.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"x must be float32 or float64, got dtype {x.dtype}: curvature in less precision has "
            "errors that its error bars do not show. The score may use less inside."
        )
    if x.size == 0:
        raise ValueError(f"x has no coordinates: its shape is {x.shape}.")
    check_finite("x", x)
    return x


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
