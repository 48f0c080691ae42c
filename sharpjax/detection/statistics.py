r"""Statistics of memorization: scalars of a pair of scores at a noise.

With :math:`s_D = s_c - s_u` and :math:`H_D = H_c - H_u`.  A condition with one training image
pulls every noise towards that image, so its score differs much from the unconditional one; and the
landscape around it is as sharp as the noise allows, so nothing of :math:`K_c = I + \sigma^2 H_c`
is left open.

Each function is jittable and returns a scalar (:func:`guidance_alignment` its two terms).  What it
is computed from is said by ``where`` in :data:`STATISTICS`:

============  =====================================================================================
first         ``(pair, x)`` at the first timestep of sampling with ``alpha > 0`` (at ``alpha = 0``
              the two scores are one: refused), with pure noise for ``x``; given the pair's
              linearization at ``x`` too, several of them share it.  Under ``jax.vmap`` over the
              conditions at one and the same noise, the unconditional score is linearized once for
              all of them
level         ``(pair, x, key, num_probes)`` at a state of any level, by random probes
end           the same at the end of sampling
noise         pairs of two levels, both at pure noise: no denoising
path          a :class:`~sharpjax.detection.trajectory.Trajectory`
images        the finished images of one prompt
latent        the unconditional score close to a finished example: no prompt
============  =====================================================================================
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import curvature
from sharpjax._linalg import safe_norm
from sharpjax._types import Array
from sharpjax.detection.trajectory import Trajectory
from sharpjax.levels import check_signal
from sharpjax.score import LinearizedPair, ScorePair

_Function = TypeVar("_Function", bound=Callable[..., Array])
Where = Literal["first", "level", "end", "noise", "path", "images", "latent"]


@dataclasses.dataclass(frozen=True)
class Statistic:
    """An entry of the registry.

    Attributes:
        function: what it is computed by.
        direction: ``+1`` if larger means memorized, ``-1`` if smaller does.
        where: what it is computed from.
        cost: network evaluations a noise; F forward, T tangent, beside the sampling itself.
        source: where it was published.
        unconditional: whether it asks the unconditional score.
    """

    function: Callable[..., Array]
    direction: int
    where: Where
    cost: str
    source: str
    unconditional: bool = True


STATISTICS: dict[str, Statistic] = {}
"""Every statistic by its name, in the order of tables."""


def _register(
    *, direction: int, where: Where, cost: str, source: str, unconditional: bool = True
) -> Callable[[_Function], _Function]:
    def add(function: _Function) -> _Function:
        entry = Statistic(function, direction, where, cost, source, unconditional)
        STATISTICS[function.__name__] = entry
        return function

    return add


@_register(direction=+1, where="first", cost="2F", source="Wen et al. 2024")
def score_difference(
    pair: ScorePair, x: Array, *, linearized: LinearizedPair | None = None
) -> Array:
    r""":math:`\|s_D(x)\|`, units 1/sigma.  Larger means memorized.  Cost 2F.

    Wen et al., ICLR 2024, "Detecting, explaining, and mitigating memorization in diffusion
    models" (there with noise predictions: multiply by sigma).
    """
    check_signal(pair.alpha, "score_difference")
    difference = pair.difference(x) if linearized is None else linearized.difference
    return safe_norm(difference)


@_register(direction=+1, where="first", cost="2F + 2T", source="Jeon et al. 2025")
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
    check_signal(pair.alpha, "hessian_score_difference")
    here = pair.linearize(x) if linearized is None else linearized
    length = safe_norm(here.difference_tangent(here.difference))
    return length**2 if squared else length


@_register(direction=+1, where="first", cost="2F + 2T", source="Jeon et al. 2025, first version")
def hessian_score(pair: ScorePair, x: Array, *, linearized: LinearizedPair | None = None) -> Array:
    r""":math:`\|H_c s_c - H_u s_u\|`, units 1/sigma^3.  Larger means memorized.  Cost 2F + 2T.

    The first arXiv version of Jeon, Kim & No 2025.
    """
    check_signal(pair.alpha, "hessian_score")
    here = pair.linearize(x) if linearized is None else linearized
    conditional = here.conditional_tangent(here.conditional)
    return safe_norm(conditional - here.unconditional_tangent(here.unconditional))


@_register(direction=-1, where="level", cost="2F + 2 probes T", source="sharpjax")
def trace_difference(pair: ScorePair, x: Array, *, key: Array, num_probes: int = 4) -> Array:
    r""":math:`\operatorname{tr} H_c - \operatorname{tr} H_u`, units 1/sigma^2.

    Smaller (more negative) means memorized: the condition leaves fewer directions open than no
    condition does.  Both traces use the same probes, so that what they share cancels.
    """
    check_signal(pair.alpha, "trace_difference")
    ours = effective_dimension(pair, x, key=key, num_probes=num_probes)
    theirs = curvature.effective_dimension(
        pair.unconditional, x, sigma=pair.sigma, key=key, num_matvecs=num_probes
    )
    difference: Array = (ours - theirs.value) / pair.sigma**2
    return difference


@_register(direction=-1, where="level", cost="F + probes T", source="sharpjax", unconditional=False)
def effective_dimension(pair: ScorePair, x: Array, *, key: Array, num_probes: int = 4) -> Array:
    r""":math:`\operatorname{tr} K_c`, :math:`K = I + \sigma^2 H`; dimensionless.

    Smaller means memorized: 0 for a single image, at every noise level.
    """
    estimate = curvature.effective_dimension(
        pair.conditional, x, sigma=pair.sigma, key=key, num_matvecs=num_probes
    )
    value: Array = estimate.value
    return value


@_register(direction=+1, where="end", cost="2F + 2 probes T", source="Kim & Lee 2026")
def diagonal_curvature_difference(
    pair: ScorePair, x: Array, *, key: Array, num_probes: int = 4
) -> Array:
    r""":math:`\|\mathrm{diag}(-H_c) - \mathrm{diag}(-H_u)\|_1 / d`, units 1/sigma^2.

    Larger means memorized.  The diagonal of the difference is Hutchinson's,
    :math:`\frac1k \sum_i v_i \circ H_D v_i` with signs :math:`v_i`; its noise adds to the absolute
    values, by about :math:`\sqrt{2/\pi}` standard deviations of an entry where that is 0, and falls
    as :math:`1/\sqrt k`.  Cost 2F + 2 probes T.

    Kim & Lee 2026; how they reduce the diagonal to a number is not known to us.
    """
    check_signal(pair.alpha, "diagonal_curvature_difference")
    here = pair.linearize(x)

    def one(k: Array) -> Array:
        v = jax.random.rademacher(jax.random.fold_in(key, k), x.shape, x.dtype)
        return v * here.difference_tangent(v)

    return jnp.mean(jnp.abs(jax.lax.map(one, jnp.arange(num_probes)).mean(axis=0)))


@_register(direction=+1, where="noise", cost="4F", source="Asthana & Belagiannis 2026")
def guidance_alignment(first: ScorePair, later: ScorePair, x: Array) -> Array:
    r"""Two terms, ``(2,)``: how guidance lies to the score, and how strong it is.  Cost 4F.

    The mean over pixels of the cosine over channels between :math:`s_D` and :math:`s_u` at a late
    level, and :math:`\|s_D\|` at the first, both at the same pure noise ``x``: nothing is denoised.
    The statistic is their weighted sum after each is standardised on prompts known to be clean
    (:func:`combined_alignment`).  Larger means memorized.

    Args:
        first: the pair at the first timestep of sampling with ``alpha > 0``.
        later: at the third-last timestep.
        x: pure noise, ``(channels, *space)``.

    Asthana & Belagiannis 2026.
    """
    for pair in (first, later):
        check_signal(pair.alpha, "guidance_alignment")
    unconditional, conditional = later.both(x)
    difference = conditional - unconditional
    lengths = safe_norm(difference, axis=0) * safe_norm(unconditional, axis=0)
    # a pixel where either is 0 has no direction: it counts as neither along nor against
    cosine = jnp.sum(difference * unconditional, axis=0) / jnp.where(lengths > 0, lengths, 1)
    return jnp.stack([cosine.mean(), safe_norm(first.difference(x))])


def combined_alignment(
    terms: Array | np.ndarray,
    mean: Array | np.ndarray,
    std: Array | np.ndarray,
    *,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Array:
    """The weighted sum of :func:`guidance_alignment`'s terms, ``(..., 2)`` to ``(...)``.

    Each is standardised by its ``mean`` and ``std``, ``(2,)``, over prompts known to be clean; one
    that does not vary over these stays in its own units.
    """
    standardised = (jnp.asarray(terms) - mean) / jnp.where(std > 0, std, 1)
    result: Array = standardised @ jnp.array(weights)
    return result


@_register(direction=+1, where="path", cost="0", source="Wen et al. 2024")
def path_score_difference(path: Trajectory, *, num_steps: int | None = None) -> Array:
    r"""Mean over steps of :math:`\sigma_t \|s_D\|`, the length of the noises' difference.

    Dimensionless.  Larger means memorized.  ``num_steps`` takes only the first steps.  Cost 0
    beyond sampling.

    Wen et al., ICLR 2024.
    """
    difference = path.difference.reshape(len(path.sigmas), -1)
    return jnp.mean((path.sigmas * safe_norm(difference, axis=1))[:num_steps])


@_register(direction=+1, where="path", cost="0", source="Kim & Lee 2026")
def last_step_difference(path: Trajectory) -> Array:
    r"""Mean over entries of :math:`(s_c - s_u)^2` at the last step, units 1/sigma^2.

    Larger means memorized.  Cost 0 beyond sampling.

    Kim & Lee 2026.
    """
    return jnp.mean(path.difference[-1] ** 2)


@_register(direction=+1, where="path", cost="0", source="Broken memories, 2026")
def step_displacement(path: Trajectory, *, mean: Array, std: Array) -> Array:
    r"""Largest z-score over steps of :math:`\|z_t - z_{t+1}\|`; dimensionless.

    Larger means memorized.  ``mean`` and ``std``, ``(num_steps,)``, are those of the length of each
    step over prompts known to be clean.  Cost 0 beyond sampling.

    "Broken memories" 2026.
    """
    return largest_step(path.displacements, mean=mean, std=std)


def largest_step(
    displacements: Array | np.ndarray, *, mean: Array | np.ndarray, std: Array | np.ndarray
) -> Array:
    """The z-score of the longest step, ``(..., num_steps)`` to ``(...)``.

    A step that is of one length for all clean prompts is measured in its own units.
    """
    return jnp.max((displacements - mean) / jnp.where(std > 0, std, 1), axis=-1)


@_register(direction=-1, where="images", cost="0", source="Carlini et al. 2023")
def tiled_l2(images: Array) -> Array:
    """Smallest distance of two of the images, the distance being that of their worst tile.

    ``(n, channels, height, width)`` with ``n >= 2``; each is cut into 4 x 4 tiles, and two images
    are as far apart as the tiles in one place that differ most (l2 norm over a tile's entries).
    Smaller means memorized: a memorized prompt gives the same image again.  Cost 0 beyond sampling.

    Carlini et al., Extracting training data from diffusion models, USENIX Security 2023,
    arXiv:2301.13188.

    >>> a, b = jnp.zeros((1, 8, 8)), jnp.zeros((1, 8, 8)).at[0, 7, 7].set(3.0)
    >>> float(tiled_l2(jnp.stack([a, b]))), float(tiled_l2(jnp.stack([a, b, b])))
    (3.0, 0.0)
    """
    n, channels, height, width = images.shape
    if n < 2:
        raise ValueError(f"tiled_l2 compares images of one prompt, at least 2, got {n}")
    rows, columns = height // 4, width // 4
    tiles = images[:, :, : 4 * rows, : 4 * columns].reshape(n, channels, 4, rows, 4, columns)
    first, second = jnp.triu_indices(n, 1)
    squares = (tiles[first] - tiles[second]) ** 2
    return jnp.sqrt(squares.sum(axis=(1, 3, 5)).max(axis=(1, 2)).min())


@_register(direction=-1, where="latent", cost="directions F", source="Brokman et al. 2025")
def p_laplacian(
    pair: ScorePair,
    z: Array,
    *,
    key: Array | None,
    p: float = 1.0,
    num_directions: int = 128,
    method: str = "flux",
) -> Array:
    r""":math:`\Delta_p \log p_t` of the unconditional score about a finished example ``z``.

    By default the flux through the sphere of radius :math:`\sigma\sqrt d` about
    :math:`\alpha z`, which is where noising ``z`` leads to; ``method="exact"`` at its middle.
    Units sigma^-p.  Smaller (more negative) means memorized.  Needs no prompt.  Cost:
    ``num_directions`` F; exact: F + (d + 1) T.

    Args:
        pair: at a small noise level (t = 10 of 1,000).
        z: the example: an image, or its latent.
        key: draws the directions.
        p: exponent, at least 1.
        num_directions: of the flux.
        method: ``flux`` or ``exact``.

    Brokman et al., SSVM 2025, arXiv:2505.08246.
    """
    options: dict[str, Any] = {}
    if method == "flux":
        options = {
            "radius": pair.sigma * jnp.sqrt(z.size),
            "key": key,
            "num_directions": num_directions,
        }
    centre = pair.alpha * z
    found = curvature.p_laplacian(pair.unconditional, centre, p=p, method=method, **options)
    value: Array = found.value
    return value
