# %% [markdown]
# # A figure for a paper
#
# From `results.csv` of a run: a statistic against the number of training images, one column wide,
# in type of 8 points. `--run DIR` names a run of `sharpjax detect --model mnist`; without it one of
# a few conditions is computed.
#
# `python examples/paper_figure.py [--quick] [--run DIR] [--output DIR]`

# %%
import argparse
import tempfile
from pathlib import Path

import matplotlib
import numpy as np

import sharpjax as sj
from sharpjax.rundir.files import read_csv

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description="A column of a paper, from a run's table.")
parser.add_argument("--quick", action="store_true", help="few conditions")
parser.add_argument("--run", type=Path, help="directory of a detection run")
parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the figure")
options, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own
COLUMN = "score_difference@981"
run = options.run
if run is None:
    run = Path(tempfile.mkdtemp())
    model = sj.load("mnist")
    names = [
        f"{digit} x{n}" for digit in "27"[: 1 if options.quick else 2] for n in ("1a", "16", "256")
    ]
    cases = [sj.detection.Case(name, level=int(name.split("x")[1].strip("a"))) for name in names]
    settings = sj.detection.DetectSettings(statistics=("score_difference",), num_noises=4)
    sj.runs.detect(model, names, run, settings)
    sj.report.finish_detection(run, cases)

# %% [markdown]
# A row a condition; bars are standard errors over noises. A name ending in `.pdf` gives vectors.

# %%
rows = [row for row in read_csv(run / "results.csv") if int(row["level"])]
level, mean, error = (
    np.array([float(row[name]) for row in rows])
    for name in ("level", f"network {COLUMN}", f"network {COLUMN} standard error")
)
with plt.rc_context({"font.size": 8, "axes.linewidth": 0.6, "pdf.fonttype": 42}):
    figure, axes = plt.subplots(figsize=(3.25, 2.2), layout="constrained")
    axes.errorbar(level, mean, error, fmt="o", markersize=3, linewidth=0.8, color="#1f3b73")
    axes.set_xscale("log", base=4)
    axes.set_xticks(np.unique(level), [f"{one:.0f}" for one in np.unique(level)])
    axes.minorticks_off()
    axes.set(xlabel="training images of the condition", ylabel=r"$\|s_D\|$, mean ± standard error")
    axes.spines[["top", "right"]].set_visible(False)
    options.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output / "paper_figure.png", dpi=300)
for one in np.unique(level):
    print(f"{one:.0f} images: mean {mean[level == one].mean():.3f}")
print(f"written {options.output / 'paper_figure.png'}")
