# %% [markdown]
# # A network that lives in PyTorch
#
# `sj.from_torch` makes a score of a PyTorch module: values, tangents and transposes go back and
# forth, so that every estimator works, slower than a port does. Here a small random denoiser, whose
# Jacobian PyTorch computes too.
#
# `python examples/own_pytorch.py`; prints, and draws nothing. It needs `pip install torch`.

# %%
import jax
import numpy as np
import torch

import sharpjax as sj

torch.manual_seed(0)
sigma = 0.8
network = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.SiLU(), torch.nn.Linear(64, 16))
network.eval().requires_grad_(False)
score = sj.from_torch(lambda x: -network(x) / sigma)  # a batch (n, 16); it predicts the noise

# %% [markdown]
# Curvature at one point, beside PyTorch's Jacobian there.

# %%
x = np.random.default_rng(0).standard_normal(16).astype(np.float32)
theirs = torch.autograd.functional.jacobian(lambda x: -network(x) / sigma, torch.tensor(x))
trace = sj.curvature.trace(score, x, key=0, num_matvecs=64)
print(f"trace {trace}, by PyTorch {float(theirs.trace()):.4f}")
exact = sj.curvature.trace(score, x, method="exact").value
norm = sj.curvature.frobenius_norm(score, x, method="exact").value
print(f"exact {exact:.4f} and {float(theirs.trace()):.4f}")
print(f"norm {norm:.4f} and {float(theirs.norm()):.4f}")
many = jax.vmap(lambda x: sj.curvature.trace(score, x, method="exact").value)(np.stack([x, -x]))
print(f"of two points: {many[0]:.4f}, {many[1]:.4f}")
