# %% [markdown]
# # Curvature from a score alone
#
# A score is a function of one point. Everything in `sharpjax.curvature` takes `(score, x)` and
# knows nothing else; here the truth is known in closed form.
#
# `python examples/gaussian_curvature.py`; prints, and draws nothing.

# %%
import jax
import jax.numpy as jnp

import sharpjax as sj

alpha, sigma = 0.6, 0.8
key = jax.random.key(0)
rotation, _ = jnp.linalg.qr(jax.random.normal(key, (16, 16)))
broad = rotation @ jnp.diag(jnp.linspace(0.05, 2.0, 16)) @ rotation.T
mixture = sj.GaussianMixture(
    weights=jnp.array([0.5, 0.5]),
    means=jnp.array([[-0.4] * 16, [0.4] * 16]),
    covariances=jnp.stack([0.5 * (broad + broad.T), 0.3 * jnp.eye(16)]),
)
noised = mixture.noised(alpha, sigma)
x = jnp.full(16, -0.1)

# %% [markdown]
# The Hessian of the log-density three ways: closed form, derivative of the score, eigenvalues.

# %%
exact = noised.hessian(x)
from_score = sj.curvature.hessian(noised.score, x)
print("largest difference:", float(jnp.abs(exact - from_score).max()))
print("eigenvalues of sigma^2 H:", (sigma**2 * sj.curvature.eigenvalues(noised.score, x)).round(2))

# %% [markdown]
# The trace by random probes, with its standard error, beside the truth. `K = I + sigma^2 H` is
# what the noise leaves open: 0 for a single memorized point, up to 16 here.

# %%
estimate = sj.curvature.trace(noised.score, x, sigma=sigma, key=key, num_matvecs=64)
low, high = estimate.interval(0.95)
print(f"tr H = {float(jnp.trace(exact)):.3f}; estimate {estimate}, 95% in [{low:.3f}, {high:.3f}]")
print("effective dimension:", sj.curvature.effective_dimension(
    noised.score, x, sigma=sigma, method="exact").value)  # fmt: skip
