r"""Statistics of the gap: the divergence of $s_D/\|s_D\|$, and what a step in the condition does.

Where a condition leads every point about $x$ to one place, the field of unit vectors
$s_D/\|s_D\|$ points inwards and its divergence is negative.  Brokman et al. (NeurReps 2025) take
the flux of $\epsilon_D = -\sigma s_D$ through the sphere of radius $R = \sigma\sqrt d$,

$$
k_\Delta = E_n \Bigl[\frac{\epsilon_D}{\|\epsilon_D\|}(x + R n) \cdot n\Bigr]
= -\frac{R}{d} \operatorname{mean}_{B_R(x)} \operatorname{div} \frac{s_D}{\|s_D\|},
$$

without the factor $d/R$ that makes a mean over the ball of it.  Larger means memorized.
"""

from typing import Any

import jax.numpy as jnp

from sharpjax import curvature
from sharpjax._linalg import safe_norm
from sharpjax._types import Array, Key
from sharpjax.detection.registry import register
from sharpjax.score import ScorePair, check_pair

DIRECTIONS = 16  # as published


@register(direction=+1, where="state", cost="32F", source="Brokman et al., NeurReps 2025")
def gap_flux(pair: ScorePair, x: Array, *, key: Key, num_directions: int = DIRECTIONS) -> Array:
    r"""$k_\Delta$ about a state `x` of a path; dimensionless, from -1 to 1.

    Larger means memorized.  With so few directions it may be off by as much as it is: noises are
    samples of it, and their spread is the error that tables show.  Cost: 2 `num_directions` F.

    Brokman et al., NeurReps 2025, the 1-Laplacian of the gap between both scores; their public
    code takes 16 directions.
    """
    return _flux(pair, x, key, num_directions)


@register(
    direction=+1, where="state", cost="2F + 2 probes T", source="sharpjax", options=["num_probes"]
)
def gap_divergence(pair: ScorePair, x: Array, *, key: Key, num_probes: int = 4) -> Array:
    r"""$-\frac{R}{d} \operatorname{div} (s_D/\|s_D\|)$ at `x` itself, $R = \sigma\sqrt d$.

    What `gap_flux` is the mean of over a ball; at its middle it is another number.  Larger means
    memorized.  Cost 2F + 2 probes T.
    """
    check_pair(pair, "gap_divergence")
    found = curvature.p_laplacian(pair.difference, x, p=1.0, key=key, num_matvecs=num_probes)
    return -pair.sigma / jnp.sqrt(x.size) * found.value


@register(direction=+1, where="reencoded", cost="32F", source="Brokman et al., NeurReps 2025")
def image_gap_flux(
    pair: ScorePair, z: Array, *, key: Key, num_directions: int = DIRECTIONS
) -> Array:
    r"""$k_\Delta$ about $\alpha z$ of a finished image, decoded and encoded again to `z`.

    At a small noise level (t = 10 of 1,000); dimensionless.  Larger means memorized.  Cost: 2
    `num_directions` F.

    Brokman et al., NeurReps 2025, with 16 directions as in their public code.
    """
    return _flux(pair, pair.alpha * z, key, num_directions)


def _flux(pair: ScorePair, x: Array, key: Key, num_directions: int) -> Array:
    check_pair(pair, "the flux of the gap")
    radius = pair.sigma * jnp.sqrt(x.size)
    options: Any = {"method": "flux", "radius": radius, "num_directions": num_directions}
    found = curvature.p_laplacian(pair.difference, x, p=1.0, key=key, **options)
    return -radius / x.size * found.value


@register(direction=+1, where="state", cost="F + T", source="sharpjax", vectors=True)
def condition_jacobian(pair: ScorePair, x: Array, *, key: Key | None = None) -> Array:
    r"""$\bigl\|\frac{\partial s_c}{\partial c} \hat c\bigr\|$: what a step in the condition moves.

    $\hat c$ is the unit vector from the empty condition to this one, so the unit is that of a
    score, 1/sigma, per unit of the encoded condition.  Larger means memorized.  Cost F + T, the
    tangent in the condition; nothing is drawn by the `key`.
    """
    check_pair(pair, "condition_jacobian")
    if pair.along is None:
        raise ValueError(
            "condition_jacobian needs conditions that are vectors, as encoded prompts are; this "
            "model's are numbers of classes"
        )
    return safe_norm(pair.along(x))
