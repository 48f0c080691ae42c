r"""The rivals of SAIL, each a function of a problem and a strength, as their authors have them.

================== =============================================================================
prompt embedding   descends $\|\epsilon_D\|$ over the encoded prompt, of all images at once
                   (Wen et al., ICLR 2024, arXiv:2407.21720)
noise batch        moves noises against the change of $\epsilon_D$ towards where it grows, as
                   sharpness-aware minimisation does, then samples without guidance for some steps
                   ("batch-wise", Han et al., NeurIPS 2025, arXiv:2510.08625): no gradient
lower guidance     the guidance weight
delayed guidance   no guidance for a fixed share of the steps ("static transition point", Jain et
                   al., CVPR 2025, arXiv:2411.16738)
dynamic guidance   none, or the opposite, until $\|\epsilon_D\|$ has its first local minimum
                   ("dynamic transition point" and "opposite guidance", the same paper)
padding            zeros a share of the encoded padding, that next to the prompt's end (Kim & No,
                   CVPR 2026, arXiv:2605.02908)
cross attention    the text's padding is not attended to, and the logits of its first token are
                   scaled (Ren et al., ECCV 2024, arXiv:2403.11052)
guard              away from the prompt as it is, towards it with the tokens damped that stand out
                   in the attention (Zhao et al., ICML 2026, arXiv:2603.00133)
================== =============================================================================

$\epsilon_D = -\sigma s_D$ is the difference of the noise predictions.  Constants are those of
the public code (github.com/YuxinWenRick/diffusion_memorization,
github.com/hygnhan/init_noise_diffusion_memorization,
github.com/anubhav1997/mitigating_memorization, github.com/renjie3/MemAttn,
github.com/kairanzhao/GUARD); targets of descents, there absolute numbers for
Stable Diffusion, are here multiples of the median over clean prompts, which has a meaning for other
models too.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sharpjax._types import Array
from sharpjax.detection.trajectory import follow
from sharpjax.mesh.loops import over_points
from sharpjax.mitigation.descent import Descent, descend
from sharpjax.mitigation.levels import SCORE_DIFFERENCE
from sharpjax.mitigation.optimizers import adamw
from sharpjax.mitigation.plausibility import plausibility
from sharpjax.mitigation.problem import Problem, Treatment
from sharpjax.mitigation.sharpness import norm
from sharpjax.networks.text_attention import TextAttention

EMBEDDING_STEP, EMBEDDING_STEPS = 0.05, 10
# Han et al.'s for Stable Diffusion, whose latents have 128^2 entries: 50 there. A length in noise
# grows as the square root of the number of entries.
RHO = 50 / 128
GAMMA, ITERATIONS = 0.7, 2
# Zhao et al.'s of "CA-in-GUARD": factor of the logits, and the standardised height from which one
# is damped, which is nearly half of all tokens
SPIKE_SCALE, SPIKE_THRESHOLD = 0.3, 0.1


def untreated(problem: Problem) -> Treatment:
    """What is sampled without mitigation; the others replace parts of it."""
    count = len(problem.noise)
    context = jnp.repeat(problem.context[None], count, axis=0)
    return Treatment(
        context, problem.noise, problem.guidance, np.zeros(count), [{} for _ in range(count)]
    )


def prompt_embedding(problem: Problem, strength: float) -> Treatment:
    """One encoded prompt for all noises, by ten steps of AdamW; its start token has no gradient.

    `strength` is the threshold, of the root of the mean square of `‖s_D‖` over the noises, as
    a multiple of the clean median.
    """
    count = len(problem.noise)
    threshold = strength * problem.usual(SCORE_DIFFERENCE) * np.sqrt(count)
    ended = descend(
        _embedding_loss,
        (problem.model, problem.t, problem.noise),
        problem.context[None],
        threshold=threshold,
        max_steps=problem.budget(EMBEDDING_STEPS),
        optimizer=adamw(EMBEDDING_STEP),
    )
    contexts, evaluations = jnp.repeat(ended.point, count, axis=0), 6.0 * (ended.steps[0] + 1)
    spent, details = np.full(count, evaluations), [ended.figures(0) for _ in range(count)]
    return Treatment(contexts, problem.noise, problem.guidance, spent, details)


def _embedding_loss(fixed: Any, context: Array, start: Array) -> tuple[Array, Array]:
    """The length of the differences at all noises as one vector, `sqrt(sum_i ‖s_D(x_i)‖²)`."""
    model, t, noise = fixed
    context = context.at[0].set(jax.lax.stop_gradient(context[0]))  # the start token's
    value = norm(jax.vmap(model.scores(context, t).difference)(noise))
    return value, value


def moved(problem: Problem, ended: Descent, *, evaluations: float) -> Treatment:
    """Sampling from where a descent of noises ended; `evaluations` are those of one step."""
    details = [ended.figures(i) | noise_figures(x) for i, x in enumerate(np.asarray(ended.point))]
    base = untreated(problem)
    return Treatment(
        base.context, ended.point, problem.guidance, evaluations * (ended.steps + 1.0), details
    )


def noise_figures(x: np.ndarray) -> dict[str, float]:
    """Plausibility, rounded for a record."""
    if not np.isfinite(x).all():
        return {}
    figures = plausibility(x)
    return {
        name: round(getattr(figures, name), 4)
        for name in ("norm", "norm_z", "kurtosis_z", "autocorrelation_z")
    }


def noise_batch(problem: Problem, strength: float) -> Treatment:
    """Two steps against the growth of `ε_D`, then `strength` steps without guidance."""
    rho = RHO * np.sqrt(problem.noise[0].size)
    level = (problem.model, problem.context, problem.t)
    noise = _adjust(level, problem.noise, rho, mesh=problem.mesh)
    base = untreated(problem)
    details = [noise_figures(x) for x in np.asarray(noise)]
    evaluations = np.full(len(noise), 4.0 * ITERATIONS)
    return Treatment(base.context, noise, _delayed(problem, strength), evaluations, details)


@functools.partial(jax.jit, static_argnames="mesh")
def _adjust(level: Any, noise: Array, rho: float, *, mesh: Mesh | None) -> Array:
    def one(common: Any, x: Array) -> Array:
        (model, context, t), rho = common
        pair = model.scores(context, t)  # inside: a pair may hold functions that do not cross jit
        for _ in range(ITERATIONS):
            here = -pair.sigma * pair.difference(x)
            there = -pair.sigma * pair.difference(x + rho * here / norm(here))
            x = x - GAMMA * (there - here)
        return x

    return over_points(jax.vmap(one, (None, 0)), mesh, (level, rho), noise)


def lower_guidance(problem: Problem, strength: float) -> Treatment:
    """Guidance divided by `strength`."""
    return dataclasses.replace(untreated(problem), guidance=problem.guidance / strength)


def delayed_guidance(problem: Problem, strength: float) -> Treatment:
    """The unconditional score for the first `strength` (a fraction) of the steps."""
    return dataclasses.replace(untreated(problem), guidance=_delayed(problem, strength))


def _delayed(problem: Problem, strength: float) -> np.ndarray:
    guidance = np.full(problem.num_steps, float(problem.guidance))
    guidance[: round(strength * problem.num_steps)] = 0.0
    return guidance


def dynamic_guidance(problem: Problem, strength: float) -> Treatment:
    """Guidance `-strength` until `‖ε_D‖` has had its first local minimum, then the usual one.

    Each image has a transition of its own: the first step whose length exceeds the one before,
    which is below that before it.  An image without any, whose transition is None, keeps that
    guidance to its end, as in the public code (whose sampler is another, a multistep one).
    """
    level = (problem.model, problem.context, float(-strength))
    lengths = np.asarray(
        _lengths_along(level, problem.noise, num_steps=problem.num_steps, mesh=problem.mesh)
    )
    steps = np.array([transition(row) for row in lengths])
    before = np.arange(problem.num_steps) < steps[:, None]
    base = untreated(problem)
    return dataclasses.replace(
        base,
        guidance=np.where(before, -strength, problem.guidance),
        # both scores are asked before the transition too, which is found on the way
        evaluations=steps * float(strength == 0),
        details=[{"transition": int(step) if step < problem.num_steps else None} for step in steps],
    )


def transition(lengths: np.ndarray) -> int:
    """The step after the first local minimum; their number if there is none.

    >>> transition(np.array([3.0, 2.0, 1.0, 2.0, 0.0])), transition(np.array([1.0, 2.0, 3.0]))
    (3, 3)
    """
    minima = (lengths[1:-1] < lengths[:-2]) & (lengths[1:-1] < lengths[2:])
    return int(np.argmax(minima)) + 2 if minima.any() else len(lengths)


@functools.partial(jax.jit, static_argnames=("num_steps", "mesh"))
def _lengths_along(level: Any, noise: Array, *, num_steps: int, mesh: Mesh | None) -> Array:
    """`‖ε_D‖` at every step of paths under one guidance, `(n, num_steps)`."""

    def one(level: Any, x: Array) -> Array:
        model, context, guidance = level
        path = follow(model, context, x, num_steps=num_steps, guidance=guidance)
        difference = path.difference.reshape(num_steps, -1)
        return path.sigmas * jnp.linalg.norm(difference, axis=1)

    return over_points(jax.vmap(one, (None, 0)), mesh, level, noise)


def padding(problem: Problem, strength: float) -> Treatment:
    """Of the padding's encodings the share `strength` is zero, from the prompt's end on."""
    taken = problem.vocabulary.num_tokens(problem.prompt)
    base = untreated(problem)
    tokens = base.context.shape[1]
    cut = min(taken, tokens)  # of a longer prompt nothing is padding
    blank = slice(cut, cut + round(strength * (tokens - cut)))
    context = base.context.at[:, blank].set(0.0)
    details = [{"zeroed": blank.stop - blank.start} for _ in problem.noise]
    return dataclasses.replace(base, context=context, details=details)


def cross_attention(problem: Problem, strength: float) -> Treatment:
    """No branch attends to the padding; under the prompt, the first token's logits are scaled.

    In the public code the padding begins after the end-of-text token, and is hidden from the
    unconditional branch too.
    """
    base = untreated(problem)
    n, tokens = base.context.shape[:2]
    place = np.arange(tokens)
    seen = place < problem.vocabulary.num_tokens(problem.prompt)
    scale = np.where(place == 0, strength, 1.0)
    return dataclasses.replace(
        base, attention=TextAttention.create(n, tokens, scale=scale, seen=seen)
    )


def guard(problem: Problem, strength: float) -> Treatment:
    r"""$\epsilon_0 + w(\epsilon_+ - \epsilon_0) - r_k(\epsilon_- - \epsilon_0)$ at step `k` of `n`.

    $\epsilon_-$ is of the prompt as it is, $\epsilon_+$ of the prompt with its spikes damped, and
    $r_k = r \cos(\pi k/2n)$ with `r` the `strength`, as in the public code.  Its option that takes
    from $\epsilon_+ - \epsilon_0$ what is along $\epsilon_- - \epsilon_0$ is off, as in its
    commands: the two are nearly parallel, and what were left would turn the prompt away.
    """
    base = untreated(problem)
    n, tokens = base.context.shape[:2]
    fade = np.cos(np.pi / 2 * np.arange(problem.num_steps) / problem.num_steps)
    how = {"spike_scale": SPIKE_SCALE, "spike_threshold": SPIKE_THRESHOLD}
    return dataclasses.replace(
        base, attention=TextAttention.create(n, tokens, **how), repulsion=strength * fade
    )
