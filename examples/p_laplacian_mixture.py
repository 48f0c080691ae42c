# %% [markdown]
# # The 1-Laplacian of a mixture: peaks, passes, and three errors beside their bounds
#
# The setting of Brokman et al. (SSVM 2025, arXiv:2505.08246): three modes on a triangle of side 5,
# covariance 0.1 I, flux through a circle of radius R = 1, p = 1, 64 directions, 200 repeats; the
# exact score and a learned one. The 1-Laplacian is negative at peaks (a memorized point is one)
# and positive between them.
#
# How the score is learned (a `ScoreMLP`, its schedule, 4,000 points) and the noise levels at which
# it is used are choices of ours, as are the bounds (`sharpjax.curvature.plaplacian_bounds`).
#
# `python examples/p_laplacian_mixture.py [--quick] [--output DIR]`

# %%
import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from flax import nnx

import sharpjax as sj
from sharpjax.curvature import (
    p_laplacian,
    radius_bias_bound,
    sampling_bound,
    score_error_bound,
)
from sharpjax.networks import ScoreMLP
from sharpjax.training.score_matching import fit

matplotlib.use("Agg")
import matplotlib.pyplot as plt

QUICK = "--quick" in sys.argv
OUTPUT = Path(sys.argv[sys.argv.index("--output") + 1] if "--output" in sys.argv else "figures")
STEPS = 100 if QUICK else 4000
REPEATS = 20 if QUICK else 200
DIRECTIONS, RADIUS, DIM = 64, 1.0, 2
LEVEL = 61  # timestep of the maps and repeats
LEVELS = (21, 61, 101, 201, 301, 401, 501, 601)

angles = np.pi / 2 + np.array([0, 2, 4]) * np.pi / 3
modes = 5 / np.sqrt(3) * np.stack([np.cos(angles), np.sin(angles)], 1)
parameters = (np.full(3, 1 / 3), modes, np.stack([0.1 * np.eye(2)] * 3))
mixture = sj.GaussianMixture(*parameters)
GROUPS = {  # rows of PLACES
    "peaks": slice(0, 3),
    "passes": slice(3, 6),
    "centre": slice(6, 7),
}
PLACES = np.concatenate([modes, 0.5 * (modes + np.roll(modes, -1, 0)), np.zeros((1, 2))])

schedule = sj.Schedule.create("squaredcos_cap_v2")
points = mixture.sample(jax.random.key(0), 4000)
start = time.perf_counter()
network, _ = fit(ScoreMLP(2, width=64, depth=3, rngs=nnx.Rngs(0)), points, schedule, steps=STEPS)
print(f"fit: {STEPS} steps, {time.perf_counter() - start:.0f} s")


def scores(t):
    """The exact and the learned score at a timestep: of the mixture, noised."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return {"exact": mixture.noised(alpha, sigma).score, "learned": network.score(alpha, sigma)}


def places(t):
    """The three peaks, the three passes half-way between them and the centre, `(7, 2)`."""
    return schedule.alpha(t) * jnp.asarray(PLACES, jnp.float32)


# %% [markdown]
# ## 200 repeats with 64 directions each


# %%
@functools.partial(jax.jit, static_argnames=("num_directions",))
def estimates(score, places, key, num_directions):
    """`p_laplacian` at each place, `(repeats, places)`."""

    def one(key, x):
        options = {"p": 1.0, "method": "flux", "radius": RADIUS, "num_directions": num_directions}
        return p_laplacian(score, x, key=key, batch_size=num_directions, **options).value

    keys = jax.random.split(key, REPEATS * len(places)).reshape(REPEATS, len(places))
    return jax.vmap(jax.vmap(one), (0, None))(keys, places)


repeats = {
    name: np.asarray(estimates(score, places(LEVEL), jax.random.key(1), DIRECTIONS))
    for name, score in scores(LEVEL).items()
}
sigma = float(schedule.sigma(LEVEL))
print(
    f"\nflux at sigma = {sigma:.3f}, R = {RADIUS:g}: {REPEATS} repeats of {DIRECTIONS} directions"
)
for group, rows in GROUPS.items():
    for name in repeats:
        values = repeats[name][:, rows]
        within = np.sqrt(values.var(0, ddof=1).mean())  # of the repeats at one place
        print(
            f"  {group:7s} {name:8s} mean {values.mean():6.3f}, sd {within:.3f}, "
            f"from {values.min():6.3f} to {values.max():6.3f}"
        )

# %% [markdown]
# ## Without sampling error
#
# In the plane the sphere is a circle, and equally spaced directions integrate over it.

# %%
NUM_ANGLES = 720 if QUICK else 7200
theta = 2 * np.pi * np.arange(NUM_ANGLES) / NUM_ANGLES
circle = np.stack([np.cos(theta), np.sin(theta)], 1)


def flux(s, n, radius):
    """`(d/R) mean s/|s| . n` over directions n; s and n `(..., directions, 2)`."""
    norm = jnp.linalg.norm(s, axis=-1)
    return DIM / radius * jnp.mean(jnp.sum(s * n, -1) / jnp.where(norm == 0, 1.0, norm), -1)


@jax.jit
def on_circle(score, x, radius):
    """The score at `x + R n` for all n, and its flux."""
    n = jnp.asarray(circle, x.dtype)
    s = jax.vmap(score)(x + radius * n)
    return s, flux(s, n, radius)


# %% [markdown]
# ## Error 1: the radius
#
# At a point one unit from a mode (at the mode itself the 1-Laplacian has no value), in float64.

# %%
with jax.enable_x64(True):
    alpha, sigma = (float(v[LEVEL]) for v in (schedule.alphas, schedule.sigmas))
    exact = sj.GaussianMixture(*parameters).noised(alpha, sigma)
    x = jnp.asarray(alpha * modes[0] + np.array([1.0, 0.0]))
    value = float(exact.p_laplacian(x, 1.0))
    laplacian = jax.jit(
        jax.vmap(lambda y: jnp.trace(jax.hessian(lambda z: exact.p_laplacian(z, 1.0))(y)))
    )
    radii = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    bias, bias_bound = [], []
    for radius in radii:
        bias.append(abs(float(on_circle(exact.score, x, radius)[1]) - value))
        ball = np.linspace(0, radius, 41)[:, None, None] * circle[:: NUM_ANGLES // 180]
        steepest = float(jnp.abs(laplacian(x + ball.reshape(-1, 2))).max())
        bias_bound.append(float(radius_bias_bound(steepest, radius=radius, dim=DIM)))
print(f"\nradius bias at a point 1 from a mode, where the 1-Laplacian is {value:.4f}")
for row in zip(radii, bias, bias_bound, strict=True):
    print("  R = {:.2f}: {:.5f}, bound {:.5f}".format(*row))

# %% [markdown]
# ## Error 2: the learned score

# %%
around_places = jax.jit(jax.vmap(on_circle, (None, 0, None)))
bound_at_places = jax.jit(jax.vmap(functools.partial(score_error_bound, radius=RADIUS, dim=DIM)))
score_error, score_bound = np.zeros((2, len(LEVELS), len(PLACES)))
for i, t in enumerate(LEVELS):
    (s, exact_flux), (learned, learned_flux) = (
        around_places(score, places(t), RADIUS) for score in scores(t).values()
    )
    score_error[i] = jnp.abs(learned_flux - exact_flux)
    norms = (jnp.linalg.norm(v, axis=-1) for v in (s, learned, learned - s))
    score_bound[i] = bound_at_places(*norms)

print("\nscore error and its bound, each the largest of its group")
for i, t in enumerate(LEVELS):
    cells = [
        f"{group} {score_error[i, rows].max():.4f}, bound {score_bound[i, rows].max():.3f}"
        for group, rows in GROUPS.items()
    ]
    print(f"  t = {t:3d}, sigma = {float(schedule.sigma(t)):.3f}: {'; '.join(cells)}")
print(f"  the largest error over its own bound: {(score_error / score_bound).max():.2f}")

# %% [markdown]
# ## Error 3: the directions

# %%
COUNTS = (4, 64) if QUICK else (4, 16, 64, 256, 1024)
score, x = scores(LEVEL)["exact"], places(LEVEL)[GROUPS["passes"]][:1]
truth = float(on_circle(score, x[0], RADIUS)[1])
quantile, hoeffding = [], []
print(
    f"\nsampling error at a pass, where the flux is {truth:.4f}: 95% quantile of {REPEATS} repeats"
)
for n in COUNTS:
    values = np.asarray(estimates(score, x, jax.random.key(2), n))
    quantile.append(float(np.quantile(np.abs(values - truth), 0.95)))
    hoeffding.append(
        float(sampling_bound(dim=DIM, radius=RADIUS, num_directions=n, probability=0.05))
    )
    print(f"  N = {n:4d}: {quantile[-1]:.4f}, bound {hoeffding[-1]:.4f}")

# %% [markdown]
# ## The picture

# %%
COLOUR = {"peaks": "#b3202a", "passes": "#2a7f62", "centre": "#6b4ba3"}
GREY = "#8a8a8a"
plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "legend.fontsize": 8.5})
figure, axes = plt.subplots(2, 3, figsize=(12.5, 7.6), layout="constrained")


@jax.jit
def flux_map(score, grid):
    """The flux around every point of a grid, with 180 directions."""
    n = jnp.asarray(circle[:: NUM_ANGLES // 180], grid.dtype)

    def one(x):
        return flux(jax.vmap(score)(x + RADIUS * n), n, RADIUS)

    return jax.lax.map(one, grid, batch_size=256)


side = np.linspace(-4.5, 4.5, 31 if QUICK else 91)
grid = jnp.asarray(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2), jnp.float32)
for ax, (name, score) in zip(axes[0], scores(LEVEL).items(), strict=False):
    values = np.asarray(flux_map(score, grid)).reshape(len(side), -1)
    image = ax.pcolormesh(side, side, values, cmap="RdBu_r", vmin=-2, vmax=2, rasterized=True)
    for (group, rows), marker in zip(GROUPS.items(), "o^s", strict=True):
        ax.plot(
            *np.asarray(places(LEVEL))[rows].T, marker, color=COLOUR[group], markersize=6,
            markeredgecolor="white", label=group,
        )  # fmt: skip
    for x in places(LEVEL)[GROUPS["peaks"]]:
        ax.add_patch(plt.Circle(x, RADIUS, fill=False, color="white", linewidth=0.8))
    ax.set(title=f"1-Laplacian, {name} score", xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
axes[0, 0].legend(loc="lower left", framealpha=0.9)
label = rf"$\Delta_1 \log p_t$, mean over a ball, $R = {RADIUS:g}$"
figure.colorbar(image, ax=axes[0, 1], shrink=0.85, label=label)

ax = axes[0, 2]
ticks = [f"{group}\n{name}" for group in GROUPS for name in repeats]
for position, tick in enumerate(ticks):
    group, name = tick.split("\n")
    box = ax.boxplot(
        repeats[name][:, GROUPS[group]].ravel(), positions=[position], widths=0.6, whis=(0, 100),
        patch_artist=True, medianprops={"color": "black"},
    )  # fmt: skip
    box["boxes"][0].set(facecolor=COLOUR[group], alpha=0.85 if name == "exact" else 0.35)
ax.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
ax.set_xticks(range(len(ticks)), ticks, fontsize=8)
ax.set_ylabel(r"$\Delta_1 \log p_t$")
ax.set_title(f"{REPEATS} repeats: quartiles and range")

ax = axes[1, 0]
ax.loglog(radii, bias, "o-", color=COLOUR["peaks"], markersize=4, label="error")
ax.loglog(radii, bias_bound, "--", color=GREY, label="bound")
ax.set(xlabel="radius R", ylabel="radius bias", title="1. Radius, one unit from a mode")
ax.set_xticks([0.05, 0.1, 0.2, 0.4, 0.8], ["0.05", "0.1", "0.2", "0.4", "0.8"])
ax.minorticks_off()
ax.legend(frameon=False)

ax = axes[1, 1]
level_sigmas = [float(schedule.sigma(t)) for t in LEVELS]
for (group, rows), marker in zip(GROUPS.items(), "o^s", strict=True):
    error, bound = score_error[:, rows].max(1), score_bound[:, rows].max(1)
    style = {"color": COLOUR[group]}
    ax.semilogy(level_sigmas, error, f"{marker}-", markersize=4, label=f"{group}: error", **style)
    ax.semilogy(level_sigmas, bound, "--", alpha=0.6, label="bound", **style)
ax.set(xlabel=r"noise level $\sigma_t$", ylabel="score error", title="2. Learned score")
ax.legend(frameon=False, ncols=3, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.16))

ax = axes[1, 2]
ax.loglog(COUNTS, quantile, "o-", color=COLOUR["passes"], markersize=4, label="error, 95% quantile")
ax.loglog(COUNTS, hoeffding, "--", color=GREY, label="bound, with probability 95%")
ax.set(xlabel="directions N", ylabel="sampling error", title="3. Directions, at a pass")
ax.set_ylim(top=8)
ax.set_xticks(COUNTS, [str(n) for n in COUNTS])
ax.minorticks_off()
ax.legend(frameon=False)
for ax in (axes[0, 2], *axes[1]):
    ax.spines[["top", "right"]].set_visible(False)

OUTPUT.mkdir(parents=True, exist_ok=True)
figure.savefig(OUTPUT / "p_laplacian_mixture.png", dpi=90, facecolor="white")
print(f"\nwrote {OUTPUT / 'p_laplacian_mixture.png'}")
