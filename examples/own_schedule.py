# %% [markdown]
# # A schedule of your own
#
# Any `x_t = alpha(t) x_0 + sigma(t) eps`, with the times that sampling visits: here a straight line
# in time, from noise at 1 to the clean example at 0. The score is exact, so that the spread of the
# samples is known: that of the data.
#
# `python examples/own_schedule.py`; prints, and draws nothing.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import sharpjax as sj

schedule = sj.schedules.OwnSchedule(
    alpha_of=lambda t: 1 - t,
    sigma_of=lambda t: t,
    times_of=lambda n: np.linspace(0.999, 0.001, n),
)
spread = np.array([0.2, 1.0, 3.0])
data = sj.Gaussian(jnp.ones(3), jnp.diag(spread**2))


def score_at(x, t):
    return data.noised(schedule.alpha(t), schedule.sigma(t)).score(x)


# %% [markdown]
# The sampler and the curvature need nothing else.

# %%
noise = jax.random.normal(jax.random.key(0), (2_000, 3))
samples = jax.vmap(lambda x: sj.sample(score_at, x, schedule, num_steps=200))(noise)
for known, found in zip(spread, np.asarray(samples).std(axis=0), strict=True):
    print(f"spread of the data {known:.2f}, of the samples {found:.3f}")
t = 0.5
trace = sj.curvature.trace(lambda x: score_at(x, t), jnp.ones(3), method="exact").value
print(f"trace {trace:.4f}, closed form {-sum(1 / (0.25 * spread**2 + 0.25)):.4f}")
