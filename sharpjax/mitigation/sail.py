r"""SAIL: sharpness-aware initialisation of the noise that sampling starts from.

Memorized prompts are sharp at pure noise already, so the noise :math:`x_T` itself is moved to where
they are not, by an optimizer on

.. math:: L(x) = \text{sharpness}(x) + a \|x\|^2

until the sharpness is below a threshold.  Nothing else of the sampling changes.

Jeon, Kim & No, Understanding and mitigating memorization in generative models via sharpness of
probability landscapes, ICML 2025.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from sharpjax._types import Array
from sharpjax.levels import check_signal
from sharpjax.mitigation.descent import MAX_STEPS, descend
from sharpjax.mitigation.plausibility import Plausibility, plausibility
from sharpjax.mitigation.sharpness import DELTA, sharpness
from sharpjax.reprs import one_line
from sharpjax.score import ScorePair


@dataclasses.dataclass(frozen=True)
class Sailed:
    """Noises to sample from, and how they got there.

    Attributes:
        noise: ``(n, *shape)``.
        before: sharpness at the noise that each began from, ``(n,)``.
        after: sharpness at ``noise``, ``(n,)``.
        steps: of the optimizer, all attempts together, ``(n,)``.
        outcome: ``met`` the threshold, spent its ``budget`` of steps, or ``not finite``, ``(n,)``.
        attempts: noises that were tried, ``(n,)``; 1 without retries.
        threshold: that of the last attempt, ``(n,)``; the best of all attempts is kept.
        plausibility: of each noise, None of one that is not finite.
    """

    noise: Array
    before: np.ndarray
    after: np.ndarray
    steps: np.ndarray
    outcome: np.ndarray
    attempts: np.ndarray
    threshold: np.ndarray
    plausibility: tuple[Plausibility | None, ...]

    __repr__ = one_line


@functools.lru_cache(32)  # of other settings: not for ever
def sharpness_loss(
    form: str, delta: float, penalty: float
) -> Callable[[ScorePair, Array, Array], tuple[Array, Array]]:
    """``(pair, x, start) -> (loss, sharpness)``, the same function for the same settings."""
    measure = sharpness(form, delta=delta)

    def loss(pair: ScorePair, x: Array, start: Array) -> tuple[Array, Array]:
        value = measure(pair, x, start)
        return value + penalty * jnp.sum(x**2), value

    return loss


def sail(
    pair: ScorePair,
    key: Array | None = None,
    *,
    threshold: float,
    shape: tuple[int, ...] | None = None,
    num_candidates: int = 1,
    noise: Array | None = None,
    form: str = "exact",
    delta: float = DELTA,
    penalty: float = 0.0,
    max_steps: int = MAX_STEPS,
    optimizer: optax.GradientTransformation | None = None,
    retries: int = 0,
    raise_by: float = 1.5,
    mesh: Mesh | None = None,
) -> Sailed:
    r"""Initial noises at which the pair is no sharper than ``threshold``.

    Args:
        pair: of the prompt at the first timestep of sampling with ``alpha > 0``.
        key: draws the candidates, and new ones for retries.
        threshold: of the sharpness, in the units of the form (:mod:`~.sharpness`); a quantile on
            prompts that are not memorized, by :func:`~sharpjax.mitigation.calibrate`.
        shape: of one noise, such as ``model.shape``.
        num_candidates: how many, each descended on its own.
        noise: start from these instead, ``(n, *shape)``.
        form: of the sharpness: ``exact``, ``finite_difference`` or ``official``.
        delta: step of the last two.
        penalty: ``a``, weight of :math:`\|x\|^2`.
        max_steps: of the optimizer, for each attempt.
        optimizer: any of optax; Adam at 0.05 by default. The same object again is not compiled
            again.
        retries: how often a candidate that did not get there begins anew from another noise.
        raise_by: factor on the threshold at each retry.
        mesh: devices that share the candidates.

    Raises:
        ValueError: no candidates, a threshold that cannot be met, options outside their range, or
            a pair at ``alpha = 0``, where no noise is sharp.
    """
    check_signal(pair.alpha, "the sharpness of a score difference")
    if noise is None:
        if key is None or shape is None:
            raise ValueError("pass noise, or key=jax.random.key(seed) and shape=model.shape")
        if not isinstance(shape, tuple | list):
            raise ValueError(f"shape must be that of one noise, such as model.shape, got {shape!r}")
        if num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, got {num_candidates}")
        noise = jax.random.normal(jax.random.fold_in(key, 0), (num_candidates, *shape))
    if retries < 0 or (retries and not 1 <= raise_by < float("inf")):
        raise ValueError(
            "retries must be at least 0 and raise_by a finite number of at least 1, got "
            f"{retries} and {raise_by}"
        )
    if retries and key is None:
        raise ValueError("retries draw new noises: pass key=jax.random.key(seed)")
    if not 0 <= penalty < float("inf"):
        raise ValueError(f"penalty must be a finite number >= 0, got {penalty}")
    loss = sharpness_loss(form, float(delta), float(penalty))
    options: Any = {"max_steps": max_steps, "optimizer": optimizer, "mesh": mesh}
    ended = descend(loss, pair, noise, threshold=threshold, **options)
    point, outcome = np.array(ended.point), ended.outcome.copy()
    before, after, steps = ended.before.copy(), ended.after.copy(), ended.steps.copy()
    attempts, limits = np.ones(len(point), int), np.full(len(point), float(threshold))
    for attempt in range(1, retries + 1):
        again = outcome != "met"
        if not again.any():
            break
        raised = threshold * raise_by**attempt
        warnings.warn(
            f"{again.sum()} of {len(point)} candidates did not get there; they begin anew from "
            f"other noises, with the threshold raised from {limits[again][0]:.4g} to {raised:.4g}",
            stacklevel=2,
        )
        fresh = jax.random.normal(jax.random.fold_in(cast(Array, key), attempt), point.shape)
        ended = descend(loss, pair, fresh, threshold=raised, **options)
        steps[again] += ended.steps[again]
        attempts[again], limits[again] = attempt + 1, raised
        # what an earlier attempt reached is not given up for less
        worse = (outcome == "not finite") | ~(after <= ended.after)
        taken = again & (ended.outcome != "not finite") & worse
        point[taken] = np.asarray(ended.point)[taken]
        before[taken], after[taken] = ended.before[taken], ended.after[taken]
        outcome[taken] = ended.outcome[taken]
        outcome[again & (after <= raised)] = "met"
    return Sailed(
        jnp.asarray(point), before, after, steps, outcome, attempts, limits,
        tuple(plausibility(x) if np.isfinite(x).all() else None for x in point),
    )  # fmt: skip
