# %% [markdown]
# # Your own checkpoint, in Python from thresholds to images
#
# What `sharpjax calibrate`, `detect` and `mitigate` do, on a model in memory: thresholds from clean
# prompts, verdicts, a comparison with scores of your own, images without copies, a page of each.
# `--model DIR` names any directory that `sj.load` reads; without it, the bundled one.
#
# `python examples/own_checkpoint.py [--quick] [--model DIR] [--runs DIR]`; writes runs, no figure.

# %%
import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np

import sharpjax as sj

parser = argparse.ArgumentParser(description="Thresholds, verdicts, images and pages, in Python.")
parser.add_argument("--quick", action="store_true", help="few prompts, two steps")
parser.add_argument("--model", default="drawings", help="a bundled model or a directory")
parser.add_argument("--runs", type=Path, help="folder of the runs; a temporary one if left out")
options, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own
output = options.runs or Path(tempfile.mkdtemp())
model = sj.load(options.model)

# %% [markdown]
# Prompts that are certainly clean, and those to be judged, with labels where they are known.

# %%
bench = sj.bench.drawings()
general = [t.caption for t in bench.truths if t.verdict == "clean" and t.kind == "general"]
memorized = [t.caption for t in bench.truths if t.verdict == "memorized"]
few = 4 if options.quick else 12
clean = general[few : few + (19 if options.quick else 100)]  # 19 are the fewest that promise 95%
cases = [sj.detection.Case(prompt, "memorized") for prompt in memorized[:few]]
cases += [sj.detection.Case(prompt, "clean") for prompt in general[:few]]
prompts = [case.condition for case in cases]

# %% [markdown]
# Thresholds, then verdicts. Every run goes on where it was stopped.

# %%
settings = sj.detection.DetectSettings(statistics=("score_difference",), num_noises=2)
sj.runs.detect(model, clean, output / "clean", settings, batch_size=8)
thresholds = sj.report.finish_calibration(output / "clean")
sj.runs.detect(model, prompts, output / "detect", settings, batch_size=8)
found = sj.report.finish_detection(output / "detect", cases, thresholds=thresholds)
for row in found.rows:
    print(f"{row['condition']:30.30s} {row['known']:10s} called {row['verdict']}")
print(f"AUC {found.summaries[0].network.auc}")

# %% [markdown]
# Scores of your own, from a CSV file with a column `condition`, beside ours on the same prompts:
# here the length of each prompt, so that there is a file.

# %%
with (output / "mine.csv").open("w", newline="") as file:
    csv.writer(file).writerows([["condition", "mine"], *([p, len(p)] for p in prompts)])
with (output / "mine.csv").open(newline="") as file:
    mine = {row["condition"]: float(row["mine"]) for row in csv.DictReader(file)}
ours = found.judged.means("network", "score_difference@981")
theirs = np.array([mine[case.condition] for case in found.judged.cases])
labels = found.judged.verdicts == "memorized"
print(f"AUC less that of mine: {sj.detection.compare(ours, theirs, labels).auc}")

# %% [markdown]
# Images of all prompts, and of those called memorized with less guidance.

# %%
called = [i for i, row in enumerate(found.rows) if row["verdict"].startswith("memorized")] or [0]
jobs = sj.runs.jobs(range(few), "none") + sj.runs.jobs(called, "lower_guidance", [2.0])
how = sj.runs.MitigationSettings(num_images=1, num_steps=2 if options.quick else 25)
sj.runs.mitigate(
    model, prompts, jobs, output / "mitigate", how, clean=clean, vocabulary=model.tokenizer
)
table = sj.report.finish_mitigation(output / "mitigate", detection=found)
print(f"{sum(row['treated'] for row in table)} prompts were treated, {len(called)} are called")
print("pages:", *(path.relative_to(output) for path in sorted(output.glob("*/report.html"))))
