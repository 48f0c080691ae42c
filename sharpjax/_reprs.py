"""Representations of one line: what an object is, and shapes where it holds arrays or weights."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["network", "one_line", "shaped"]

_LONGEST = 6  # entries of a collection that are written out
_WIDEST = 300  # characters of a mapping that is
_PLAIN = (str, bytes, bool, int, complex, type(None))


def one_line(self: Any) -> str:
    """The `__repr__` of a dataclass that holds arrays: its name, and its fields by `shaped`.

    Fields that are None are left out, and those with `repr=False`.  Put `__repr__ = one_line` into
    the class: `dataclass` keeps a representation that is there.

    >>> @dataclasses.dataclass
    ... class Found:
    ...     points: np.ndarray
    ...     names: tuple[str, ...]
    ...     sigma: float
    ...     __repr__ = one_line
    >>> Found(np.zeros((3, 2)), ("7 x1a",) * 60, 0.8)
    Found(points=float64[3,2], names=60 str, sigma=0.8)
    """
    fields = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if f.repr]
    told = (f"{name}={shaped(value)}" for name, value in fields if value is not None)
    return f"{type(self).__name__}({', '.join(told)})"


def shaped(value: Any) -> str:
    """A value in a few words: of an array its type and shape, of a collection how many it holds.

    >>> shaped(np.zeros((3, 64, 64), np.float32))
    'float32[3,64,64]'
    >>> shaped({"auc": 0.9})
    "{'auc': 0.9}"
    """
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if isinstance(value, Mapping | Sequence):
        return _collection(value)
    ours = type(value).__module__.startswith("sharpjax.") and "__repr__" in vars(type(value))
    if ours or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return repr(value)
    return str(getattr(value, "__name__", type(value).__name__))  # of networks, functions, meshes


def network(module: Any) -> str:
    """Of a module: its class and how many parameters it has.

    >>> from flax import nnx
    >>> network(nnx.Linear(30, 100, rngs=nnx.Rngs(0)))
    'Linear(3,100 parameters)'
    """
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(module) if hasattr(leaf, "shape"))
    return f"{type(module).__name__}({count:,} parameters)"


def _array(value: Any) -> str:
    is_known = isinstance(value, jax.Array | np.ndarray | np.generic)  # and not a mere description
    is_known = is_known and not isinstance(value, jax.core.Tracer)
    is_key = jnp.issubdtype(value.dtype, jax.dtypes.extended)
    if value.shape == () and is_known and not is_key:
        return shaped(np.asarray(value).item())
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


def _collection(values: Mapping[Any, Any] | Sequence[Any]) -> str:
    if isinstance(values, Mapping):
        written = ", ".join(f"{name!r}: {shaped(value)}" for name, value in values.items())
        few = len(values) <= _LONGEST and len(written) <= _WIDEST
        return f"{{{written}}}" if few else f"{len(values)} entries"
    if len(values) > _LONGEST:
        kinds = {type(value).__name__ for value in values}
        return f"{len(values)} {kinds.pop() if len(kinds) == 1 else 'entries'}"
    inner = ", ".join(map(shaped, values))
    if isinstance(values, list):
        return f"[{inner}]"
    return f"({inner},)" if len(values) == 1 else f"({inner})"
