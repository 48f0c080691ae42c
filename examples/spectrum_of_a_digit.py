# %% [markdown]
# # The spectrum of a digit: one training image against 256
#
# The bundled model of digits knows "5 x1b" from a single image, which it copies, and "5 x256" from
# 256, of which it copies none. At a training image of each, noised to t = 701, all 784 eigenvalues
# of `sigma^2 H` are computed: the network's, and those of the exact score (that of the noised
# training set itself). Then what can be had without all tangents: both ends by Lanczos, each with
# its residual, and the spectral density by stochastic quadrature, with its band.
#
# An eigenvalue of -1 is a direction in which the noise leaves nothing open, 0 one in which the
# density is flat, and a positive one a valley between images. Of a single image all are -1, at
# every point and level.
#
# `python examples/spectrum_of_a_digit.py [--quick] [--output DIR]`

# %%
import argparse
from pathlib import Path

import jax
import matplotlib
import numpy as np

import sharpjax as sj
from sharpjax import zoo

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description="All eigenvalues at one noise level of two digits.")
parser.add_argument("--quick", action="store_true", help="few probes, to see that it runs")
parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the figure")
options, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own
NUM_PROBES, NUM_MATVECS = (3, 8) if options.quick else (8, 24)
CONDITIONS = {"5 x1b": "memorized, one image", "5 x256": "general, 256 images"}
T = 701

model = sj.load("mnist")
training_set = sj.detection.TrainingSet.load(zoo.find("mnist"))
alpha, sigma = float(model.schedule.alpha(T)), float(model.schedule.sigma(T))
key_noise, key_start, key_probes = jax.random.split(jax.random.key(0), 3)
noise = jax.random.normal(key_noise, model.shape)
print(f"t = {T}, alpha = {alpha:.3f}, sigma = {sigma:.3f}, {noise.size} dimensions")

# %% [markdown]
# ## All eigenvalues, the network's and the exact score's
#
# Both at the same point, the condition's first training image under the same noise. The network's
# Jacobian is not symmetric, as it is no gradient; `eigenvalues` are those of its symmetric part.

# %%
found = {}
for name in CONDITIONS:
    label = model.conditions.index(name)
    x = alpha * training_set.of(label)[0] + sigma * noise
    score = model.scores(name, T).conditional
    _, perfect = training_set.densities(label, alpha=alpha, sigma=sigma)
    found[name] = {
        "x": x,
        "score": score,
        "network": sigma**2 * np.asarray(sj.curvature.eigenvalues(score, x)),
        "exact score": sigma**2 * np.linalg.eigvalsh(np.asarray(perfect.hessian(x), float)),
    }
    print(f"\n{name} ({CONDITIONS[name]})")
    for who in ("network", "exact score"):
        values = found[name][who]
        print(
            f"  {who:11s} from {values.min():.4f} to {values.max():.4f}, "
            f"{np.sum(np.abs(values + 1) > 0.05)} further than 0.05 from -1, "
            f"{np.sum(values > 0.05)} above 0.05, tr K = {np.sum(1 + values).round(2) + 0.0:.2f}"
        )

# %% [markdown]
# ## The ends by Lanczos
#
# An eigenvalue lies within the residual of each Ritz value, which needs no knowledge of the others.

# %%
print(f"\nends by Lanczos, {NUM_MATVECS} products: value, residual, and the exact end")
for name, own in found.items():
    ritz = sj.curvature.lanczos(own["score"], own["x"], num_matvecs=NUM_MATVECS, key=key_start)
    last = int(ritz.num_valid) - 1
    own["ends"] = [
        (sigma**2 * float(ritz.values[i]), sigma**2 * float(ritz.residuals[i])) for i in (0, last)
    ]
    for end, (value, residual), exact in zip(
        ("smallest", "largest"), own["ends"], own["network"][[0, -1]], strict=True
    ):
        print(f"  {name:6s} {end:8s} {value:.4f} to {residual:.0e}, exact {exact:.4f}")

# %% [markdown]
# ## The spectral density, and its band
#
# How many eigenvalues lie below each value: the mean over random probes, with a 95% t-band. It is
# of the spectrum smoothed by a normal kernel, so the exact eigenvalues are smoothed alike before
# they are compared. The cost is that of the products, whatever the dimension: here half of what all
# eigenvalues took.

# %%
print(f"\ndensity by {NUM_PROBES} probes of {NUM_MATVECS} products each")
for name, own in found.items():
    result = sj.curvature.spectral_density(
        own["score"], own["x"], key=key_probes, num_probes=NUM_PROBES, num_matvecs=NUM_MATVECS
    )
    grid, width = sigma**2 * np.asarray(result.grid), sigma**2 * float(result.bandwidth)
    scaled = (grid[:, None] - own["network"]) / width
    smoothed = np.exp(-0.5 * scaled**2).sum(1) / (width * np.sqrt(2 * np.pi))
    low, high = (np.asarray(end) / sigma**2 for end in result.density.interval(0.95))
    own["density"] = grid, smoothed, low, high
    area = float(np.trapezoid(np.asarray(result.density.value) / sigma**2, grid))
    print(
        f"  {name:6s} kernel {width:.4f}, integral {area:.1f}; the band holds the smoothed exact "
        f"density at {np.mean((low <= smoothed) & (smoothed <= high)):.0%} of {len(grid)} points"
    )

# %% [markdown]
# ## The picture

# %%
INK, EXACT = "#1f3b73", "#c26a1a"
figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), sharey="row", layout="constrained")
for column, (name, own) in enumerate(found.items()):
    top, bottom = axes[:, column]
    rank = np.arange(noise.size, 0, -1)
    top.plot(rank, own["network"], color=INK, label="network")
    top.plot(rank, own["exact score"], "--", color=EXACT, label="exact score")
    for place, (value, residual) in zip((noise.size, 1), own["ends"], strict=True):
        top.errorbar(place, value, residual, fmt="o", color="k", markersize=4, capsize=3,
                     label="Lanczos, and its residual" if place == 1 else None)  # fmt: skip
    top.set(xscale="log", title=f"{name}: {CONDITIONS[name]}")
    top.set_xlabel("rank of the eigenvalue, largest first")
    grid, smoothed, low, high = own["density"]
    bottom.fill_between(grid, np.maximum(low, 1e-9), np.maximum(high, 1e-9), color=INK, alpha=0.3,
                        linewidth=0, label=f"{NUM_PROBES} probes, 95% band")  # fmt: skip
    bottom.plot(grid, smoothed, color=INK, linewidth=1.2, label="all eigenvalues, smoothed")
    bottom.set(yscale="log", ylim=(0.1, 2e6), xlabel=r"eigenvalue of $\sigma^2 H$")
axes[0, 0].set_ylabel(r"eigenvalue of $\sigma^2 H$")
axes[1, 0].set_ylabel("eigenvalues per unit")
for ax in axes.flat:
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8.5, loc="upper right")
options.output.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output / "spectrum_of_a_digit.png", dpi=100, facecolor="white")
print(f"\nwrote {options.output / 'spectrum_of_a_digit.png'}")
