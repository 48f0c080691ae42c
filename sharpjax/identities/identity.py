"""What an identity is: its two sides and the printed form as data, and a row of what was found."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array
from sharpjax.identities.compare import Batches, Comparison

__all__ = ["Identity", "Row", "evaluate"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """One identity. Its sides are functions `(setting, one draw) -> number`, traced by JAX.

    Attributes:
        name: "L1" to "P4".
        statement: what is claimed.
        settings: `(rng, dim) -> {name: setting}`, pytrees of densities and numbers.
        draw: `(setting, rng, num) -> draws`, a pytree whose arrays have a leading axis of `num`.
        left: the side that needs no theory.
        closed_form: the other side; most ignore the draw.
        compare: how, one of `sharpjax.identities.compare`.
        printed_statement: the form that papers, summaries or public code print, if one is known.
        printed: its function, or None.
        num_draws: instead of the number that `verify` was asked for.
        points_per_draw: `dim -> ` how many points or tangents one draw takes, for the memory.
    """

    name: str
    statement: str
    settings: Callable[[np.random.Generator, int], dict[str, Any]]
    draw: Callable[[Any, np.random.Generator, int], Any]
    left: Callable[[Any, Any], Array]
    closed_form: Callable[[Any, Any], Array]
    compare: Callable[[Batches, float], Comparison]
    printed_statement: str = ""
    printed: Callable[[Any, Any], Array] | None = None
    num_draws: int | None = None
    points_per_draw: Callable[[int], int] = lambda dim: 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(Comparison):
    """An identity in one setting, and what was found (see `Comparison`).

    Attributes:
        name: of the identity.
        setting: the densities that it was tried on.
        statement: what is claimed.
        printed_statement: the printed form, if there is one.
    """

    name: str
    setting: str
    statement: str
    printed_statement: str = ""


@functools.partial(jax.jit, static_argnames="identity")
def evaluate(identity: Identity, setting: Any, draws: Any) -> tuple[Array, ...]:
    """The left side, the closed form and the printed form, if any: a number a draw each."""
    num = len(jax.tree.leaves(draws)[0])
    sides = (identity.left, identity.closed_form, identity.printed)
    return tuple(
        jnp.broadcast_to(jax.vmap(functools.partial(side, setting))(draws), (num,))
        for side in sides
        if side is not None
    )
