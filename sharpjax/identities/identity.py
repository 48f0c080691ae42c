"""What an identity is: its two sides and the printed form as data, and a row of what was found."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array
from sharpjax.identities.compare import Batches, Comparison, equal_means


@dataclasses.dataclass(frozen=True)
class Printed:
    """What a paper, a summary or public code prints in the place of an identity.

    Attributes:
        source: version, and equation or file and function; or whose summary it is.
        statement: the form; "" where the text was not seen.
        function: of a setting and a draw, as the sides of an `Identity`; None where the text
            was not seen.
        claimed_for: names of the settings that it is stated for; None is all.
    """

    source: str
    statement: str = ""
    function: Callable[[Any, Any], Array] | None = None
    claimed_for: tuple[str, ...] | None = None

    def verdict(self, setting: str, by_numbers: str | None) -> str | None:
        """That of the numbers, where the source states a form for this setting."""
        if self.function is None:
            return "not seen"
        if self.claimed_for is not None and setting not in self.claimed_for:
            return "not claimed"
        return by_numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """One identity. Its sides are functions `(setting, one draw) -> number`, traced by JAX.

    Attributes:
        name: "L1" to "P4", or "D1".
        statement: what is claimed.
        settings: `(rng, dim) -> {name: setting}`, pytrees of densities and numbers.
        draw: `(setting, rng, num) -> draws`, a pytree whose arrays have a leading axis of `num`.
        left: the side that needs no theory.
        closed_form: the other side; most ignore the draw.
        compare: how, one of `sharpjax.identities.compare`.
        printed: the form that a paper, a summary or public code prints, if there is one.
        num_draws: instead of the number that `verify` was asked for.
        points_per_draw: `dim -> ` how many points or tangents one draw takes, for the memory.
    """

    name: str
    statement: str
    settings: Callable[[np.random.Generator, int], dict[str, Any]]
    draw: Callable[[Any, np.random.Generator, int], Any]
    left: Callable[[Any, Any], Array]
    closed_form: Callable[[Any, Any], Array]
    compare: Callable[[Batches, float], Comparison] = equal_means
    printed: Printed | None = None
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
        printed_source: where it is printed.
    """

    name: str
    setting: str
    statement: str
    printed_statement: str = ""
    printed_source: str = ""


@functools.partial(jax.jit, static_argnames="identity")
def evaluate(identity: Identity, setting: Any, draws: Any) -> tuple[Array, ...]:
    """The left side, the closed form and the printed form, if any: a number a draw each."""
    num = len(jax.tree.leaves(draws)[0])
    printed = identity.printed.function if identity.printed else None
    sides = (identity.left, identity.closed_form, printed)
    return tuple(
        jnp.broadcast_to(jax.vmap(functools.partial(side, setting))(draws), (num,))
        for side in sides
        if side is not None
    )
