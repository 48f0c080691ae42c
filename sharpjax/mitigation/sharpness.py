r"""How sharp the landscape is at a noise: the losses that SAIL descends, in three forms.

With :math:`s_D = s_c - s_u` and :math:`H_D = H_c - H_u`, all in one unit, 1/sigma^6 (the last
1/sigma), so that thresholds of the first two mean the same:

=====================  ============================================================================
exact                  :math:`\|H_D(x)\, s_D(x)\|^2`, by two tangents
finite_difference      :math:`\|s_D(x + h s_D(x)) - s_D(x)\|^2 / h^2` with :math:`h = \delta /
                       \|s_D(x)\|`: a step of length :math:`\delta` along :math:`s_D`.  Equal to
                       ``exact`` up to :math:`O(\delta)`.  The paper prints it without the factor
                       :math:`1/h^2`
official               :math:`\|s_D(x + \delta\, \hat s_D(x_0))\|`, the direction taken at the start
                       :math:`x_0` and held, as the paper's public code has it: no difference, no
                       square.  As :math:`\delta \to 0` it is the score difference itself
=====================  ============================================================================

Jeon, Kim & No, Understanding and mitigating memorization in generative models via sharpness of
probability landscapes, ICML 2025.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sharpjax._types import Array
from sharpjax.score import ScorePair

FORMS = ("exact", "finite_difference", "official")
"""Names of the forms of sharpness that `sail` descends."""

# Short enough for an error of a percent, long enough for float32: docs/mitigation.md has the curve.
DELTA = 0.1


def exact(pair: ScorePair, x: Array) -> Array:
    r""":math:`\|H_D s_D\|^2` at ``x``, units 1/sigma^6.  Cost: one paired forward, one tangent."""
    # The direction is a function of x too, and differentiated with the rest.
    difference, tangent_map = jax.linearize(pair.difference, x)
    return jnp.sum(tangent_map(difference) ** 2)


def finite_difference(pair: ScorePair, x: Array, *, delta: float = DELTA) -> Array:
    r"""The same by a step of length ``delta``.  Cost: two paired forwards.

    Where :math:`s_D` vanishes there is no direction, and the loss is 0, as is the exact one.
    """
    difference = pair.difference(x)
    h = delta / norm(difference)
    return jnp.sum((pair.difference(x + h * difference) - difference) ** 2) / h**2


def official(pair: ScorePair, x: Array, direction: Array, *, delta: float = DELTA) -> Array:
    """Length of the score difference a step ``delta`` away along a fixed unit ``direction``."""
    return norm(pair.difference(x + delta * direction))


def unit_difference(pair: ScorePair, x: Array) -> Array:
    """The direction of the score difference at ``x``: what :func:`official` holds."""
    difference = pair.difference(x)
    return difference / norm(difference)


def norm(v: Array) -> Array:
    """Euclidean length, with a finite gradient where ``v`` is 0."""
    return jnp.sqrt(jnp.maximum(jnp.sum(v**2), jnp.finfo(v.dtype).tiny))


def sharpness(form: str, *, delta: float = DELTA) -> Callable[[ScorePair, Array, Array], Array]:
    """The loss ``(pair, x, start) -> scalar`` of a form; ``start`` is where the descent began.

    Raises:
        ValueError: an unknown form, or a step that is not positive.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
    if not 0 < delta < float("inf"):
        raise ValueError(f"delta must be a positive number, got {delta}")
    if form == "exact":
        return lambda pair, x, start: exact(pair, x)
    if form == "finite_difference":
        return lambda pair, x, start: finite_difference(pair, x, delta=delta)
    return lambda pair, x, start: official(pair, x, unit_difference(pair, start), delta=delta)
