# %% [markdown]
# # A figure for a paper
#
# From `results.csv` of a run: a statistic against the level of its conditions, one column wide, in
# type of 8 points. `--run DIR` names a run of `sharpjax detect` whose conditions have levels;
# without it one of a few sets of digits is computed, whose level is how many images they have.
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
parser.add_argument("--xlabel", default="level", help="what a level is, of --run")
options, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own
COLUMN = "score_difference@981"
run = options.run
if run is None:
    options.xlabel = "training images of the condition"
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
if not (run / "results.csv").is_file():
    parser.error(f"--run must be the directory of a finished detection run, got {run}")
table = read_csv(run / "results.csv")
if lacking := {"level", f"network {COLUMN}"} - set(table[0]):
    parser.error(f"{run / 'results.csv'} must have the columns {', '.join(sorted(lacking))}")
rows = [row for row in table if int(row["level"] or 0)]  # 0 is not known
level, mean, error = (
    np.array([float(row[name]) for row in rows])
    for name in ("level", f"network {COLUMN}", f"network {COLUMN} standard error")
)
with plt.rc_context({"font.size": 8, "axes.linewidth": 0.6, "pdf.fonttype": 42}):
    figure, axes = plt.subplots(figsize=(3.25, 2.2), layout="constrained")
    axes.errorbar(level, mean, error, fmt="o", markersize=3, linewidth=0.8, color="#1f3b73")
    axes.set_xscale("log")
    if len(np.unique(level)) <= 5:  # more would overprint each other
        axes.set_xticks(np.unique(level), [f"{one:.0f}" for one in np.unique(level)])
        axes.minorticks_off()
    axes.set(xlabel=options.xlabel, ylabel=r"$\|s_D\|$, mean ± standard error")
    axes.spines[["top", "right"]].set_visible(False)
    options.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output / "paper_figure.png", dpi=300)
for one in np.unique(level):
    print(f"level {one:.0f}: mean {mean[level == one].mean():.3f}")
print(f"written {options.output / 'paper_figure.png'}")
