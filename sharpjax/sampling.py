r"""Sampling as one `lax.scan` over the levels of a schedule.

With the denoised estimate $\hat x_0 = (x + \sigma_t^2 s)/\alpha_t$ and
$\hat\epsilon = -\sigma_t s$, the step from level `t` to `t'` is

$$
x' = \alpha_{t'} \hat x_0 + \sqrt{\sigma_{t'}^2 - \tau^2}\,\hat\epsilon + \tau z,
\qquad \tau = \eta\,\frac{\sigma_{t'}}{\sigma_t}
\sqrt{\sigma_t^2 - \frac{\alpha_t^2}{\alpha_{t'}^2} \sigma_{t'}^2},
\quad z \sim N(0, I),
$$

(where `alpha^2 + sigma^2 = 1` the root is that of $1 - \alpha_t^2/\alpha_{t'}^2$),
DDIM for `eta = 0` and ancestral sampling for `eta = 1` (Song, Meng & Ermon 2021,
arXiv:2010.02502, equations 12 and 16).  A schedule with a `clip_sample_range` has
$\hat x_0$, and only that, clipped to it.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._checks import check_finite, one_array, prng_key
from sharpjax._types import Array, Key
from sharpjax.schedules.base import NoiseSchedule, check_schedule
from sharpjax.score import clean_and_noise


def sample(
    predict_at: Callable[[Array, Array], Any],
    x_T: Array,
    schedule: NoiseSchedule,
    *,
    num_steps: int = 50,
    timesteps: np.ndarray | None = None,
    part: tuple[int, int] | None = None,
    eta: float = 0.0,
    key: Key | None = None,
    trajectory: bool = False,
    prediction_type: str = "score",
    has_aux: bool = False,
) -> Any:
    """Follow the scores from noise `x_T` to an example.

    Args:
        predict_at: `(x, t) -> s` for one example or a batch, whatever the shape of `x_T`; `t`
            is a traced integer.
        x_T: noise at the first level.
        schedule: gives the sub-grid and its levels.
        num_steps: network evaluations, from pure noise to a clean example.
        timesteps: visit these instead, first to last, and return the state at the last one.
        part: take only the steps from the first of these numbers to before the second: `x_T` is the
            state before the one, and what is returned that before the other.
        eta: 0 is DDIM, 1 ancestral.
        key: needed when `eta > 0`.
        trajectory: also return the state at every step.
        prediction_type: what `predict_at` gives: the `score`, or `epsilon`, `v_prediction`,
            `sample` or `flow_prediction` as a network does; the last three can start from pure
            noise, `alpha = 0`.
        has_aux: `predict_at` gives a pair, of which the second is only kept.

    Returns:
        The example, shaped as `x_T`; with `trajectory=True` all states, noise first. With
        `has_aux=True` a pair of that and what was kept, stacked over the steps. Outside `jit` one
        that is not finite comes with a warning.

    Raises:
        ValueError: `eta` outside `[0, 1]`, `eta > 0` without a key, no such part, a start at
            `alpha = 0` from where scores do not lead on, no schedule, noise that is not finite or
            of whole numbers, or a prediction of another shape.
    """
    check_schedule(schedule)
    x_T = one_array("x_T", x_T)
    if not jnp.issubdtype(x_T.dtype, jnp.floating):
        raise ValueError(f"x_T must be real noise, got dtype {x_T.dtype}")
    check_finite("x_T", x_T)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    if eta > 0 and key is None:
        raise ValueError("eta > 0 draws noise: pass key=jax.random.key(seed)")
    if timesteps is None:
        grid, alphas, sigmas = schedule.levels(num_steps)
    else:
        grid, alphas, sigmas = timesteps[:-1], schedule.alpha(timesteps), schedule.sigma(timesteps)
    steps = slice(0, len(grid)) if part is None else slice(*part)
    if not 0 <= steps.start <= steps.stop <= len(grid):
        raise ValueError(f"part must be two steps from 0 to {len(grid)}, ascending, got {part}")
    known = () if isinstance(grid, jax.core.Tracer) else grid[steps]
    silent = [t for t in known if schedule.is_pure_noise(t)]
    if silent and prediction_type in ("score", "epsilon"):
        raise ValueError(
            f"sampling by {prediction_type} cannot start at t={silent[0]}: alpha = 0 there, where "
            "it says nothing about the clean image; use leading spacing"
        )
    fresh_of = prng_key(0 if key is None else key, "eta > 0 draws noise")
    keys = jax.random.split(fresh_of, len(grid))[steps]

    def step(x: Array, level: tuple[Array, ...]) -> tuple[Array, tuple[Array | None, Any]]:
        t, alpha, sigma, next_alpha, next_sigma, key = level
        prediction, aux = predict_at(x, t) if has_aux else (predict_at(x, t), None)
        x0, eps = clean_and_noise(
            prediction, x, alpha=alpha, sigma=sigma, prediction_type=prediction_type
        )
        if (most := schedule.clip_sample_range) is not None:
            x0 = jnp.clip(x0, -most, most)
        fresh: Any = 0.0
        if eta > 0:
            ratio = jnp.maximum(sigma**2 - (alpha / next_alpha * next_sigma) ** 2, 0)
            fresh = eta * next_sigma / sigma * jnp.sqrt(ratio)
        kept = jnp.sqrt(jnp.maximum(next_sigma**2 - fresh**2, 0))
        x = next_alpha * x0 + kept * eps
        if eta > 0:
            x = x + fresh * jax.random.normal(key, x.shape, x.dtype)
        return x, (x if trajectory else None, aux)

    after = slice(steps.start + 1, steps.stop + 1)
    levels = (
        jnp.asarray(grid)[steps], alphas[steps], sigmas[steps], alphas[after], sigmas[after], keys,
    )  # fmt: skip
    x, (states, aux) = jax.lax.scan(step, x_T, levels)
    if not isinstance(x, jax.core.Tracer) and not np.isfinite(np.asarray(x)).all():
        told = "the example is not finite: on its way predict_at gave NaN or infinity"
        warnings.warn(f"{told}; trajectory=True shows where", stacklevel=2)
    result = x if states is None else jnp.concatenate([x_T[None], states])
    return (result, aux) if has_aux else result
