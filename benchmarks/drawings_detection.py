"""Which statistic tells which memorization of the drawings, by noises; the exact score beside it.

    python benchmarks/drawings_detection.py --model drawings --output runs/drawings-detection

Statistics of the first step, of the network and of the exact score of the same captions in the same
latents (a mixture of low-rank Gaussians, `sharpjax.recipes.drawings_quick.latent_world`), at the
same noises, of all captions whose truth is memorized or clean.  Prints, as Markdown:

1. AUC by statistic, kind and share of the memorized captions, and breadth of the clean ones, of the
   means over 1, 4 and 16 noises.  All are printed; an asterisk says that the interval which holds
   with all others of the table at once (Bonferroni) excludes .5;
2. the same against clean captions matched in complexity: of every memorized caption its own nearest
   clean one in the length of a PNG file of what the caption draws.

Captions are the test part, unless `--part` says otherwise.  Resumes a run that was stopped; needs
the `datasets` extra.
"""

import argparse
import io
from pathlib import Path

import jax
import numpy as np

import sharpjax as sj
from sharpjax.bench.drawings import NEGATIVES, POSITIVES
from sharpjax.checkpoints.fingerprint import fingerprint
from sharpjax.datasets.planted_drawings import planted_drawings
from sharpjax.detection import intervals
from sharpjax.detection.evaluation import FEWEST, evaluate, placements
from sharpjax.detection.settings import FIRST_STEP, DetectSettings
from sharpjax.detection.summary import direction
from sharpjax.models.load import find
from sharpjax.recipes.drawings_quick import latent_world
from sharpjax.runs.sample import to_picture

NOISES = (1, 4, 16)
BATCH = {"network": 16, "exact score": 4}  # 16 noises of 16 captions are 20 GB of the mixture
FRESH = 8  # renderings of a caption, for its complexity


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="drawings")
    parser.add_argument("--output", type=Path, default=Path("runs/drawings-detection"))
    parser.add_argument("--part", choices=["tuning", "test"], default="test")
    parser.add_argument("--without-exact", action="store_true", help="the network alone")
    arguments = parser.parse_args()
    directory = find(arguments.model)
    bench = sj.bench.drawings(directory.path)
    told = [
        t for t in bench.truths
        if t.verdict in ("memorized", "clean") and t.part == arguments.part
    ]  # fmt: skip
    captions = [t.caption for t in told]
    settings = DetectSettings(statistics=FIRST_STEP, num_noises=max(NOISES))
    model = sj.load(arguments.model)
    who = {"network": (model, fingerprint(directory))}
    if not arguments.without_exact:
        exact = latent_world(model.vae).exact()
        who["exact score"] = exact, f"exact score of {fingerprint(directory)}"
    found = {}
    for name, (network, own) in who.items():
        folder = arguments.output / name.replace(" ", "-")
        records = sj.runs.detect(
            network, captions, folder, settings, fingerprint=own, batch_size=BATCH[name]
        )
        found[name] = {
            column: direction(column) * np.array([r["network"][column] for r in records])
            for column in records[0]["network"]
        }
    table(found, told, cells(told))
    print()
    table(found, told, matched(told, complexities(captions)), noises=NOISES[1:2])


def cells(told):
    """`(positives, negatives, indices of either)` of every pair of kinds that has both."""
    pairs = []
    for positives, chosen in POSITIVES.items():
        own = [i for i, t in enumerate(told) if t.verdict == "memorized" and chosen(t)]
        for negatives, wanted in NEGATIVES.items():
            other = [i for i, t in enumerate(told) if t.verdict == "clean" and wanted(t)]
            if min(len(own), len(other)) >= FEWEST:
                pairs.append((positives, negatives, own, other))
    return pairs


def matched(told, complexity):
    """Of every kind, the clean captions that are as complex, one for one."""
    pairs = []
    for positives, chosen in POSITIVES.items():
        own = [i for i, t in enumerate(told) if t.verdict == "memorized" and chosen(t)]
        free = {i for i, t in enumerate(told) if t.verdict == "clean"}
        other = []
        for i in own:
            nearest = min(free, key=lambda j: (abs(complexity[j] - complexity[i]), j))
            free.remove(nearest)
            other.append(nearest)
        if len(own) >= FEWEST:
            gap = np.mean(np.abs(complexity[own] - complexity[other]))
            pairs.append((positives, f"as complex (to {gap:.0f} of {complexity.mean():.0f} bytes)",
                          own, other))  # fmt: skip
    return pairs


def complexities(captions):
    """Mean length in bytes of a PNG of what each caption draws, the repeated image by its share."""
    planted = planted_drawings()
    place = {c.caption: i for i, c in enumerate(planted.captions)}
    index = np.array([place[caption] for caption in captions])
    fixed = dict(zip(planted.planted.tolist(), planted.fixed_images(), strict=True))
    key = jax.random.key(3)
    fresh = np.zeros(len(index))
    afresh = np.array([planted.captions[i].q < 1 for i in index])
    for repeat in range(FRESH):
        images = planted.fresh_images(jax.random.fold_in(key, repeat), index[afresh])
        fresh[afresh] += [len(png_of(image)) / FRESH for image in images]
    share = np.array([planted.captions[i].q for i in index])
    repeated = np.array([len(png_of(fixed[i])) if i in fixed else 0 for i in index.tolist()])
    return share * repeated + (1 - share) * fresh


def png_of(image):
    """Of an image `(3, h, w)` in [-1, 1]: without loss."""
    file = io.BytesIO()
    to_picture(image, "a drawing").save(file, "png", optimize=True)
    return file.getvalue()


def table(found, told, pairs, noises=NOISES):
    """AUCs of every pair, a column a number of noises and a score."""
    labels = np.array([t.verdict == "memorized" for t in told])
    columns = [(who, n) for who in found for n in noises]
    count = len(pairs) * sum(len(values) for values in found.values()) * len(noises)
    print(f"{count} AUCs; 95% intervals, each alone; *: .5 is excluded with all at once.\n")
    names = list(next(iter(found.values())))
    heads = [f"{who}, {n} noise{'s' if n > 1 else ''}" for who, n in columns]
    print("| " + " | ".join(["statistic", "memorized", "clean", *heads]) + " |")
    print("| --- " * (3 + len(heads)) + "|")
    for name in names:
        for positives, negatives, own, other in pairs:
            row = [f"`{name}`", f"{positives} ({len(own)})", f"{negatives} ({len(other)})"]
            rows = own + other
            for who, n in columns:
                values = found[who].get(name)
                if values is None:
                    row.append("")
                    continue
                mean = values[:, :n].mean(axis=1)[rows]
                auc = evaluate(mean, labels[rows]).auc
                low, high = intervals.auc(placements(mean, labels[rows]))(intervals.ALPHA / count)
                star = "" if low <= 0.5 <= high else "*"
                row.append(f"{auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}]{star}")
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
