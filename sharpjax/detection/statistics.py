r"""Statistics of memorization: scalars of a pair of scores at a noise.

With :math:`s_D = s_c - s_u` and :math:`H_D = H_c - H_u`.  A condition with one training image
pulls every noise towards that image, so its score differs much from the unconditional one; and the
landscape around it is as sharp as the noise allows, so nothing of :math:`K_c = I + \sigma^2 H_c`
is left open.

Each function takes ``(pair, x)``, is jittable and returns a scalar.  Those without probes take the
pair's linearization at ``x`` too, so that several of them share it.  Under ``jax.vmap`` over the
conditions at one and the same noise, the unconditional score is linearized once for all of them.
:data:`STATISTICS` says of each which direction means *memorized*.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from sharpjax import curvature
from sharpjax._types import Array
from sharpjax.score import LinearizedPair, ScorePair


@dataclasses.dataclass(frozen=True)
class Statistic:
    """An entry of the registry.

    Attributes:
        function: ``(pair, x) -> scalar``; with ``needs_probes`` also ``key`` and ``num_probes``.
        direction: ``+1`` if larger means memorized, ``-1`` if smaller does.
        needs_probes: whether it is estimated with random probes.
        cost: network evaluations a noise; F forward, T tangent.
        source: where it was published.
    """

    function: Callable[..., Array]
    direction: int
    needs_probes: bool
    cost: str
    source: str


STATISTICS: dict[str, Statistic] = {}


def _register(*, direction: int, cost: str, source: str, needs_probes: bool = False):
    def add(function):
        STATISTICS[function.__name__] = Statistic(function, direction, needs_probes, cost, source)
        return function

    return add


@_register(direction=+1, cost="2F", source="Wen et al. 2024")
def score_difference(
    pair: ScorePair, x: Array, *, linearized: LinearizedPair | None = None
) -> Array:
    r""":math:`\|s_D(x)\|`, units 1/sigma.  Larger means memorized.  Cost 2F.

    Wen et al., ICLR 2024, "Detecting, explaining, and mitigating memorization in diffusion
    models" (there with noise predictions: multiply by sigma).
    """
    return jnp.linalg.norm(pair.difference(x) if linearized is None else linearized.difference)


@_register(direction=+1, cost="2F + 2T", source="Jeon et al. 2025")
def hessian_score_difference(
    pair: ScorePair,
    x: Array,
    *,
    squared: bool = False,
    linearized: LinearizedPair | None = None,
) -> Array:
    r""":math:`\|H_D(x)\, s_D(x)\|`, units 1/sigma^3.  Larger means memorized.  Cost 2F + 2T.

    Jeon, Kim & No, ICML 2025, "Understanding and mitigating memorization in generative models via
    sharpness of probability landscapes"; squared in the paper, not in its public code.
    """
    here = pair.linearize(x) if linearized is None else linearized
    norm_squared = jnp.sum(here.difference_tangent(here.difference) ** 2)
    return norm_squared if squared else jnp.sqrt(norm_squared)


@_register(direction=+1, cost="2F + 2T", source="Jeon et al. 2025, first version")
def hessian_score(pair: ScorePair, x: Array, *, linearized: LinearizedPair | None = None) -> Array:
    r""":math:`\|H_c s_c - H_u s_u\|`, units 1/sigma^3.  Larger means memorized.  Cost 2F + 2T.

    The first arXiv version of Jeon, Kim & No 2025.
    """
    here = pair.linearize(x) if linearized is None else linearized
    conditional = here.conditional_tangent(here.conditional)
    return jnp.linalg.norm(conditional - here.unconditional_tangent(here.unconditional))


@_register(direction=-1, cost="2F + 2 probes T", source="sharpjax", needs_probes=True)
def trace_difference(pair: ScorePair, x: Array, *, key: Array, num_probes: int = 4) -> Array:
    r""":math:`\operatorname{tr} H_c - \operatorname{tr} H_u`, units 1/sigma^2.

    Smaller (more negative) means memorized: the condition leaves fewer directions open than no
    condition does.  Both traces use the same probes, so that what they share cancels.
    """
    ours = effective_dimension(pair, x, key=key, num_probes=num_probes)
    theirs = curvature.effective_dimension(
        pair.unconditional, x, sigma=pair.sigma, key=key, num_matvecs=num_probes
    )
    return (ours - theirs.value) / pair.sigma**2


@_register(direction=-1, cost="F + probes T", source="sharpjax", needs_probes=True)
def effective_dimension(pair: ScorePair, x: Array, *, key: Array, num_probes: int = 4) -> Array:
    r""":math:`\operatorname{tr} K_c`, :math:`K = I + \sigma^2 H`; dimensionless.

    Smaller means memorized: 0 for a single image, at every noise level.
    """
    estimate = curvature.effective_dimension(
        pair.conditional, x, sigma=pair.sigma, key=key, num_matvecs=num_probes
    )
    return estimate.value
