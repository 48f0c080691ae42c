"""The two callable contracts of sharpjax, and its array aliases."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from jax.typing import ArrayLike

__all__ = ["Array", "ArrayLike", "Key", "Matvec", "Numbers", "Score"]

Array = jax.Array
Key = jax.Array | int  # a key of JAX, or the seed of one
Numbers = ArrayLike | Sequence[Any]  # what makes an array; nested lists of numbers, too


@runtime_checkable
class Score(Protocol):
    """A score `s = grad log p` at one point: no batch axis, same shape out as in.

    The noise level and the condition are already bound. Any function will do; one that carries
    arrays is best a pytree callable, `jax.tree_util.Partial(function, *arrays)`: it crosses
    `jit` as an argument, and is neither traced nor compiled again for other values of them.
    """

    def __call__(self, x: Array, /) -> Array: ...


@runtime_checkable
class Matvec(Protocol):
    """A linear map applied to one vector: `v -> A v`, same shape out as in."""

    def __call__(self, v: Array, /) -> Array: ...
