# %% [markdown]
# # Sharpness along a sampling path, learned beside exact
#
# The toy of Jeon, Kim and No (ICML 2025, arXiv:2412.04140): a mixture of two normal distributions
# in the plane, weights 5:95, 3,000 samples. The light component is almost a point and stands for
# memorized data. A small network learns the score by denoising, once with and once without the
# second-order term; the eigenvalues of the Hessian of `log p_t` along sampling paths are compared
# with the exact ones.
#
# The weights and the number of samples are the paper's. Where the components are, their
# covariances, the schedule, the network and how it is fitted are choices of ours.
#
# `python examples/toy_2d.py [--quick] [--output DIR]`

# %%
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from flax import nnx
from jax.tree_util import Partial

import sharpjax as sj
from sharpjax.networks import ScoreMLP
from sharpjax.training.score_matching import fit

matplotlib.use("Agg")
import matplotlib.pyplot as plt

QUICK = "--quick" in sys.argv
OUTPUT = Path(sys.argv[sys.argv.index("--output") + 1] if "--output" in sys.argv else "figures")
STEPS = 100 if QUICK else 4000
NUM_NOISES = 400

mixture = sj.GaussianMixture(
    weights=jnp.array([0.05, 0.95]),
    means=jnp.array([[-1.5, 0.0], [1.0, 0.0]]),
    covariances=jnp.stack([1e-4 * jnp.eye(2), jnp.diag(jnp.array([0.2, 0.6]))]),
)
NAMES = ("small component", "large component")
schedule = sj.Schedule.create("squaredcos_cap_v2")
key_points, key_noises = jax.random.split(jax.random.key(0))
points = mixture.sample(key_points, 3000)

# %% [markdown]
# ## Three fits, from the same weights
#
# The second-order term makes a step dearer, so one fit of the first order alone gets more steps.

# %%
FITS = {  # steps, weight of the second-order term
    "first order": (STEPS, 0.0),
    "first order, longer": (5 * STEPS // 2, 0.0),
    "first and second": (STEPS, 1.0),
}
networks = {}
for name, (steps, weight) in FITS.items():
    start = time.perf_counter()
    untrained = ScoreMLP(2, width=64, depth=3, rngs=nnx.Rngs(0))
    networks[name], losses = fit(
        untrained, points, schedule, steps=steps, second_order_weight=weight
    )
    print(f"{name}: {steps} steps, {time.perf_counter() - start:.0f} s")

# %% [markdown]
# ## Sampling paths
#
# DDIM with 50 steps, from the same noises with the exact score and with the network's.


# %%
@jax.jit
def paths(score_at_level, noises):
    """The states `(noises, 51, 2)` on the way from each noise."""

    def score_at(x, t):
        return score_at_level(x, schedule.alpha(t), schedule.sigma(t))

    return jax.vmap(lambda x: sj.sample(score_at, x, schedule, trajectory=True))(noises)


def exact_score(x, alpha, sigma):
    return mixture.noised(alpha, sigma).score(x)


def network_score(network, x, alpha, sigma):
    return network.score(alpha, sigma)(x)


def ends_in_small(states):
    return np.linalg.norm(states[:, -1] - np.asarray(mixture.means[0]), axis=1) < 0.1


score_of = {"exact": Partial(exact_score)}
for name, network in networks.items():
    score_of[name] = Partial(network_score, network)
noises = jax.random.normal(key_noises, (NUM_NOISES, 2))
path_of = {name: np.asarray(paths(score, noises)) for name, score in score_of.items()}
small = ends_in_small(path_of["exact"])
print(f"\n{small.sum()} of {NUM_NOISES} paths of the exact score end in the small component")
for name in networks:
    also = ends_in_small(path_of[name])
    print(f"{name}: {also.sum()}, {(also & small).sum()} of them from the same noises")

# %% [markdown]
# ## The Hessian at every state of the exact score's paths
#
# `sigma^2 H` has no units. It is -1 in every direction in which the noise leaves nothing open
# (`K = I + sigma^2 H = 0`): at pure noise, and at a point mass at every level.

# %%
timesteps, alphas, sigmas = schedule.levels(50)
count = int(small.sum())
chosen = {NAMES[0]: np.flatnonzero(small), NAMES[1]: np.flatnonzero(~small)[:count]}


@jax.jit
def hessians(score_at_level, states):
    """`sigma^2 H` at states `(paths, steps + 1, 2)`, without the last: `(paths, steps, 2, 2)`."""

    def at(x, alpha, sigma):
        score = Partial(score_at_level, alpha=alpha, sigma=sigma)
        return sigma**2 * sj.curvature.hessian(score, x)

    return jax.vmap(jax.vmap(at), (0, None, None))(states[:, :-1], alphas[:-1], sigmas[:-1])


def eigenvalues(matrices):
    return np.linalg.eigvalsh(0.5 * (matrices + np.swapaxes(matrices, -1, -2)))


curvature = {
    component: {
        name: np.asarray(hessians(score, path_of["exact"][rows]))
        for name, score in score_of.items()
    }
    for component, rows in chosen.items()
}


def error(component, name):
    """Root mean square over the paths of `sigma^2 |H - H_exact|_F`, at each step."""
    difference = curvature[component][name] - curvature[component]["exact"]
    return np.sqrt((difference**2).sum((-1, -2)).mean(0))


# %%
print("\nEigenvalues of sigma^2 H, median over the paths; error of sigma^2 H, Frobenius, rms")
for component in NAMES:
    print(f"\n{component}, {count} paths")
    print("     t  sigma | exact         | first+second  | error: first, longer, first+second")
    for t in (981, 801, 601, 501, 401, 301, 201, 101, 41, 21, 1):
        i = int(np.argmax(timesteps == t))
        cells = []
        for name in ("exact", "first and second"):
            low, high = np.median(eigenvalues(curvature[component][name][:, i]), 0)
            cells.append(f"{low:6.2f} {high:6.2f}")
        errors = "  ".join(f"{error(component, name)[i]:.3f}" for name in networks)
        print(f"  {t:4d}  {sigmas[i]:.3f} | {' | '.join(cells)} | {errors}")
    for name in networks:
        overall = np.sqrt(np.mean(error(component, name)[:-1] ** 2))
        print(f"  error over all steps but the last, {name}: {overall:.3f}")

# %% [markdown]
# ## The picture

# %%
INK, LEARNED, GREY = "#1f3b73", "#c26a1a", "#8a8a8a"
COLOUR = dict(zip(NAMES, ("#b3202a", "#2a7f62"), strict=True))
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "legend.fontsize": 8.5})
figure, axes = plt.subplots(2, 2, figsize=(9.6, 7.8), layout="constrained")
for ax in axes.flat:
    ax.spines[["top", "right"]].set_visible(False)

ax = axes[0, 0]
grid_x, grid_y = np.meshgrid(np.linspace(-3.2, 3.2, 161), np.linspace(-3.0, 3.0, 151))
grid = jnp.asarray(np.stack([grid_x, grid_y], -1).reshape(-1, 2), jnp.float32)
density = jax.vmap(mixture.noised(alphas[-5], sigmas[-5]).log_prob)(grid).reshape(grid_x.shape)
ax.contour(
    grid_x, grid_y, density, levels=[-7, -5, -3, -2, -1], colors="#c9c9c9", linewidths=0.8,
    linestyles="-",
)  # fmt: skip
for component in reversed(NAMES):
    for j, row in enumerate(chosen[component][:8]):
        style = {"color": COLOUR[component], "linewidth": 1.2}
        label = f"ends in the {component}" if j == 0 else None
        ax.plot(*path_of["exact"][row].T, **style, label=label)
        ax.plot(*path_of["first and second"][row].T, **(style | {"color": "k"}), linestyle=":")
        ax.plot(*path_of["exact"][row][0], "o", color=COLOUR[component], markersize=3.5)
ax.plot([], [], ":", color="k", linewidth=1.2, label="the network's path from the same noise")
ax.plot([], [], color="#c9c9c9", label=rf"contours of $\log p_t$ at $\sigma_t = {sigmas[-5]:.2f}$")
ax.set(xlabel="$x_1$", ylabel="$x_2$", title="Sampling paths from noise (dots)", aspect="equal")
ax.set(xlim=(-3.3, 3.3), ylim=(-5.2, 2.6), yticks=[-2, 0, 2])
ax.legend(frameon=False, loc="lower center", fontsize=8, handlelength=1.4)

for ax, component in zip((axes[0, 1], axes[1, 0]), NAMES, strict=True):
    for name, colour, style, label in (
        ("exact", INK, "-", "exact"),
        ("first and second", LEARNED, "--", "learned (first and second order)"),
    ):
        values = eigenvalues(curvature[component][name])
        for k in range(2):
            ax.plot(
                timesteps, np.median(values[..., k], 0), style, color=colour, linewidth=1.8,
                label=f"{label}: median" if k == 0 else None,
            )  # fmt: skip
            if name == "exact":
                low, high = np.quantile(values[..., k], (0.1, 0.9), axis=0)
                ax.fill_between(
                    timesteps, low, high, color=colour, alpha=0.15, linewidth=0,
                    label="exact: 10% to 90% of the paths" if k == 0 else None,
                )  # fmt: skip
    ax.axhline(-1, color=GREY, linewidth=0.8, linestyle=":")
    ax.set(xlabel="timestep t (sampling runs to the right)", xlim=(1000, 0))
    ax.set_ylabel(r"the two eigenvalues of $\sigma^2 H$")
    ax.set_title(f"Paths that end in the {component}", color=COLOUR[component])
    ax.legend(frameon=False)

ax = axes[1, 1]
for component in NAMES:
    for name, style in (("first order", ":"), ("first and second", "-")):
        ax.semilogy(
            timesteps, error(component, name), style, color=COLOUR[component],
            linewidth=1.6, label=f"{component}, {name}",
        )  # fmt: skip
ax.set(xlabel="timestep t (sampling runs to the right)", xlim=(1000, 0))
ax.set_ylabel(r"$\sigma^2\,\|H_{learned} - H\|_F$, root mean square")
ax.set_title("Error of the learned Hessian on these paths")
ax.legend(frameon=False)

OUTPUT.mkdir(parents=True, exist_ok=True)
figure.savefig(OUTPUT / "toy_2d.png", dpi=100, facecolor="white")
print(f"\nwrote {OUTPUT / 'toy_2d.png'}")
