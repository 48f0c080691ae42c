"""What is usual among prompts that are not memorized: where a descent may stop.

A loss that is lowered until it is as low as on clean prompts has done what can be asked of it.  So
thresholds are quantiles of the loss on clean prompts, each at one noise of its own, which makes
the values independent and the quantile's interval exact
(`sharpjax.detection.calibration` derives it).
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sharpjax._checks import prng_key
from sharpjax._reprs import one_line
from sharpjax._types import Array, ArrayLike, Key
from sharpjax.conditional import ConditionalModel
from sharpjax.detection.calibration import Threshold, threshold
from sharpjax.mesh.loops import over_points
from sharpjax.mitigation.sail_official import PENALTY, branch_of, official_loss
from sharpjax.mitigation.screen import halfway, ranked
from sharpjax.mitigation.sharpness import FORMS, norm, sharpness
from sharpjax.prompts import distinct
from sharpjax.rundir.progress import progress
from sharpjax.score import ScorePair

SCORE_DIFFERENCE, SAIL_OFFICIAL = "score_difference", "sail_official"
SCREEN = "effective_dimension"  # of paths, half-way
LOSSES = (*FORMS, SCORE_DIFFERENCE, SAIL_OFFICIAL)
_BATCH = 8  # prompts at a time


@dataclasses.dataclass(frozen=True)
class Levels:
    """Losses on clean prompts.

    Attributes:
        values: name of the loss -> its values, `(num_prompts,)` each.
    """

    values: dict[str, np.ndarray]

    __repr__ = one_line

    def threshold(self, name: str, quantile: float, *, direction: int = 1) -> Threshold:
        """The quantile of a loss, with its 95% interval; `direction` -1 counts from the largest.

        Raises:
            ValueError: an unknown loss, fewer than two prompts, or a quantile outside (0, 1).
        """
        if name not in self.values:
            raise ValueError(f"no values of {name!r}; there are {', '.join(self.values)}")
        return threshold(self.values[name], direction=direction, quantile=quantile)


def measure(name: str, *, prediction_type: str = "epsilon") -> Callable[[ScorePair, Array], Array]:
    """`(pair, x) -> scalar`: what a descent lowers, where it starts.

    Args:
        name: a form of the sharpness, the score difference, or `sail_official`.
        prediction_type: of the network, which has a say in the last.

    Raises:
        ValueError: an unknown name.
    """
    if name == SCORE_DIFFERENCE:
        return lambda pair, x: norm(pair.difference(x))
    if name == SAIL_OFFICIAL:
        branch = branch_of(prediction_type)
        loss = official_loss(branch, PENALTY[branch])
        return lambda pair, x: loss(pair, x, x)[0]
    if name not in FORMS:
        raise ValueError(f"unknown loss {name!r}; choose of {', '.join(LOSSES)}")
    return sharpness(name)


def calibrate(
    model: ConditionalModel,
    prompts: Sequence[str],
    key: Key,
    *,
    names: Sequence[str] = ("exact", SCORE_DIFFERENCE),
    num_steps: int = 50,
    guidance: float = 7.5,
    mesh: Mesh | None = None,
) -> Levels:
    """Losses at the first timestep of sampling, each clean prompt at one noise.

    What a screen looks at, `effective_dimension`, is that half-way down a path of that noise.

    Args:
        model: that generates.
        prompts: known not to be memorized, of the kind that will be asked for; repeated ones count
            once, blank ones not. Six close the interval of the median, 72 that of the 95% quantile.
        key: draws the noises.
        names: of losses: `exact`, `finite_difference`, `score_difference` and
            `sail_official`, which is with its penalty; and `effective_dimension`.
        num_steps: of sampling: decides which timestep is the first with `alpha > 0`.
        guidance: of a screen's paths.
        mesh: devices that share the prompts.

    Raises:
        ValueError: fewer than two prompts, an unknown loss, or values that are not finite.
    """
    if isinstance(prompts, str):
        raise ValueError(f"calibrate takes a list of prompts, got the string {prompts!r:.40}")
    key = prng_key(key, "Noises are random")
    prompts = [prompts[place] for place in distinct(list(prompts))]
    if len(prompts) < 2:
        raise ValueError(f"a calibration needs at least two clean prompts, got {len(prompts)}")
    at_noise = tuple(name for name in names if name != SCREEN)
    for name in at_noise:
        measure(name)
    model.check(prompts)  # warns of all that are too long at once
    t = model.schedule.first_step(num_steps)
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    if SCREEN in names:
        look = halfway(num_steps)
        paths = ranked(
            model, prompts, key, look=look, num_tries=1, guidance=guidance, num_steps=num_steps,
            batch_size=_BATCH, mesh=mesh,
        )  # fmt: skip
        found[SCREEN].append(np.array([values[0][0][0] for values in paths.values]))
    if not at_noise:
        return Levels(_checked(found))
    with progress("calibrating", total=len(prompts)) as bar:
        for start in range(0, len(prompts), _BATCH):
            rows = np.arange(start, start + _BATCH) % len(prompts)  # one compilation for all
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                conditions = jnp.concatenate([model.encode([prompts[i]]) for i in rows])
            keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.asarray(rows))
            values = _measure(model, conditions, keys, t, names=at_noise, mesh=mesh)
            count = min(_BATCH, len(prompts) - start)
            for name in at_noise:
                found[name].append(np.asarray(values[name])[:count])
            bar.advance(count)
    return Levels(_checked(found))


def _checked(found: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    levels = {name: np.concatenate(parts).astype(float) for name, parts in found.items()}
    for name, values in levels.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name} of clean prompts is NaN or infinite: is the model damaged?")
    return levels


@functools.partial(jax.jit, static_argnames=("names", "mesh"))
def _measure(
    model: ConditionalModel,
    conditions: Array,
    keys: Array,
    t: ArrayLike,
    *,
    names: tuple[str, ...],
    mesh: Mesh | None,
) -> dict[str, Array]:
    def part(common: Any, batch: Any) -> Any:
        model, t = common

        def one(condition: Array, key: Key) -> dict[str, Array]:
            pair = model.scores(condition, t)
            x = jax.random.normal(key, model.shape)
            kind = model.schedule.prediction_type
            return {name: measure(name, prediction_type=kind)(pair, x) for name in names}

        return jax.vmap(one)(*batch)

    return over_points(part, mesh, (model, t), (conditions, keys))
