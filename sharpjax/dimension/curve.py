"""Dimension over noise levels: what a point looks like from near and from far."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._checks import prng_key
from sharpjax._reprs import one_line
from sharpjax._types import Array, ArrayLike, Key, Score
from sharpjax.curvature.estimate import Estimate
from sharpjax.dimension.flipd import flipd
from sharpjax.dimension.lhsd import filtered
from sharpjax.schedules.base import NoiseSchedule, check_schedule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DimensionCurve:
    """Dimension at several levels, the smallest noise first.

    Attributes:
        times: timesteps, `(m,)`.
        alpha: signal, `(m,)`.
        sigma: noise, `(m,)`.
        flipd: an `Estimate` of `(m,)`.
        lhsd: likewise.
        transition_mass: likewise: where it is large the cutoff of LHSD lies among the eigenvalues,
            and its count means little.
    """

    times: Array
    alpha: Array
    sigma: Array
    flipd: Estimate
    lhsd: Estimate
    transition_mass: Estimate

    __repr__ = one_line

    @property
    def chosen(self) -> int:
        """Index of the level of the least transition mass, the smallest noise among equal ones."""
        return int(np.argmin(np.asarray(self.transition_mass.value)))


def dimension_curve(
    scores: Callable[[int], Score],
    x0: ArrayLike,
    *,
    schedule: NoiseSchedule,
    times: Sequence[int],
    key: Key | None = None,
    num_probes: int = 8,
    num_matvecs: int = 20,
    cutoff: float = 0.1,
    power: float = 4.0,
    symmetric: bool = False,
) -> DimensionCurve:
    """FLIPD, LHSD and its transition mass at several levels of a schedule.

    Dimension depends on the scale: as the noise grows, thin directions close.  A level at which no
    eigenvalue lies near the cutoff says the most; `DimensionCurve.chosen` is the one of the least
    transition mass.

    Args:
        scores: timestep -> score of the noised data there, as `model.unconditional`.
        x0: the clean point.
        schedule: alpha and sigma of the timesteps.
        times: timesteps, in any order; all different.
        key: PRNG key of the probes, the same at all levels.
        num_probes: of LHSD at a level.
        num_matvecs: products of each probe; FLIPD has as many as all of LHSD's together.
        cutoff: of LHSD, in units of 1/sigma^2.
        power: of LHSD.
        symmetric: take Jacobians for symmetric.

    Raises:
        ValueError: no schedule; no timesteps, repeats or one outside the schedule or with
            `alpha = 0`; and as `flipd` and `lhsd`.

    >>> import jax, jax.numpy as jnp
    >>> from sharpjax import Gaussian, Schedule
    >>> schedule = Schedule.create()
    >>> p = Gaussian(jnp.zeros(3), jnp.diag(jnp.array([1.0, 1.0, 1e-6])))
    >>> scores = lambda t: p.noised(schedule.alpha(t), schedule.sigma(t)).score
    >>> options = {"schedule": schedule, "times": [100, 20], "key": jax.random.key(0)}
    >>> curve = dimension_curve(scores, jnp.zeros(3), **options, num_probes=64)
    >>> print(curve.times, [f"{value:.1f}" for value in curve.flipd.value])
    [ 20 100] ['2.0', '1.8']
    """
    check_schedule(schedule)
    key = prng_key(key, "The probes are random")
    steps = [int(schedule.checked_timestep(t)) for t in times]
    if not steps or len(set(steps)) != len(steps):
        raise ValueError(f"times must be at least one timestep, all different, got {list(times)}")
    found = []
    for t in sorted(steps):
        alpha, sigma, score = schedule.alpha(t), schedule.sigma(t), scores(t)
        level: Any = {"alpha": alpha, "sigma": sigma, "key": key}
        options: Any = {"cutoff": cutoff, "power": power, "symmetric": symmetric}
        local = filtered(
            score, x0, num_probes=num_probes, num_matvecs=num_matvecs, **level, **options
        )
        products = num_probes * num_matvecs
        found.append((alpha, sigma, flipd(score, x0, num_matvecs=products, **level), *local))
    alphas, sigmas, *estimates = zip(*found, strict=True)
    stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) for each in estimates]
    return DimensionCurve(jnp.array(sorted(steps)), jnp.stack(alphas), jnp.stack(sigmas), *stacked)
