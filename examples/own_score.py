# %% [markdown]
# # A score of your own
#
# A denoiser written in JAX, `(x, t, label) -> noise`, becomes a pair of scores: then every
# estimator and every statistic applies. This one is the exact denoiser of a Gaussian mixture whose
# label 1 is almost a point, so that it is known what is memorized.
#
# `python examples/own_score.py`; prints, and draws nothing.

# %%
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

import sharpjax as sj

schedule, t = sj.Schedule.create(), 401
alpha, sigma = schedule.alpha(t), schedule.sigma(t)
everything = sj.GaussianMixture([0.9, 0.1], [[0.0] * 8, [2.0] * 8], [jnp.eye(8), 1e-4 * jnp.eye(8)])
of_label = [
    sj.Gaussian(m, s) for m, s in zip(everything.means, everything.covariances, strict=True)
]


def denoiser(x, t, label):
    """Your network in its place: what it predicts may be `epsilon`, `v_prediction` or `sample`."""
    density = everything if label is None else of_label[label]
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return -sigma * density.noised(alpha, sigma).score(x)


def score(label):
    def at(x):
        return sj.score_from_prediction(
            denoiser(x, t, label), x, alpha=alpha, sigma=sigma, prediction_type="epsilon"
        )

    return Partial(at)  # a function that crosses `jax.jit`


# %% [markdown]
# Statistics and curvature of each label at one noise.

# %%
x = jax.random.normal(jax.random.key(0), (8,))
for label, name in enumerate(("broad", "point")):
    pair = sj.ScorePair(score(None), score(label), alpha, sigma)
    length = sj.detection.score_difference(pair, x)
    left = sj.curvature.effective_dimension(pair.conditional, x, sigma=sigma, method="exact")
    print(f"{name}: score difference {length:.3f}, effective dimension {left.value:.4f} of 8")
