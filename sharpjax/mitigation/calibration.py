"""What is usual among prompts that are not memorized: where a descent may stop.

A loss that is lowered until it is as low as on clean prompts has done what can be asked of it.  So
thresholds are quantiles of the loss on clean prompts, each at one noise of its own, which makes
the values independent and the quantile's interval exact
(:mod:`sharpjax.detection.calibration` derives it).
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

from sharpjax._types import Array, ArrayLike
from sharpjax.conditional import ConditionalModel
from sharpjax.curvature.loops import over_points
from sharpjax.detection.calibration import Threshold, threshold
from sharpjax.mitigation.sharpness import DELTA, norm, sharpness
from sharpjax.progress import progress
from sharpjax.prompts import distinct
from sharpjax.reprs import one_line
from sharpjax.score import ScorePair

SCORE_DIFFERENCE = "score_difference"
_BATCH = 8  # prompts at a time


@dataclasses.dataclass(frozen=True)
class Levels:
    """Losses on clean prompts.

    Attributes:
        values: name of the loss -> its values, ``(num_prompts,)`` each.
    """

    values: dict[str, np.ndarray]

    __repr__ = one_line

    def threshold(self, name: str, quantile: float) -> Threshold:
        """The quantile of a loss, with its 95% interval.

        Raises:
            ValueError: an unknown loss, fewer than two prompts, or a quantile outside (0, 1).
        """
        if name not in self.values:
            raise ValueError(f"no values of {name!r}; there are {', '.join(self.values)}")
        return threshold(self.values[name], direction=+1, quantile=quantile)

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {name: values.tolist() for name, values in self.values.items()}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Levels":
        """Of a file."""
        return cls({str(name): np.array(values, float) for name, values in document.items()})


def measure(name: str, *, delta: float = DELTA) -> Callable[[ScorePair, Array], Array]:
    """``(pair, x) -> scalar``: a form of the sharpness, or the score difference, where one starts.

    Raises:
        ValueError: an unknown name.
    """
    if name == SCORE_DIFFERENCE:
        return lambda pair, x: norm(pair.difference(x))
    form = sharpness(name, delta=delta)
    return lambda pair, x: form(pair, x, x)


def calibrate(
    model: ConditionalModel,
    prompts: Sequence[str],
    key: Array,
    *,
    names: Sequence[str] = ("exact", SCORE_DIFFERENCE),
    num_steps: int = 50,
    mesh: Mesh | None = None,
) -> Levels:
    """Losses at the first timestep of sampling, each clean prompt at one noise.

    Args:
        model: that generates.
        prompts: known not to be memorized, of the kind that will be asked for; repeated ones count
            once, blank ones not. Six close the interval of the median, 72 that of the 95% quantile.
        key: draws the noises.
        names: of losses: ``exact``, ``finite_difference``, ``official``, ``score_difference``.
        num_steps: of sampling: decides which timestep is the first with ``alpha > 0``.
        mesh: devices that share the prompts.

    Raises:
        ValueError: fewer than two prompts, an unknown loss, or values that are not finite.
    """
    if isinstance(prompts, str) or key is None:
        raise ValueError(
            "calibrate takes a list of prompts and key=jax.random.key(seed), got "
            f"{prompts!r:.40} and {key!r:.40}"
        )
    prompts = [prompts[place] for place in distinct(list(prompts))]
    if len(prompts) < 2:
        raise ValueError(f"a calibration needs at least two clean prompts, got {len(prompts)}")
    for name in names:
        measure(name)
    model.check(prompts)  # warns of all that are too long at once
    t = int(model.schedule.timesteps_with_signal(num_steps)[0])
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with progress("calibrating", total=len(prompts)) as bar:
        for start in range(0, len(prompts), _BATCH):
            rows = np.arange(start, start + _BATCH) % len(prompts)  # one compilation for all
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                conditions = jnp.concatenate([model.encode([prompts[i]]) for i in rows])
            keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.asarray(rows))
            values = _measure(model, conditions, keys, t, names=tuple(names), mesh=mesh)
            count = min(_BATCH, len(prompts) - start)
            for name in names:
                found[name].append(np.asarray(values[name])[:count])
            bar.advance(count)
    levels = {name: np.concatenate(parts).astype(float) for name, parts in found.items()}
    for name, values in levels.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name} of clean prompts is NaN or infinite: is the model damaged?")
    return Levels(levels)


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

        def one(condition: Array, key: Array) -> dict[str, Array]:
            pair = model.scores(condition, t)
            x = jax.random.normal(key, model.shape)
            return {name: measure(name)(pair, x) for name in names}

        return jax.vmap(one)(*batch)

    result: dict[str, Array] = over_points(part, mesh, (model, t), (conditions, keys))
    return result
