# %% [markdown]
# # Which prompts are memorized? Detection on the bundled text-to-image model
#
# Half of the prompts judged here are captions that the model has memorized, by the ground truth
# that comes with it: they copy a repeated image more often than chance does. Half are clean: hot
# ones, trained on as often as the memorized but with another rendering each time, and general ones.
# Three statistics of the first sampling step tell them apart without drawing a sample. Each is a
# mean over noises, with a t-interval; how well each detects is an AUC, with an interval over
# prompts.
#
# `sharpjax detect` does this for every caption, with thresholds, verdicts and a report.
#
# `python examples/detect_drawings.py [--quick] [--output DIR]`

# %%
import argparse
import tempfile
from pathlib import Path

import matplotlib
import numpy as np

import sharpjax as sj
from sharpjax.checkpoints.fingerprint import fingerprint
from sharpjax.detection.evaluation import roc
from sharpjax.detection.summary import mean_and_error
from sharpjax.mesh import devices

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description="Statistics of memorized and of clean prompts.")
parser.add_argument("--quick", action="store_true", help="few prompts and noises")
parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the figure")
options, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own
NUM_PROMPTS, NUM_NOISES = (6, 2) if options.quick else (24, 8)  # of each class; of each prompt

# %% [markdown]
# ## The prompts, spread evenly over what the ground truth knows

# %%
devices.split_cpu()  # one device a core, before the first array
bench = sj.bench.drawings()
model, mesh = sj.load(bench.directory), devices.local_mesh()


def spread(count, **properties):
    """So many captions with these properties, evenly spaced in the order of the ground truth."""
    fitting = [
        t.caption for t in bench.truths if all(getattr(t, k) == v for k, v in properties.items())
    ]
    return [fitting[i] for i in np.linspace(0, len(fitting) - 1, count).round().astype(int)]


prompts = {
    "memorized": spread(NUM_PROMPTS, verdict="memorized"),
    "hot": spread(NUM_PROMPTS // 2, verdict="clean", kind="hot"),
    "general": spread(NUM_PROMPTS // 2, verdict="clean", kind="general"),
}
captions = [caption for group in prompts.values() for caption in group]
kinds = np.repeat(list(prompts), [len(group) for group in prompts.values()])
memorized = kinds == "memorized"

# %% [markdown]
# ## Their statistics
#
# `sj.runs.detect` writes a line per prompt to a directory, from which a run that was stopped
# goes on; here one that is thrown away.

# %%
STATISTICS = ("score_difference", "hessian_score_difference", "hessian_score")
settings = sj.detection.DetectSettings(statistics=STATISTICS, num_noises=NUM_NOISES)
with tempfile.TemporaryDirectory() as directory:
    records = sj.runs.detect(
        model, captions, Path(directory) / "run", settings,
        fingerprint=fingerprint(bench.directory), batch_size=8, mesh=mesh,
    )  # fmt: skip
columns = list(records[0]["network"])  # "statistic@t"
values = {name: np.array([r["network"][name] for r in records]) for name in columns}
found = {name: [mean_and_error(row) for row in values[name]] for name in columns}
print(f"mean over {NUM_NOISES} noises ± its standard error")
print(f"{'prompt':30s} {'kind':10s}" + "".join(f"{name:>31s}" for name in columns))
for i, caption in enumerate(captions):
    cells = (f"{found[name][i][0]:.5g} ± {found[name][i][1]:.2g}" for name in columns)
    print(f"{caption:30.30s} {kinds[i]:10s}" + "".join(f"{cell:>31s}" for cell in cells))

# %% [markdown]
# ## How well they tell

# %%
means = {name: np.array(found[name])[:, 0] for name in columns}
figures = {name: sj.detection.evaluate(means[name], memorized) for name in columns}
print(f"\n{memorized.sum()} memorized against {(~memorized).sum()} clean prompts, 95% intervals")
for name in columns:
    print(f"{name}: AUC {figures[name].auc}, TPR at FPR <= 1% {figures[name].tpr}")

# %% [markdown]
# ## The picture

# %%
COLOUR = {"memorized": "#b3202a", "hot": "#c26a1a", "general": "#1f3b73"}
INKS = ("#1f3b73", "#c26a1a", "#2a7f62")
figure, (left, right) = plt.subplots(
    1, 2, figsize=(10, 4.4), width_ratios=(1.35, 1), layout="constrained"
)
best = columns[-1]
order = np.argsort(means[best])
for kind, colour in COLOUR.items():
    at = np.flatnonzero(kinds[order] == kind)
    mean, error = np.array(found[best])[order[at]].T
    left.errorbar(at, mean, error, fmt="o", color=colour, markersize=4, linewidth=1, label=kind)
left.set(
    xlabel="prompts, in order of the statistic", ylabel=f"{best}, mean ± standard error over noises"
)
left.legend(frameon=False, loc="upper left")
right.plot([0, 1], [0, 1], color="#d9d9d9", linewidth=1)
for name, colour in zip(columns, INKS, strict=True):
    right.plot(*roc(means[name], memorized), color=colour, label=f"{name}\nAUC {figures[name].auc}")
right.set(xlabel="false-positive rate", ylabel="true-positive rate", aspect="equal")
right.legend(frameon=False, fontsize=8, loc="lower right")
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
options.output.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output / "detect_drawings.png", dpi=100, facecolor="white")
print(f"\nwrote {options.output / 'detect_drawings.png'}")
