r"""The rivals of SAIL, each a function of a problem and a strength.

================== =============================================================================
random tokens      and words between those of the prompt (Somepalli et al. 2023, arXiv:2305.20086)
prompt embedding   descends :math:`\|s_D\|` over the encoded prompt (Wen et al., ICLR 2024)
noise gradient     descends :math:`\|s_D\|` over each initial noise ("per-sample", Han et al.,
                   NeurIPS 2025, arXiv:2510.08625)
noise batch        moves noises against the change of :math:`\epsilon_D = -\sigma s_D` towards where
                   it grows, as sharpness-aware minimisation does, then samples without guidance for
                   some steps ("batch-wise", the same paper): no gradient
lower guidance     the guidance weight
delayed guidance   no guidance for the first steps (Jain et al. 2024, arXiv:2411.16738)
gradient, delayed  the noise gradient, then delayed guidance: ours, of the two above
best of n          of n noises the one with the smallest :math:`\|H_D s_D\|`: ours, no gradient
================== =============================================================================
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sharpjax._types import Array
from sharpjax.curvature.loops import over_points
from sharpjax.detection.statistics import hessian_score_difference
from sharpjax.mitigation.calibration import SCORE_DIFFERENCE
from sharpjax.mitigation.descent import Descent, descend
from sharpjax.mitigation.perturbation import add_random
from sharpjax.mitigation.plausibility import plausibility
from sharpjax.mitigation.problem import Problem, Treatment
from sharpjax.mitigation.sharpness import norm
from sharpjax.score import ScorePair

# Han et al.'s for Stable Diffusion, whose latents have 128^2 entries: 50 there. A length in noise
# grows as the square root of the number of entries.
RHO = 50 / 128
GAMMA, ITERATIONS = 0.7, 2


def untreated(problem: Problem) -> Treatment:
    """What is sampled without mitigation; the others replace parts of it."""
    count = len(problem.noise)
    context = jnp.repeat(problem.context[None], count, axis=0)
    return Treatment(
        context, problem.noise, problem.guidance, np.zeros(count), [{} for _ in range(count)]
    )


def random_tokens(problem: Problem, strength: float) -> Treatment:
    """``strength`` random tokens between the prompt's words, others for each image."""
    return _reworded(problem, strength, "tokens")


def random_words(problem: Problem, strength: float) -> Treatment:
    """``strength`` random words between the prompt's, others for each image."""
    return _reworded(problem, strength, "words")


def _reworded(problem: Problem, strength: float, what: str) -> Treatment:
    rng, vocabulary = problem.rng, problem.vocabulary
    prompts = [
        add_random(problem.prompt, int(strength), rng, vocabulary, what=what) for _ in problem.noise
    ]
    context = jnp.concatenate([problem.model.encode([prompt]) for prompt in prompts])
    details = [{"prompt_used": prompt} for prompt in prompts]
    return Treatment(context, problem.noise, problem.guidance, np.zeros(len(prompts)), details)


def prompt_embedding(problem: Problem, strength: float) -> Treatment:
    """One encoded prompt for all noises, whose mean ``‖s_D‖`` over them is what clean prompts have.

    ``strength`` is the threshold as a multiple of the clean median.
    """
    ended = descend(
        _embedding_loss, (problem.model, problem.t, problem.noise), problem.context[None],
        threshold=strength * problem.levels.threshold(SCORE_DIFFERENCE, 0.5).value,
        max_steps=problem.max_steps,
    )  # fmt: skip
    count = len(problem.noise)
    details = {
        "before": float(ended.before[0]), "after": float(ended.after[0]),
        "steps": int(ended.steps[0]), "outcome": str(ended.outcome[0]),
    }  # fmt: skip
    return Treatment(
        jnp.repeat(ended.point, count, axis=0), problem.noise, problem.guidance,
        np.full(count, 6.0 * (ended.steps[0] + 1)), [dict(details) for _ in range(count)],
    )  # fmt: skip


def _embedding_loss(fixed: Any, context: Array, start: Array) -> tuple[Array, Array]:
    model, t, noise = fixed
    pair = model.scores(context, t)
    value = jnp.mean(jax.vmap(lambda x: norm(pair.difference(x)))(noise))
    return value, value


def noise_gradient(problem: Problem, strength: float) -> Treatment:
    """Each noise descends ``‖s_D‖`` to ``strength`` times the clean median."""
    ended = descend(
        _difference_loss, problem.pair, problem.noise,
        threshold=strength * problem.levels.threshold(SCORE_DIFFERENCE, 0.5).value,
        max_steps=problem.max_steps, mesh=problem.mesh,
    )  # fmt: skip
    return moved(problem, ended, evaluations=6)


def _difference_loss(pair: ScorePair, x: Array, start: Array) -> tuple[Array, Array]:
    value = norm(pair.difference(x))
    return value, value


def moved(problem: Problem, ended: Descent, *, evaluations: float) -> Treatment:
    """Sampling from where a descent of noises ended; ``evaluations`` are those of one step."""
    details = [
        {
            "before": float(ended.before[i]), "after": float(ended.after[i]),
            "steps": int(ended.steps[i]), "outcome": str(ended.outcome[i]),
            **noise_figures(x),
        }
        for i, x in enumerate(np.asarray(ended.point))
    ]  # fmt: skip
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
    """Two steps against the growth of ``ε_D``, then ``strength`` steps without guidance."""
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

    adjusted: Array = over_points(jax.vmap(one, (None, 0)), mesh, (level, rho), noise)
    return adjusted


def lower_guidance(problem: Problem, strength: float) -> Treatment:
    """Guidance divided by ``strength``."""
    return dataclasses.replace(untreated(problem), guidance=problem.guidance / strength)


def delayed_guidance(problem: Problem, strength: float) -> Treatment:
    """The unconditional score for the first ``strength`` (a fraction) of the steps."""
    return dataclasses.replace(untreated(problem), guidance=_delayed(problem, strength))


def noise_gradient_delayed(problem: Problem, strength: float) -> Treatment:
    """Noises by :func:`noise_gradient` at 0.7, then no guidance for ``strength`` of the steps."""
    treatment = noise_gradient(problem, 0.7)
    return dataclasses.replace(treatment, guidance=_delayed(problem, strength))


def _delayed(problem: Problem, strength: float) -> np.ndarray:
    guidance = np.full(problem.num_steps, float(problem.guidance))
    guidance[: round(strength * problem.num_steps)] = 0.0
    return guidance


def best_of(problem: Problem, strength: float) -> Treatment:
    """Of ``strength`` noises, the given one among them, the one with the smallest ``‖H_D s_D‖``."""
    count = int(strength)
    level = (problem.model, problem.context, problem.t)
    chosen, details = [], []
    for i, x in enumerate(problem.noise):
        key = jax.random.fold_in(problem.key, i)
        fresh = jax.random.normal(key, (count - 1, *x.shape), x.dtype)
        candidates = jnp.concatenate([x[None], fresh])
        values = np.concatenate(
            [
                np.asarray(_statistic(level, part, mesh=problem.mesh))
                for part in _chunks(candidates)
            ]
        )[:count]  # fmt: skip
        values = np.where(np.isfinite(values), values, np.inf)
        best = int(values.argmin())
        chosen.append(candidates[best])
        details.append({"before": float(values[0]), "after": float(values[best])})
    base = untreated(problem)
    evaluations = np.full(len(chosen), 4.0 * count)
    return Treatment(base.context, jnp.stack(chosen), problem.guidance, evaluations, details)


_CHUNK = 8


def _chunks(points: Array) -> list[Array]:
    """Batches of one size, the last filled up: one compilation."""
    missing = -len(points) % _CHUNK
    filled = jnp.concatenate([points, jnp.repeat(points[-1:], missing, axis=0)])
    return list(filled.reshape(-1, _CHUNK, *points.shape[1:]))


@functools.partial(jax.jit, static_argnames="mesh")
def _statistic(level: Any, points: Array, *, mesh: Mesh | None) -> Array:
    def one(level: Any, x: Array) -> Array:
        model, context, t = level
        return hessian_score_difference(model.scores(context, t), x)

    values: Array = over_points(jax.vmap(one, (None, 0)), mesh, level, points)
    return values
