"""The checks: WHAT must be ALLOWED, got GIVEN; WHAT TO DO.

Values are checked where they are known. Inside `jit` and `vmap` they are not: there a non-finite
number stays in the result, and `at_points` names the point it came from.
"""

import dataclasses
import math
import operator
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array, ArrayLike, Key

_T = TypeVar("_T")
_LARGEST = 2**31 - 1  # of an index on the devices
# what stands for numbers that are not known: in a trace, and in the trees that describe trees
UNKNOWN = (
    jax.core.Tracer,
    jax.ShapeDtypeStruct,
    jax.sharding.PartitionSpec,
    jax.sharding.Sharding,
    type(None),
)


def positive_integer(name: str, count: int, *, least: int = 1, largest: int = _LARGEST) -> int:
    """`count` as an int, or a ValueError that names it."""
    try:
        valid = not isinstance(count, bool) and operator.index(count) >= least
    except TypeError:
        valid = False
    if not valid or count > largest:
        simple = largest == _LARGEST and not valid
        allowed = f">= {least}" if simple else f"from {least} to {largest}"
        raise ValueError(f"{name} must be an integer {allowed}, got {count!r}")
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
        raise ValueError(f"{name} must be one number, got shape {np.shape(value)}; use jax.vmap")
    if isinstance(value, jax.core.Tracer):
        return value if dtype is None else value.astype(dtype)
    known = number(value)
    if not 0 < known < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {value!r}")
    if dtype is None:
        return value
    least = float(jnp.finfo(dtype).tiny) ** (1 / power)
    most = 1 / least
    if not least <= known <= most:
        raise ValueError(
            f"{name} must be from {least:.3g} to {most:.3g}, so that its power {power} is a number "
            f"in {np.dtype(dtype)}, the type of x, got {value!r}; scale the problem, or compute in "
            "float64 (jax.enable_x64)"
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
    x = single_or_double("x", one_array("x", x))
    if x.size == 0:
        raise ValueError(f"x must have coordinates, got shape {x.shape}")
    check_finite("x", x)
    return x


def single_or_double(name: str, values: Array) -> Array:
    """`values`, whose type is one that curvature can be taken in.

    Raises:
        ValueError: not float32 or float64.
    """
    if values.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"{name} must be float32 or float64, got dtype {values.dtype}: whole numbers have no "
            "derivative, and less precision has errors that error bars do not show; a network may "
            "use less inside, with its last operations in float32"
        )
    return values


def host_value(value: Any) -> np.ndarray | None:
    """The numbers in `value` where they are known now; None under a trace."""
    try:
        return None if isinstance(value, UNKNOWN) else np.asarray(value)
    except jax.errors.TracerArrayConversionError:  # a list that holds one
        return None


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
            "and the function that it returns goes into the score"
        )
    if host.dtype in (np.longdouble, np.clongdouble):
        raise ValueError(f"{name} has dtype {host.dtype}, which JAX lacks; use .astype('float64')")
    return jnp.asarray(host.astype(host.dtype.newbyteorder("="), copy=False))


def level(
    owner: str, alpha: Any, sigma: Any, dtype: Any = None, *, at: str = ""
) -> tuple[Any, Any]:
    """`alpha` and `sigma` of a noise level: where a score exists, `alpha >= 0` and `sigma > 0`.

    With a `dtype` these are two numbers, which come back as arrays in it.  Without one they may be
    several, and come back as they are, tensors of other libraries as NumPy's.  What is not known
    yet (under a trace, or where a pytree holds specifications) is not checked.

    Args:
        owner: what an error begins with.
        alpha: signal.
        sigma: noise.
        dtype: that they are computed in; by default their own.
        at: of several, what the place of the first bad one is called.

    Raises:
        ValueError: not real numbers, several with a `dtype`, not finite, `alpha < 0`, `sigma <= 0`,
            or such that a square or its inverse is not a number in their type.
    """
    checked = []
    for name, value, rule in (("alpha", alpha, ">= 0"), ("sigma", sigma, "> 0")):
        if dtype is not None and np.shape(value) != ():
            raise ValueError(
                f"{owner}: {name} must be one number, got shape {np.shape(value)}; use jax.vmap"
            )
        host = host_value(value)
        if host is not None:
            is_floating = jnp.issubdtype(host.dtype, jnp.floating)
            if not (is_floating or np.issubdtype(host.dtype, np.integer)):
                raise ValueError(f"{owner}: {name} must be real numbers, got {value!r:.80}")
            kind = dtype or jax.dtypes.canonicalize_dtype(host.dtype if is_floating else float)
            numbers = host.astype(np.float64)
            least = float(jnp.finfo(kind).tiny) ** 0.5
            good = np.isfinite(numbers) & ((numbers > 0) | (numbers == 0) & (name == "alpha"))
            if good.all():
                # an alpha whose square is no number is as good as 0: nothing is divided by it
                lowest = least if name == "sigma" else 0.0
                good = (lowest <= numbers) & (numbers <= 1 / least)
                allowed = (
                    f"from {lowest:.3g} to {1 / least:.3g}, so that its square and the inverse of "
                    f"that are numbers in {np.dtype(kind)}"
                )
            else:
                allowed = f"finite and {rule}"
            if not good.all():
                place = f" at {at}{np.flatnonzero(~good)[0]}" if at else ""
                raise ValueError(
                    f"{owner}: {name} must be {allowed}{' everywhere' if at else ''}, got "
                    f"{numbers[~good].flat[0]:.6g}{place}; a score exists where there is noise, in "
                    "x = alpha x0 + sigma eps"
                )
            if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int):
                value = host
        checked.append(value if dtype is None else jnp.asarray(value, dtype))
    return checked[0], checked[1]


def check_signal(alpha: ArrayLike, what: str) -> None:
    """Refuse pure noise for what says nothing there, where `alpha` is known.

    Raises:
        ValueError: `alpha = 0`.
    """
    if not isinstance(alpha, jax.core.Tracer) and np.any(np.asarray(alpha) == 0):
        raise ValueError(
            f"{what} is undefined or 0 for every condition at alpha = 0, which is pure noise; take "
            "a level with alpha > 0: the first of schedule.timesteps_with_signal(num_steps)"
        )


_WORDS_OF_THREEFRY = 2


def prng_key(key: Key | None, what: str) -> Array:
    """The key of what is drawn, as one whose draws depend on nothing but itself.

    JAX's "rbg" keys draw other numbers in another batch (jax.vmap), so that an estimate would
    depend on `batch_size`. Their words go into a key of "threefry2x32".

    Args:
        key: what the user gave: a key, or the seed of one.
        what: what needs it, as an error says it: "The probes are random".

    Raises:
        ValueError: no key, no PRNG key, or several.
    """
    if key is None:
        raise ValueError(f"{what}: pass key=jax.random.key(seed)")
    found: Any = key
    seed = isinstance(key, int | np.integer) and not isinstance(key, bool)
    if seed and not 0 <= cast(int, key) < 2**32:  # JAX takes it modulo 2^32
        raise ValueError(f"{what}: a seed must be from 0 to 2^32 - 1, got {key}")
    try:
        if seed:
            found = jax.random.key(cast(int, key))
        typed = jnp.issubdtype(found.dtype, jax.dtypes.prng_key)
        found = found if typed else jax.random.wrap_key_data(found)
        shape, implementation = found.shape, str(jax.random.key_impl(found))
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"{what}: key must be a PRNG key of JAX or its seed, got {key!r:.80}; pass "
            "key=jax.random.key(seed)"
        ) from error
    if shape != ():
        raise ValueError(f"{what}: key must be one key, got {shape} of them; use jax.vmap")
    same: Array = found
    if implementation == "threefry2x32":
        return same
    words = jax.random.key_data(found).ravel()
    same = jax.random.wrap_key_data(words[:_WORDS_OF_THREEFRY], impl="threefry2x32")
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
        raise ValueError(f"{what} is not finite: {bad.sum()} of {bad.size} entries{where}")


def checked_pytree(cls: type[_T]) -> type[_T]:
    """A frozen dataclass as a pytree that JAX rebuilds past `__post_init__`.

    A user's values are checked; gradients, batch axes and whatever else a tree of this shape can
    hold are not levels, and pass.  Fields marked `static` are the tree's own.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    static = [field.name for field in fields if field.metadata.get("static")]
    names = [field.name for field in fields if field.name not in static]

    def taken_apart(self: Any) -> tuple[list[Any], tuple[Any, ...]]:
        keyed = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names]
        return keyed, tuple(getattr(self, name) for name in static)

    def rebuilt(aux: Any, leaves: Any) -> Any:
        self = object.__new__(cls)
        for name, value in zip((*names, *static), (*leaves, *aux), strict=True):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, taken_apart, rebuilt)
    return cls
