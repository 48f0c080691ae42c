# %% [markdown]
# # Where SAIL leads, on closed forms: out of a memorized mode, or into it
#
# Its loss is the length of `H_D s_D`, which is small where the landscape is flat, and also
# wherever the two scores agree, because `s_D` is zero there: at a memorized point itself, too.
# Three conditions under an unconditional density in the plane, all with exact scores:
#
# - *rare point*: 2% of what the condition shows is a point (memorized), the rest a broad mode;
# - *frequent point*: half of it is;
# - *point alone*: as a caption has that was trained on a single image often enough.
#
# Noises are optimised until the sharpness is a given fraction of what it was, and sampled by DDIM.
# Prints which share of the samples ends at the memorized point, and draws the noises' paths.
#
# `python examples/mitigate_mixture.py [--quick] [--output DIR]`

# %%
import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import sharpjax as sj

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description="Where SAIL leads, on closed forms.")
parser.add_argument("--quick", action="store_true", help="few noises, to see that it runs")
parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the figure")
options, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own

# %% The densities: at t = 0, and at the first timestep of sampling
SCHEDULE = sj.Schedule.create()
T = int(SCHEDULE.timesteps(50)[0])
# Two images of d entries are about sqrt(d) apart, so that even at t = 981, where alpha is 0.07, a
# model tells them apart through the noise. In the plane it takes a distance of as many units.
POINT, BROAD = jnp.array([-20.0, 0.0]), jnp.array([20.0, 0.0])
narrow, wide = 1e-2 * jnp.eye(2), 100.0 * jnp.eye(2)
EYE = jnp.eye(2)
unconditional = sj.GaussianMixture([1.0], BROAD[None], [200.0 * EYE])


def condition(weight):
    """The point with this weight, and the broad mode."""
    means, covariances = jnp.stack([POINT, BROAD]), [1e-2 * EYE, 100.0 * EYE]
    return sj.GaussianMixture([weight, 1 - weight], means, covariances)


CONDITIONS = {
    "rare point": condition(0.02),
    "frequent point": condition(0.5),
    "point alone": sj.GaussianMixture([1.0], POINT[None], [1e-2 * EYE]),
}


def pair_at(conditional, t):
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    noised = [p.noised(alpha, sigma) for p in (unconditional, conditional)]
    return sj.ScorePair(noised[0].score, noised[1].score, alpha, sigma)


def sample(conditional, noise):
    """DDIM with the exact conditional score."""

    def score_at(x, t):
        return conditional.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t)).score(x)

    return jax.vmap(lambda x: sj.sample(score_at, x, SCHEDULE, num_steps=50))(noise)


def memorized(samples):
    return np.linalg.norm(np.asarray(samples) - np.asarray(POINT), axis=1) < 1


# %% Optimise, sample, count
count = 32 if options.quick else 400
start = jax.random.normal(jax.random.key(0), (count, 2))
fractions = (0.2,) if options.quick else (1.0, 0.2, 0.05)
sharpness = sj.mitigation.sharpness("exact")
side = 41 if options.quick else 121
figure, axes = plt.subplots(1, len(CONDITIONS), figsize=(13, 4.2), layout="constrained")
print(f"samples at the memorized point, of {count} noises (norm: mean length over sqrt(d))")
for panel, (name, conditional) in zip(axes, CONDITIONS.items(), strict=True):
    pair = pair_at(conditional, T)
    usual = float(np.median(jax.vmap(lambda x, p=pair: sharpness(p, x))(start)))
    before = memorized(sample(conditional, start))
    print(f"{name}: without mitigation {before.mean():.3f}")
    for fraction in fractions:
        sailed = sj.mitigation.sail(pair, noise=start, threshold=fraction * usual, max_steps=200)
        after = memorized(sample(conditional, sailed.noise))
        norm = np.mean(np.linalg.norm(np.asarray(sailed.noise), axis=1)) / np.sqrt(2)
        print(
            f"  sharpness at most {fraction:g} of its median: {after.mean():.3f} "
            f"({np.mean(before & ~after):.3f} left, {np.mean(after & ~before):.3f} came), "
            f"{np.mean(sailed.outcome == 'met'):.0%} got there, {sailed.steps.mean():.1f} steps, "
            f"norm {norm:.2f}"
        )
    grid = jnp.linspace(-4, 4, side)
    points = jnp.stack(jnp.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    value = jax.vmap(lambda x, p=pair: sharpness(p, x))(points)
    shown = panel.contourf(
        grid, grid, np.log10(np.asarray(value)).reshape(side, side), levels=20, cmap="Greys"
    )
    figure.colorbar(shown, ax=panel, label="log10 sharpness", shrink=0.8)
    basin = memorized(sample(conditional, points)).reshape(side, side)
    panel.contour(grid, grid, basin, levels=[0.5], colors="#c26a1a", linewidths=1.5)
    for a, b in zip(np.asarray(start[:60]), np.asarray(sailed.noise[:60]), strict=True):
        panel.annotate("", b, a, arrowprops={"arrowstyle": "->", "color": "#1f3b73", "lw": 0.8})
    panel.plot(*(SCHEDULE.alpha(T) * POINT), "x", color="#c26a1a")
    panel.set(title=name, xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
figure.suptitle(
    f"t = {T}: optimised noises (arrows); orange: the noised point (cross), border of its basin",
    fontsize=10,
)
options.output.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output / "mitigate_mixture.png", dpi=130, facecolor="white")
print(f"written {options.output / 'mitigate_mixture.png'}")
