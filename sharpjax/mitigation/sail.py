r"""SAIL: sharpness-aware initialisation of the noise that sampling starts from.

Memorized prompts are sharp at pure noise already, so the noise $x_T$ itself is moved to where
they are not, by an optimizer on

$$L(x) = \text{sharpness}(x) + a \|x\|^2$$
until the sharpness is below a threshold.  Nothing else of the sampling changes.  Without the
penalty the noise grows: nearly every direction of many dimensions leads away from the origin.
What the paper's public code does is `sharpjax.mitigation.sail_official`.

Jeon, Kim & No, Understanding and mitigating memorization in generative models via sharpness of
probability landscapes, ICML 2025.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from sharpjax._checks import prng_key
from sharpjax._reprs import one_line
from sharpjax._types import Array, Key
from sharpjax.mitigation.descent import MAX_STEPS, Descent, descend
from sharpjax.mitigation.plausibility import Plausibility, plausibility
from sharpjax.mitigation.sharpness import DELTA, sharpness
from sharpjax.score import ScorePair, check_pair


@dataclasses.dataclass(frozen=True)
class Sailed(Descent):
    """Noises to sample from, and how they got there.

    Attributes:
        attempts: noises that were tried, `(n,)`; 1 but for `sail_official`.
        threshold: that of the last attempt, `(n,)`.
        spent: losses with their gradients that were computed, of all candidates and attempts.
    """

    attempts: np.ndarray
    threshold: np.ndarray
    spent: int

    __repr__ = one_line

    @property
    def noise(self) -> Array:
        """Where the descents ended, `(n, *shape)`."""
        return self.point

    @functools.cached_property
    def plausibility(self) -> tuple[Plausibility | None, ...]:
        """Of each noise, None of one that is not finite."""
        points = np.asarray(self.point)
        return tuple(plausibility(x) if np.isfinite(x).all() else None for x in points)

    def warned(self) -> "Sailed":
        """Itself, with a warning of the noises that are not plausible."""
        odd = [one for one in self.plausibility if one is not None and not one.is_gaussian]
        if odd:
            worst = max(odd, key=lambda one: one.largest)
            warnings.warn(
                f"{len(odd)} of {len(self.point)} noises no longer look like draws of N(0, I): one "
                f"has the z-score {worst.largest:.1f} and {worst.norm:.2f} times the usual length. "
                "A model was trained on such draws alone: a penalty, fewer steps, a higher "
                "threshold or optimizer=sharpjax.mitigation.adam_on_sphere() keep nearer to them",
                stacklevel=3,
            )
        return self


@functools.lru_cache(32)  # of other settings: not for ever
def sharpness_loss(
    form: str, delta: float, penalty: float
) -> Callable[[ScorePair, Array, Array], tuple[Array, Array]]:
    """`(pair, x, start) -> (loss, sharpness)`, the same function for the same settings."""
    measure = sharpness(form, delta=delta)

    def loss(pair: ScorePair, x: Array, start: Array) -> tuple[Array, Array]:
        value = measure(pair, x)
        return value + penalty * jnp.sum(x**2), value

    return loss


def check_shape(shape: object) -> None:
    """Refuse what is not the shape of one noise."""
    if not isinstance(shape, tuple | list):
        raise ValueError(
            f"shape must be that of one noise, such as model.shape, got {shape!r}; or pass noise"
        )


def check_not_negative(**numbers: float) -> None:
    """Refuse a number that is not finite and >= 0."""
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} must be a finite number >= 0, got {number}")


def sail(
    pair: ScorePair,
    key: Key | None = None,
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
    mesh: Mesh | None = None,
) -> Sailed:
    r"""Initial noises at which the pair is no sharper than `threshold`.

    Args:
        pair: of the prompt at the first timestep of sampling with `alpha > 0`.
        key: draws the candidates.
        threshold: of the sharpness, in the units of the form (`.sharpness`); a quantile on
            prompts that are not memorized, by `sharpjax.mitigation.calibrate`.
        shape: of one noise, such as `model.shape`.
        num_candidates: how many, each descended on its own.
        noise: start from these instead, `(n, *shape)`.
        form: of the sharpness: `exact` or `finite_difference`.
        delta: step of the latter.
        penalty: `a`, weight of $\|x\|^2$; the threshold is of the sharpness alone.
        max_steps: of the optimizer.
        optimizer: any of optax; Adam at 0.05 by default. The same object again is not compiled
            again.
        mesh: devices that share the candidates.

    Warns:
        UserWarning: noises that no longer look like draws of N(0, I).

    Raises:
        ValueError: no candidates, a threshold that cannot be met, options outside their range, or
            a pair at `alpha = 0`, where no noise is sharp.
    """
    check_pair(pair, "the sharpness of a score difference")
    if noise is None:
        if key is None or shape is None:
            raise ValueError("pass noise, or key=jax.random.key(seed) and shape=model.shape")
        check_shape(shape)
        if num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, got {num_candidates}")
        key = prng_key(key, "The candidates are drawn")
        noise = jax.random.normal(jax.random.fold_in(key, 0), (num_candidates, *shape))
    check_not_negative(penalty=penalty)
    loss = sharpness_loss(form, float(delta), float(penalty))
    ended = descend(
        loss, pair, noise, threshold=threshold, max_steps=max_steps, optimizer=optimizer, mesh=mesh
    )
    count = len(ended.steps)
    return Sailed(
        **vars(ended),
        attempts=np.ones(count, int),
        threshold=np.full(count, float(threshold)),
        spent=int(ended.steps.sum()) + count,  # the last of every descent is no step
    ).warned()
