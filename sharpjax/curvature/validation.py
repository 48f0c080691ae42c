"""Checks that every estimator shares: what was given, what is allowed, what to do.

Values are checked where they are known. Inside `jit` and `vmap` they are not: there a non-finite
number stays in the result, and `at_points` names the point it came from.
"""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array, ArrayLike

__all__ = [
    "check_finite",
    "noise_level",
    "number",
    "one_array",
    "point",
    "positive_integer",
    "positive_number",
    "prng_key",
]


_LARGEST = 2**31 - 1  # of an index on the devices


def positive_integer(name: str, count: int, *, least: int = 1, largest: int = _LARGEST) -> int:
    """`count` as an int, or a ValueError that names it."""
    try:
        valid = not isinstance(count, bool) and operator.index(count) >= least
    except TypeError:
        valid = False
    if not valid or count > largest:
        simple = largest == _LARGEST and not valid
        allowed = f">= {least}" if simple else f"from {least} to {largest}"
        raise ValueError(f"{name} must be an integer {allowed}, got {count!r}.")
    return operator.index(count)


def positive_number(name: str, value: ArrayLike, dtype: Any = None, *, power: int = 1) -> ArrayLike:
    """One finite number > 0, or a ValueError; under a trace only its shape can be checked.

    Args:
        name: what an error calls it.
        value: a number of any kind, or an array that holds one.
        dtype: that of the point, in which it is returned, and checked.
        power: which power of it is computed with: 1e-25 is a number in float32, its square is not.
    """
    if np.shape(value) != ():
        raise ValueError(f"{name} must be one number, got shape {np.shape(value)}; use jax.vmap.")
    if isinstance(value, jax.core.Tracer):
        return value if dtype is None else value.astype(dtype)
    known = number(value)
    if not 0 < known < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {value!r}.")
    if dtype is None:
        return value
    least = float(jnp.finfo(dtype).tiny) ** (1 / power)
    most = 1 / least
    if not least <= known <= most:
        raise ValueError(
            f"{name} must lie between {least:.3g} and {most:.3g}, got {value!r}: beyond, its power "
            f"{power} is not a number in {np.dtype(dtype)}, the type of x; scale the problem, or "
            "compute in float64 (jax.enable_x64)."
        )
    return jnp.asarray(known, dtype)


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
        ValueError: not one array, not float32 or float64, empty, or not finite (where that is
            known).
    """
    x = one_array("x", x)
    if x.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"x must be float32 or float64, got dtype {x.dtype}: whole numbers have no derivative, "
            "and curvature in less precision has errors that its error bars do not show. Write "
            "x.astype('float32'); the score may use less inside."
        )
    if x.size == 0:
        raise ValueError(f"x has no coordinates: its shape is {x.shape}.")
    check_finite("x", x)
    return x


def one_array(name: str, values: ArrayLike) -> Array:
    """`values` as an array of JAX, in the byte order of this machine.

    Raises:
        ValueError: no array can be made of them, or one that JAX has no type for.
    """
    several = isinstance(values, list | tuple)
    if (
        isinstance(values, jax.Array)
        or hasattr(values, "__jax_array__")
        or (several and any(isinstance(v, jax.core.Tracer) for v in jax.tree.leaves(values)))
    ):
        return jnp.asarray(values)
    try:
        host = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged; a tensor that needs a gradient
        raise ValueError(f"{name} must be one array of numbers: {error}") from error
    if not (host.dtype == bool or jnp.issubdtype(host.dtype, jnp.number)):
        raise ValueError(
            f"{name} must be one array of numbers, got {type(values).__name__} (dtype "
            f"{host.dtype}); jax.flatten_util.ravel_pytree makes one of a dict or tuple of arrays, "
            "and the function that it returns goes into the score."
        )
    if host.dtype in (np.longdouble, np.clongdouble):
        raise ValueError(f"{name} has dtype {host.dtype}, which JAX lacks; use .astype('float64').")
    return jnp.asarray(host.astype(host.dtype.newbyteorder("="), copy=False))


def noise_level(sigma: ArrayLike, dtype: Any, *, power: int = 2) -> ArrayLike:
    """A valid noise level in the type of the point; `power` is the highest that is divided by."""
    return positive_number("sigma", sigma, dtype, power=power)


_WORDS_OF_THREEFRY = 2


def prng_key(key: Array | None, what: str) -> Array:
    """The key of what is drawn, as one whose draws depend on nothing but itself.

    JAX's "rbg" keys draw other numbers in another batch (jax.vmap), so that an estimate would
    depend on `batch_size`. Their words go into a key of "threefry2x32".

    Args:
        key: what the user gave.
        what: what needs it, as an error says it: "The probes are random".

    Raises:
        ValueError: no key, no PRNG key, or several.
    """
    if key is None:
        raise ValueError(f"{what}: pass key=jax.random.key(seed).")
    try:
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        key = key if typed else jax.random.wrap_key_data(key)
        shape, implementation = key.shape, str(jax.random.key_impl(key))
    except (AttributeError, TypeError, ValueError) as error:
        seed = key if isinstance(key, int) else "seed"
        raise ValueError(
            f"{what}: key must be a PRNG key of JAX, got {key!r}; pass key=jax.random.key({seed})."
        ) from error
    if shape != ():
        raise ValueError(f"{what}: key must be one key, got {shape} of them; use jax.vmap.")
    if implementation == "threefry2x32":
        return key
    words = jax.random.key_data(key).ravel()
    same: Array = jax.random.wrap_key_data(words[:_WORDS_OF_THREEFRY], impl="threefry2x32")
    for i in range(_WORDS_OF_THREEFRY, words.size):
        same = jax.random.fold_in(same, words[i])
    return same


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
