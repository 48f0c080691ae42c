"""Which weight of classifier-free guidance shows the right thing most often, and what it copies.

    python benchmarks/drawings_guidance.py --model runs/train-drawings/model

The weight that the drawings' model is meant for (`sharpjax.recipes.drawings.GUIDANCE`) is to be
chosen by the first table: of general captions of the tuning part, names and makers, the share of
samples that show the thing, by the classifier.  Nothing that is repeated has a part in the choice.
The second table is the chosen weight on the test part, with 95% intervals, the caption being the
unit.
The same noises serve all weights.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

import sharpjax as sj
from sharpjax.datasets.planted_drawings import planted_drawings
from sharpjax.detection import intervals
from sharpjax.runs.truth_of_drawings import load_judge

WEIGHTS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5)
SAMPLES, STEPS, BATCH = 4, 25, 32


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="with its judge and classifier")
    parser.add_argument("--captions", type=int, default=40, help="of each breadth and part")
    parser.add_argument("--seed", type=int, default=17)
    arguments = parser.parse_args()
    model, planted = sj.load(arguments.model), planted_drawings()
    judge, _ = load_judge(arguments.model, planted, model.vae)

    def shares(part, weight):
        """Of each breadth, of each caption: samples of the thing, of the maker, copies."""
        found = {}
        for breadth in ("name", "maker"):
            some = chosen(planted, part, breadth, arguments.captions)
            captions = [c.caption for c in some]
            shape = (len(captions) * SAMPLES, *model.shape)
            noise = jax.random.normal(jax.random.key(arguments.seed), shape)
            images = model.sample(
                captions, noise=noise, num_images=SAMPLES, num_steps=STEPS, guidance=weight,
                batch_size=BATCH,
            )  # fmt: skip
            images = np.clip(images, -1, 1)
            asked = [c for c in some for _ in range(SAMPLES)]
            judged = judge(images, [c.caption for c in asked])
            makers = judge.shown(images)[1]
            by = [m == c.maker for m, c in zip(makers, asked, strict=True)]
            each = judged.fidelity, np.array(by, float), judged.copied.astype(float)
            found[breadth] = [one.reshape(-1, SAMPLES).mean(axis=1) for one in each]
        return found

    print(f"tuning captions, {SAMPLES} samples each: right thing, right maker, copies")
    print("weight    name: thing copies    maker: thing  maker copies    both: thing", flush=True)
    right = {}
    for weight in WEIGHTS:
        name, maker = shares("tuning", weight).values()
        right[weight] = float(np.mean([name[0].mean(), maker[0].mean()]))
        print(
            f"{weight:6g}{name[0].mean():15.3f}{name[2].mean():7.3f}{maker[0].mean():16.3f}"
            f"{maker[1].mean():7.3f}{maker[2].mean():7.3f}{right[weight]:15.3f}",
            flush=True,
        )
    best = max(right, key=right.get)
    print(f"\nchosen: {best:g}. Test captions:")
    for breadth, (thing, by, copied) in shares("test", best).items():
        told = [("right thing", thing), ("copies", copied)]
        told += [("right maker", by)] if breadth == "maker" else []
        for what, values in told:
            low, high = intervals.mean(values[:, None])
            print(f"{breadth:6} {what:12} {values.mean():.3f} [{low:.3f}, {high:.3f}]")


def chosen(planted, part, breadth, count):
    """General captions that name no ground, evenly over the list."""
    known = [
        c for c in planted.captions
        if c.kind == "general" and c.part == part and c.breadth == breadth and not c.ground
    ]  # fmt: skip
    places = np.unique(np.linspace(0, len(known) - 1, min(count, len(known))).round().astype(int))
    return [known[i] for i in places]


if __name__ == "__main__":
    main()
