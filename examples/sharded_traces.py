# %% [markdown]
# # Traces on several devices
#
# The trace of the Hessian at several points, by random probes, on a mesh of devices: the points
# are split along its axis "points", the probes of each along "probes". The draws belong to the
# point and the probe, not to the device, so the numbers are those of one device, to rounding.
# Nothing changes but the `mesh=`.
#
# A machine without accelerators can simulate devices (here four), which is how the code for a pod
# is tried out. They share its cores, so at most as many of them as there are cores make it
# faster: the times say how much, as a ratio to one device in the same run.
#
# `python examples/sharded_traces.py [--quick] [--output DIR]`

# %%
import argparse
import time
from pathlib import Path

import jax
import matplotlib
import numpy as np

import sharpjax as sj
from sharpjax import zoo

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description="Traces on a mesh of simulated devices.")
parser.add_argument("--quick", action="store_true", help="few probes, one mesh")
parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the figure")
options, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own
NUM_PROBES, REPEATS = (4, 1) if options.quick else (16, 5)
NUM_POINTS, T = 8, 701

# %% [markdown]
# ## Four devices
#
# Their number is asked for before the first array. On real accelerators leave this line out.

# %%
jax.config.update("jax_num_cpu_devices", 4)
SHAPES = [(2, 2)] if options.quick else [(2, 1), (1, 2), (2, 2)]
meshes = {"one device": None}
for points, probes in SHAPES:
    devices = jax.devices()[: points * probes]
    meshes[f"{points} × {probes}"] = jax.make_mesh(
        (points, probes), ("points", "probes"), devices=devices
    )
print(f"{jax.device_count()} devices ({jax.devices()[0].platform})")

# %% [markdown]
# ## The points: eight images of one digit, noised

# %%
model = sj.load("mnist")
training_set = sj.detection.TrainingSet.load(zoo.find("mnist"))
name = "5 x256"
images = training_set.of(model.conditions.index(name))[:NUM_POINTS]
score = model.scores(name, T).conditional
alpha, sigma = float(model.schedule.alpha(T)), float(model.schedule.sigma(T))
key_noise, key_probes = jax.random.split(jax.random.key(0))
points = alpha * images + sigma * jax.random.normal(key_noise, images.shape)

# %% [markdown]
# ## The same traces on every mesh
#
# Repeats go round the meshes in turn, so that what else the machine does falls on all alike.


# %%
def traces(mesh):
    estimate = sj.curvature.at_points(
        sj.curvature.effective_dimension, score, points, key=key_probes, sigma=sigma,
        num_matvecs=NUM_PROBES, batch_size=4, points_at_once=1, mesh=mesh,
    )  # fmt: skip
    return jax.block_until_ready(estimate)


found = {shape: traces(mesh) for shape, mesh in meshes.items()}  # compiles
seconds = {shape: [] for shape in meshes}
for _ in range(REPEATS):
    for shape, mesh in meshes.items():
        start = time.perf_counter()
        traces(mesh)
        seconds[shape].append(time.perf_counter() - start)

one = found["one device"]
print(f"tr K at {NUM_POINTS} points by {NUM_PROBES} probes each, with standard errors:")
print("  " + ", ".join(
    f"{v:.2f} ± {e:.2f}" for v, e in zip(one.value, one.standard_error, strict=True)
))  # fmt: skip
print("mesh (points × probes): largest difference to one device; time over that of one device")
ratios = {}
for shape, estimate in found.items():
    if shape == "one device":
        continue
    difference = float(np.max(np.abs(estimate.value - one.value)))
    ratios[shape] = np.array(seconds[shape]) / np.array(seconds["one device"])
    print(
        f"  {shape}: {difference:.1e}; {np.median(ratios[shape]):.2f} "
        f"(from {ratios[shape].min():.2f} to {ratios[shape].max():.2f}, {REPEATS} repeats)"
    )

# %% [markdown]
# ## The picture

# %%
INK, OTHER = "#1f3b73", "#c26a1a"
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
place = np.arange(NUM_POINTS)
largest = list(found)[-1]
low, high = one.interval(0.95)
left.errorbar(place, one.value, (high - low) / 2, fmt="o", color=INK, label="one device, 95%")
left.plot(place, found[largest].value, "x", color=OTHER, markersize=9, label=f"mesh {largest}")
left.set(xlabel="point", ylabel="effective dimension tr K")
left.legend(frameon=False)
for i, values in enumerate(ratios.values()):
    right.plot(np.full(len(values), i), values, "o", color=INK, alpha=0.4, markersize=4)
    right.plot(i, np.median(values), "_", color=OTHER, markersize=22, markeredgewidth=2)
right.axhline(1, color="#8a8a8a", linewidth=0.8, linestyle=":")
right.set_xticks(range(len(ratios)), list(ratios))
right.set(xlabel="mesh, points × probes", ylabel="time over that of one device", ylim=(0, None))
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
options.output.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output / "sharded_traces.png", dpi=100, facecolor="white")
print(f"wrote {options.output / 'sharded_traces.png'}")
