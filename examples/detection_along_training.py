# %% [markdown]
# # Detection and copying along training
#
# `sharpjax train openmoji` keeps the model at several steps. For each of them: how many samples of
# the planted captions are copies, by how often their one image was repeated; and how well
# statistics of the first step tell the captions that the *finished* model copies from clean ones,
# hot and general. What tells early, before anything is copied?
#
# `python examples/detection_along_training.py [--models DIR] [--output DIR] [--samples 4]`; a
# killed run goes on. Needs the `datasets` extra and the models of a training run.

# %%
import argparse
import csv
import dataclasses
from pathlib import Path

import matplotlib
import numpy as np

import sharpjax as sj
from sharpjax import devices, replication, zoo
from sharpjax.datasets.openmoji import planted_pictograms
from sharpjax.detection import run
from sharpjax.detection.evaluation import evaluate
from sharpjax.detection.settings import DetectSettings
from sharpjax.detection.truth import read_truths
from sharpjax.models.fingerprint import fingerprint

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description="Detection and copying along training.")
parser.add_argument("--models", type=Path, default=Path("runs/train-openmoji/models"))
parser.add_argument("--output", type=Path, default=Path("figures"))
parser.add_argument("--runs", type=Path, default=Path("runs/along-training"))
parser.add_argument("--samples", type=int, default=4, help="Of each planted caption.")
options, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own
STATISTICS = ("score_difference", "hessian_score_difference", "hessian_score")
settings = DetectSettings(statistics=STATISTICS)
steps = []
if options.models.is_dir():
    steps = sorted(path for path in options.models.iterdir() if path.name.isdecimal())
if not steps:
    raise SystemExit(
        f"{options.models} holds no models of a training run: `sharpjax train openmoji` makes them "
        "(hours), --models says where they are"
    )
devices.split_cpu()
mesh = devices.local_mesh()

# %% [markdown]
# ## Who is judged: by the ground truth of the finished model

# %%
pictograms = planted_pictograms()
planted = pictograms.of("memorized")
LEVELS = sorted({pictograms.concepts[i].level for i in planted})
finished = [
    truth
    for truth in read_truths(zoo.find("openmoji"), replication.CaptionTruth)
    if truth.verdict == "memorized"
    or (truth.verdict == "clean" and truth.group in ("hot", "general"))
]
memorized = np.array([truth.verdict == "memorized" for truth in finished])

# %% [markdown]
# ## Every kept model

# %%
rows = []
for path in steps:
    model, who = sj.load(path), fingerprint(path)
    truths, _ = replication.measure(
        model, pictograms, options.runs / path.name / "truth",
        fingerprint=who, index=planted, num_samples=options.samples, mesh=mesh,
    )  # fmt: skip
    records = run.detect(
        model, [truth.caption for truth in finished], options.runs / path.name / "detect", settings,
        fingerprint=who, batch_size=8, mesh=mesh,
    )  # fmt: skip
    row = {"step": int(path.name)}
    for level in LEVELS:
        rates = [truth.copy_rate for truth in truths if truth.level == level]
        row[f"copy rate x{level}"] = float(np.mean(rates))
    row["memorized by then"] = sum(truth.verdict == "memorized" for truth in truths)
    for name in records[0]["network"]:
        values = np.array([np.mean(record["network"][name]) for record in records])
        auc = evaluate(values, memorized).auc
        row |= {f"{name} {key}": value for key, value in dataclasses.asdict(auc).items()}
        print(f"step {path.name}: {name} AUC {auc}", flush=True)
    rates = ", ".join(f"x{level} {row[f'copy rate x{level}']:.2f}" for level in LEVELS)
    print(f"step {path.name}: copy rate {rates}; {row['memorized by then']} memorized", flush=True)
    rows.append(row)

# %%
options.output.mkdir(parents=True, exist_ok=True)
with (options.output / "along_training.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(
        {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
    )

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
at = [row["step"] for row in rows]
for level, shade in zip(LEVELS, np.linspace(0.25, 1, len(LEVELS)), strict=True):
    rates = [row[f"copy rate x{level}"] for row in rows]
    left.plot(at, rates, "o-", color=plt.cm.viridis_r(shade), label=f"x{level}", markersize=4)
left.set(xlabel="training step", ylabel="samples that are copies", ylim=(-0.03, 1.03))
left.legend(frameon=False, ncols=6, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1),
            columnspacing=1, handlelength=1.2)  # fmt: skip
for name, marker in zip(records[0]["network"], "os^", strict=True):
    value, low, high = ([row[f"{name} {k}"] for row in rows] for k in ("value", "low", "high"))
    (line,) = right.plot(at, value, f"{marker}-", label=name, markersize=4)
    right.fill_between(at, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
right.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
right.set(xlabel="training step", ylabel="AUC", ylim=(0.3, 1.01))
right.legend(frameon=False, fontsize=8)
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
figure.savefig(options.output / "along_training.png", dpi=90, facecolor="white")
print(f"wrote {options.output / 'along_training.png'} and along_training.csv")
