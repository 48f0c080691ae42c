r"""Statistics of memorization: scalars of a pair of scores at a noise.

With $s_D = s_c - s_u$ and $H_D = H_c - H_u$.  A condition with one training image
pulls every noise towards that image, so its score differs much from the unconditional one; and the
landscape around it is as sharp as the noise allows, so nothing of $K_c = I + \sigma^2 H_c$
is left open.

Each function is jittable and returns a scalar; two return what their statistic is made of, which is
combined by `sharpjax.detection.calibration`.  What it is computed from is said by `where`; see
`sharpjax.detection.registry.register`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from sharpjax import curvature
from sharpjax._checks import prng_key
from sharpjax._linalg import safe_norm
from sharpjax._types import Array, Key
from sharpjax.detection.maps import PROBES, hutchinson_diagonal, memorization_map
from sharpjax.detection.registry import STATISTICS as STATISTICS
from sharpjax.detection.registry import Parts, register
from sharpjax.detection.trajectory import Trajectory
from sharpjax.score import LinearizedPair, ScorePair, check_pair


@register(direction=+1, where="first", cost="2F", source="Wen et al. 2024")
def score_difference(
    pair: ScorePair, x: Array, *, linearized: LinearizedPair | None = None
) -> Array:
    r"""$\|s_D(x)\|$, units 1/sigma.  Larger means memorized.  Cost 2F.

    Wen et al., ICLR 2024, "Detecting, explaining, and mitigating memorization in diffusion
    models" (there with noise predictions: multiply by sigma).
    """
    check_pair(pair, "score_difference")
    difference = pair.difference(x) if linearized is None else linearized.difference
    return safe_norm(difference)


@register(
    direction=+1, where="first", cost="2F + 2T", source="Jeon et al. 2025", options=["squared"]
)
def hessian_score_difference(
    pair: ScorePair,
    x: Array,
    *,
    squared: bool = False,
    linearized: LinearizedPair | None = None,
) -> Array:
    r"""$\|H_D(x)\, s_D(x)\|$, units 1/sigma^3.  Larger means memorized.  Cost 2F + 2T.

    Jeon, Kim & No, ICML 2025, "Understanding and mitigating memorization in generative models via
    sharpness of probability landscapes"; squared in the paper, not in its public code.
    """
    check_pair(pair, "hessian_score_difference")
    here = pair.linearize(x) if linearized is None else linearized
    length = safe_norm(here.difference_tangent(here.difference))
    return length**2 if squared else length


@register(
    direction=+1,
    where="first",
    cost="2F + 2T",
    source="Jeon et al. 2025, first version",
    shared="F + T",
)
def hessian_score(pair: ScorePair, x: Array, *, linearized: LinearizedPair | None = None) -> Array:
    r"""$\|H_c s_c - H_u s_u\|$, units 1/sigma^3.  Larger means memorized.  Cost 2F + 2T.

    The first arXiv version of Jeon, Kim & No 2025.
    """
    check_pair(pair, "hessian_score")
    here = pair.linearize(x) if linearized is None else linearized
    conditional = here.conditional_tangent(here.conditional)
    return safe_norm(conditional - here.unconditional_tangent(here.unconditional))


@register(
    direction=-1,
    where="level",
    cost="2F + 2 probes T",
    source="sharpjax",
    options=["num_probes"],
    exact=lambda own, every, sigma: (own - every) / sigma**2,
)
def trace_difference(pair: ScorePair, x: Array, *, key: Key, num_probes: int = 4) -> Array:
    r"""$\operatorname{tr} H_c - \operatorname{tr} H_u$, units 1/sigma^2.

    Smaller (more negative) means memorized: the condition leaves fewer directions open than no
    condition does.  Both traces use the same probes, so that what they share cancels.
    """
    check_pair(pair, "trace_difference")
    ours = effective_dimension(pair, x, key=key, num_probes=num_probes)
    theirs = curvature.effective_dimension(
        pair.unconditional, x, sigma=pair.sigma, key=key, num_matvecs=num_probes
    )
    return (ours - theirs.value) / pair.sigma**2


@register(
    direction=-1,
    where="level",
    cost="F + probes T",
    source="sharpjax",
    options=["num_probes"],
    unconditional=False,
    exact=lambda own, every, sigma: own,
)
def effective_dimension(pair: ScorePair, x: Array, *, key: Key, num_probes: int = 4) -> Array:
    r"""$\operatorname{tr} K_c$, $K = I + \sigma^2 H$; dimensionless.

    Smaller means memorized: 0 for a single image, at every noise level.
    """
    check_pair(pair, "effective_dimension", signal=False)
    estimate = curvature.effective_dimension(
        pair.conditional, x, sigma=pair.sigma, key=key, num_matvecs=num_probes
    )
    return estimate.value


@register(direction=+1, where="end", cost="2F + 32T", source="Kim & Lee 2026")
def curvature_difference(pair: ScorePair, x: Array, *, key: Key, num_probes: int = PROBES) -> Array:
    r"""Mean over pixels of what the condition sharpens: units 1/sigma.

    $$
    \Delta h = \operatorname{mean}_{\text{pixels}}\, \max\Bigl(0,
    -\sum_{\text{channels}} \operatorname{diag} J\Bigr), \qquad J = \sigma H_D .
    $$

    Larger means memorized: as $H = (K - I)/\sigma^2$, a pixel's value is what is left open
    there without the condition less what is left with it, $\sum_{\text{channels}}
    \operatorname{diag}(K_u - K_c) / \sigma$, and nothing where the condition opens more than it
    closes.  $J$ is the Jacobian of $-(\epsilon_c - \epsilon_u)$, which the public code
    takes for the score, so that nothing is divided by a small sigma.

    It is the mean of `sharpjax.detection.memorization_map`, which says how the diagonal is
    estimated, and has its arguments.

    Kim & Lee, ICML 2026, "Localizing memorized regions in diffusion models via coordinate-wise
    curvature differences", arXiv:2605.26756; there a map over pixels, whose mean this is.
    """
    check_pair(pair, "curvature_difference")
    return memorization_map(pair, x, key=key, num_probes=num_probes).mean()


@register(
    direction=+1, where="end", cost="2F + 2 probes T", source="sharpjax", options=["num_probes"]
)
def diagonal_distance(pair: ScorePair, x: Array, *, key: Key, num_probes: int = 4) -> Array:
    r"""$\|\mathrm{diag}(-H_c) - \mathrm{diag}(-H_u)\|_1 / d$, units 1/sigma^2.

    Larger means memorized.  Unlike `curvature_difference` it counts entries that the
    condition opens like those that it closes, each by itself and not a pixel's channels together.
    The diagonal of the difference is Hutchinson's,
    $\frac1k \sum_i v_i \circ H_D v_i$ with signs $v_i$; its noise adds to the absolute
    values, by about $\sqrt{2/\pi}$ standard deviations of an entry where that is 0, and falls
    as $1/\sqrt k$.  Cost 2F + 2 probes T.
    """
    check_pair(pair, "diagonal_distance")
    tangent = pair.linearize(x).difference_tangent
    key = prng_key(key, "The probes are random")
    return jnp.mean(jnp.abs(hutchinson_diagonal(tangent, x, key, num_probes)))


def alignment_terms(first: ScorePair, later: ScorePair, x: Array) -> Array:
    """What both alignments of guidance are made of, `(2,)`: the cosine, and the length of `s_D`."""
    for pair in (first, later):
        check_pair(pair, "the alignment of guidance")
    unconditional, conditional = later.both(x)
    difference = conditional - unconditional
    lengths = safe_norm(difference, axis=0) * safe_norm(unconditional, axis=0)
    # a pixel where either is 0 has no direction: it counts as neither along nor against
    cosine = jnp.sum(difference * unconditional, axis=0) / jnp.where(lengths > 0, lengths, 1)
    return jnp.stack([cosine.mean(), safe_norm(first.difference(x))])


def combined_alignment(
    terms: Array | np.ndarray, mean: Array | np.ndarray, std: Array | np.ndarray
) -> Array:
    """The sum of `standardised_alignment`'s terms, `(..., 2)` to `(...)`.

    Each is standardised by its `mean` and `std`, `(2,)`, over prompts known to be clean; one
    that does not vary over these stays in its own units.
    """
    standardised = (jnp.asarray(terms) - mean) / jnp.where(std > 0, std, 1)
    return standardised @ jnp.ones(2)


@register(
    direction=+1,
    where="noise",
    cost="4F",
    shared="2F",
    source="Asthana & Belagiannis 2026",
    options=["alignment_weights"],
    terms=alignment_terms,
)
def guidance_alignment(
    first: ScorePair,
    later: ScorePair,
    x: Array,
    *,
    alignment_weights: tuple[float, float] = (1.0, 2.0),
    terms: Array | None = None,
) -> Array:
    r"""How strong guidance is, and how it lies to the score: $w_1 \|\epsilon_D\| + w_2 \cos$.

    Dimensionless.  $\|\epsilon_D\| = \sigma \|s_D\|$ at the first level, $\cos$ the
    mean over pixels of the cosine over channels between $s_D$ and $s_u$ at a late one
    (which is that between $\epsilon_D$ and $\epsilon_u$), both at the same pure noise
    `x`: nothing is denoised.  Larger means memorized.  Cost 4F.

    Asthana & Belagiannis, ICLR 2026, "Detecting and mitigating memorization in diffusion models
    through anisotropy of the log-probability", arXiv:2601.20642.  The weights are their public
    code's for Stable Diffusion 1.4; for 2 they are `(1, 0.1)`.  There that code departs from the
    formula: it takes the cosine of the network's *v* predictions, which is that between
    $s_D$ and $s_u + x$, and $\|\epsilon_D\|/\sigma^2$ for the length.

    Args:
        first: the pair at the first timestep of sampling with `alpha > 0`.
        later: at the third-last timestep.
        x: pure noise, `(channels, *space)`.
        alignment_weights: of the length and of the cosine.
        terms: what `alignment_terms` gave, if that is known.
    """
    cosine, length = alignment_terms(first, later, x) if terms is None else terms
    return alignment_weights[0] * first.sigma * length + alignment_weights[1] * cosine


@register(
    direction=+1,
    where="noise",
    cost="4F",
    shared="2F",
    source="sharpjax",
    terms=alignment_terms,
    parts=Parts("alignment", combined_alignment),
)
def standardised_alignment(
    first: ScorePair, later: ScorePair, x: Array, *, terms: Array | None = None
) -> Array:
    r"""The two terms of `guidance_alignment`, `(2,)`: the cosine, and $\|s_D\|$.

    The statistic is their sum after each is standardised on prompts known to be clean
    (`combined_alignment`), in place of weights that fit one model.  Larger means memorized.
    Cost 4F.
    """
    return alignment_terms(first, later, x) if terms is None else terms


@register(direction=+1, where="path", cost="0", source="Wen et al. 2024")
def path_score_difference(path: Trajectory, *, num_steps: int | None = None) -> Array:
    r"""Mean over steps of $\sigma_t \|s_D\|$, the length of the noises' difference.

    Dimensionless.  Larger means memorized.  `num_steps` takes only the first steps.  Cost 0
    beyond sampling.

    Wen et al., ICLR 2024.
    """
    difference = path.difference.reshape(len(path.sigmas), -1)
    return jnp.mean((path.sigmas * safe_norm(difference, axis=1))[:num_steps])


@register(direction=+1, where="path", cost="0", source="Kim & Lee 2026")
def last_step_difference(path: Trajectory) -> Array:
    r"""Mean over entries of $(s_c - s_u)^2$ at the last step, units 1/sigma^2.

    Larger means memorized.  Cost 0 beyond sampling.

    The proxy of `curvature_difference` (Kim & Lee, ICML 2026, arXiv:2605.26756; there summed
    over channels, which is so many times as much).
    """
    return jnp.mean(path.difference[-1] ** 2)


def largest_step(
    displacements: Array | np.ndarray, *, mean: Array | np.ndarray, std: Array | np.ndarray
) -> Array:
    """The z-score of the longest step, `(..., num_steps)` to `(...)`.

    A step that is of one length for all clean prompts is measured in its own units.
    """
    return jnp.max((displacements - mean) / jnp.where(std > 0, std, 1), axis=-1)


@register(
    direction=+1,
    where="path",
    cost="0",
    source="Broken memories, 2026",
    parts=Parts("displacement", largest_step, over_noises=True),
)
def step_displacement(path: Trajectory) -> Array:
    r"""The length of every step, $\|z_t - z_{t+1}\|$, `(num_steps,)`, whose largest z-score counts.

    That is by the mean and standard deviation of each over prompts known to be clean
    (`largest_step`); dimensionless.  Larger means memorized.  Cost 0 beyond sampling.

    "Broken memories" 2026.
    """
    return path.displacements


@register(direction=-1, where="images", cost="0", source="Carlini et al. 2023", least_noises=2)
def tiled_l2(images: Array) -> Array:
    """Smallest distance of two of the images, the distance being that of their worst tile.

    `(n, channels, height, width)` with `n >= 2`; each is cut into 4 x 4 tiles, and two images
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


@register(
    direction=-1,
    where="latent",
    cost="directions F",
    source="Brokman et al. 2025",
    options=["num_directions"],
)
def p_laplacian(
    pair: ScorePair,
    z: Array,
    *,
    key: Key | None,
    p: float = 1.0,
    num_directions: int = 128,
    method: str = "flux",
) -> Array:
    r"""$\Delta_p \log p_t$ of the unconditional score about a finished example `z`.

    By default the flux through the sphere of radius $\sigma\sqrt d$ about
    $\alpha z$, which is where noising `z` leads to; `method="exact"` at its middle.
    Units sigma^-p.  Smaller (more negative) means memorized.  Needs no prompt.  Cost:
    `num_directions` F; exact: F + (d + 1) T.

    Args:
        pair: at a small noise level (t = 10 of 1,000).
        z: the example: an image, or its latent.
        key: draws the directions.
        p: exponent, at least 1.
        num_directions: of the flux.
        method: `flux` or `exact`.

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
    return found.value


from sharpjax.detection import gap as gap  # noqa: E402  registered after those above
