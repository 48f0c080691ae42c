"""Descend a loss from a batch of starting points, each until it is low enough.

The descent that every method of mitigation shares, whatever it moves (the initial noise, the
encoded prompt) and whatever it lowers (the sharpness, the score difference).  One compilation
serves all prompts: what differs between them is an argument.  Programs of old losses and
optimizers are given up (`sharpjax.curvature.programs`): memory does not grow with the calls.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from sharpjax._reprs import one_line
from sharpjax._types import Array, ArrayLike
from sharpjax.curvature.programs import as_pytree, compiled
from sharpjax.mesh.loops import over_points
from sharpjax.mitigation.optimizers import adam
from sharpjax.score import ScorePair

MAX_STEPS = 50
OUTCOMES = ("met", "budget", "not finite")
_MET, _BUDGET, _NOT_FINITE, _RUNNING = range(4)


@dataclasses.dataclass(frozen=True)
class Descent:
    """Where a batch of descents ended.

    Attributes:
        point: `(n, *shape)`; of one whose measure or gradient became NaN or infinite, the last
            at which both were finite.
        before: the measure at the start, `(n,)`.
        after: the measure at `point`, `(n,)`.
        steps: of the optimizer, `(n,)`.
        outcome: `met` the threshold, spent its `budget` of steps, or `not finite`, `(n,)`.
    """

    point: Array
    before: np.ndarray
    after: np.ndarray
    steps: np.ndarray
    outcome: np.ndarray

    __repr__ = one_line

    def figures(self, i: int) -> dict[str, Any]:
        """Of one of them, for a record."""
        numbers = {"before": float(self.before[i]), "after": float(self.after[i])}
        return numbers | {"steps": int(self.steps[i]), "outcome": str(self.outcome[i])}


def descend(
    loss: Callable[[Any, Array, Array], tuple[Array, Array]],
    fixed: Any,
    start: Array,
    *,
    threshold: float | Array,
    max_steps: int = MAX_STEPS,
    optimizer: optax.GradientTransformation | None = None,
    mesh: Mesh | None = None,
) -> Descent:
    """Minimise `loss(fixed, x, start)` over `x`, from every starting point on its own.

    Args:
        loss: gives what is minimised, and the measure that the threshold is for (the same without
            penalties). At module level or kept by the caller: a fresh one is compiled anew.
        fixed: what it depends on; a pytree of arrays and pairs, whose scores may be any functions.
        start: `(n, *shape)`.
        threshold: a point whose measure is at most this stays where it is.
        max_steps: of the optimizer; 0 only evaluates.
        optimizer: any of optax; Adam by default. Make it once and pass the same object: a fresh one
            is compiled anew.
        mesh: devices that share the candidates, each going on by itself.

    Raises:
        ValueError: no starting point, a threshold that no loss can meet, or a negative budget.
    """
    start = jnp.asarray(start)
    if not jnp.issubdtype(start.dtype, jnp.floating):
        start = start.astype(jnp.float32)
    if start.ndim < 2 or len(start) < 1:
        raise ValueError(
            f"at least one candidate is needed, (n, *shape), got an array of shape {start.shape}"
        )
    if not 0 < threshold < float("inf"):
        raise ValueError(
            f"threshold must be a positive finite number, got {threshold}; a "
            "quantile on prompts that are not memorized is a sensible one (mitigation.calibrate)"
        )
    if max_steps < 0:
        raise ValueError(f"max_steps must be at least 0, got {max_steps}")
    fixed = jax.tree.map(
        lambda node: _as_argument(node, start[0]), fixed, is_leaf=lambda n: isinstance(n, ScorePair)
    )
    optimizer = adam() if optimizer is None else optimizer
    limits = jnp.asarray(threshold, start.dtype), jnp.asarray(max_steps)
    ended = _descend(fixed, start, *limits, loss=loss, optimizer=optimizer, mesh=mesh)
    before, after, steps, outcome = map(np.asarray, ended[1:])
    return Descent(ended[0], before, after, steps, np.array(OUTCOMES)[outcome])


def _as_argument(node: Any, x: Array) -> Any:
    """A pair whose scores may be plain functions, as one that crosses `jit`."""
    if not isinstance(node, ScorePair):
        return node
    stacked = node.stacked
    return dataclasses.replace(
        node,
        unconditional=as_pytree(node.unconditional, x),
        conditional=as_pytree(node.conditional, x),
        stacked=None if stacked is None else as_pytree(stacked, jnp.stack([x, x])),
    )


@compiled(static_argnames=("loss", "optimizer", "mesh"))
def _descend(
    fixed: Any,
    start: Array,
    threshold: ArrayLike,
    max_steps: int,
    *,
    loss: Callable[[Any, Array, Array], tuple[Array, Array]],
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None,
) -> tuple[Array, Array, Array, Array, Array]:
    def one(common: Any, start: Array) -> Any:
        fixed, threshold, max_steps = common

        def evaluate(x: Array) -> tuple[Array, Array]:
            (_, measure), gradient = jax.value_and_grad(
                lambda x: loss(fixed, x, start), has_aux=True
            )(x)
            return measure, gradient

        def finite(value: Array, gradient: Array) -> Array:
            return jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))

        def running(state: Any) -> Array:
            return state[-1] == _RUNNING

        def step(state: Any) -> Any:
            # One evaluation in the whole program: a network's gradient takes long to compile.
            x, last, before, after, memory, steps, _ = state
            measure, gradient = evaluate(x)
            fine, first = finite(measure, gradient), steps == 0
            outcome = jnp.where(steps >= max_steps, _BUDGET, _RUNNING)
            outcome = jnp.where(~fine, _NOT_FINITE, jnp.where(measure <= threshold, _MET, outcome))
            goes_on = outcome == _RUNNING
            updates, memory = optimizer.update(gradient, memory, x)
            onward = optax.apply_updates(x, updates)
            return (
                jnp.where(goes_on, onward, jnp.where(fine, x, last)),
                x,
                jnp.where(first, measure, before),
                jnp.where(fine | first, measure, after),
                memory,
                steps + goes_on - (~fine & ~first),  # a step into NaN is taken back
                outcome,
            )

        nothing = jnp.zeros((), start.dtype)
        no_steps, running_on = jnp.zeros((), max_steps.dtype), jnp.asarray(_RUNNING)
        memory = optimizer.init(start)
        state = start, start, nothing, nothing, memory, no_steps, running_on
        x, _, before, after, _, steps, outcome = jax.lax.while_loop(running, step, state)
        return x, before, after, steps, outcome

    def part(common: Any, start: Array) -> Any:
        return jax.vmap(one, (None, 0))(common, start)

    return over_points(part, mesh, (fixed, threshold, max_steps), start)
