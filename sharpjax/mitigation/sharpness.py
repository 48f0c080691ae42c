r"""How sharp the landscape is at a noise: the losses that SAIL descends, in two forms.

With $s_D = s_c - s_u$ and $H_D = H_c - H_u$, both in one unit, 1/sigma^6, so that
thresholds mean the same:

=====================  ============================================================================
exact                  $\|H_D(x)\, s_D(x)\|^2$, by two tangents
finite_difference      $\|s_D(x + h s_D(x)) - s_D(x)\|^2 / h^2$ with $h = \delta /
                       \|s_D(x)\|$: a step of length $\delta$ along $s_D$.  Equal to
                       `exact` up to $O(\delta)$.  The paper prints it without the factor
                       $1/h^2$
=====================  ============================================================================

What the paper's public code descends is neither, and has a file of its own
(`sharpjax.mitigation.sail_official`).

Jeon, Kim & No, Understanding and mitigating memorization in generative models via sharpness of
probability landscapes, ICML 2025, arXiv:2412.04140.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sharpjax._types import Array
from sharpjax.score import ScorePair

FORMS = ("exact", "finite_difference")
"""Names of the forms of sharpness that `sail` descends."""

# Short enough for an error of a percent, long enough for float32: docs/mitigation.md has the curve.
DELTA = 0.1


def exact(pair: ScorePair, x: Array) -> Array:
    r"""$\|H_D s_D\|^2$ at `x`, units 1/sigma^6.  Cost: one paired forward, one tangent."""
    # The direction is a function of x too, and differentiated with the rest.
    difference, tangent_map = jax.linearize(pair.difference, x)
    return jnp.sum(tangent_map(difference) ** 2)


def finite_difference(pair: ScorePair, x: Array, *, delta: float = DELTA) -> Array:
    r"""The same by a step of length `delta`.  Cost: two paired forwards.

    Where $s_D$ vanishes there is no direction, and the loss is 0, as is the exact one.
    """
    difference = pair.difference(x)
    h = delta / norm(difference)
    return jnp.sum((pair.difference(x + h * difference) - difference) ** 2) / h**2


def norm(v: Array) -> Array:
    """Euclidean length, with a finite gradient where `v` is 0."""
    return jnp.sqrt(jnp.maximum(jnp.sum(v**2), jnp.finfo(v.dtype).tiny))


def sharpness(form: str, *, delta: float = DELTA) -> Callable[[ScorePair, Array], Array]:
    """The loss `(pair, x) -> scalar` of a form.

    Raises:
        ValueError: an unknown form, or a step that is not positive.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
    if not 0 < delta < float("inf"):
        raise ValueError(f"delta must be a positive number, got {delta}")
    return exact if form == "exact" else functools.partial(finite_difference, delta=delta)
