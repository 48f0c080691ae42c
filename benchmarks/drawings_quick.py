"""The quick world of the drawings: what is copied by guidance, kind and share, and what tells it.

    python benchmarks/drawings_quick.py --directory runs/drawings-quick

Trains the perceptron first (`sharpjax train drawings-quick` does the same), or goes on with it.
Then, of the perceptron and of the exact score side by side:

1. of the codec, the PSNR of new renderings; of the judge, threshold and false-alarm rate (controls,
   seen through the codec, before a sample is drawn);
2. copies of the own repeated image, by kind and guidance;
3. the table of `sharpjax.bench`: AUC of two statistics at the first step, 4 noises, by kind of the
   memorized captions and breadth of the clean ones; truth by generation at guidance 3.

Captions are the test part, unless `--part tuning` says otherwise.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.bench.drawings import DrawingsBench
from sharpjax.detection.statistics import hessian_score_difference, score_difference
from sharpjax.mitigation.drawing_judge import DrawingJudge, control
from sharpjax.recipes.drawings_quick import QUICK_SETTINGS, quick_world, train_quick
from sharpjax.recipes.drawings_vae import psnr, unseen
from sharpjax.runs.truth_of_drawings import measured, truth

WEIGHTS = (1.0, 3.0, 5.0, 7.5)
OWN = 3.0  # the guidance of the truth
SAMPLES, STEPS, NOISES, FIRST = 8, 20, 4, 981
STATISTICS = {
    "|s_D|": score_difference,
    "|H_D s_D|": hessian_score_difference,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path("runs/drawings-quick"))
    parser.add_argument("--part", choices=["tuning", "test"], default="test")
    parser.add_argument(
        "--most", type=int, default=24, help="captions of a kind, level and breadth"
    )
    arguments = parser.parse_args()
    started = time.perf_counter()

    def clock(what):
        print(f"[{time.perf_counter() - started:.0f} s] {what}", flush=True)

    world = quick_world()
    clock(f"rendered and encoded {world.bank.shape[0]} x {world.bank.shape[1]} images")
    planted, codec = world.planted, world.codec
    new = np.sort(unseen(planted))
    decibels = psnr(codec, planted.render_anywhere(jax.random.key(2), new))
    print(f"codec, {len(new)} new renderings: PSNR {decibels.mean():.1f} dB")

    def seen(images):
        return np.asarray(codec.decode(codec.encode(jnp.asarray(images)).mean))

    limits = control(planted, seen)
    judge = DrawingJudge(planted, seen, limits.threshold)
    rate = limits.false_alarms / limits.renderings
    print(
        f"judge: copy above {limits.threshold:.3f}; false alarms {rate:.4f} [{limits.low:.4f}, "
        f"{limits.high:.4f}] of {limits.renderings}; {limits.found:.3f} of the repeated found"
    )
    clock("judge")
    network = train_quick(arguments.directory, world, QUICK_SETTINGS)
    clock("trained")
    chosen = [
        i for i in measured(planted, most=arguments.most)
        if planted.captions[i].part == arguments.part
    ]  # fmt: skip
    models = {"perceptron": network, "exact score": world.exact()}
    everything = {}
    for name, model in models.items():
        truths, rows = copies(model, planted, judge, chosen, limits.high)
        print(f"\n{name}: copies of the own repeated image (captions), by guidance")
        print(f"{'kind':24}" + "".join(f"{w:>8g}" for w in WEIGHTS))
        for kind, (count, rates) in rows.items():
            print(f"{kind:20} {count:3d}" + "".join(f"{rate:8.2f}" for rate in rates))
        clock("sampled")
        told = DrawingsBench(arguments.directory, tuple(truths))
        for statistic, values in scores(model, told.captions).items():
            print(f"\n{name}, {statistic}:")
            for row in told.evaluate(values):
                print(f"  {row}")
        clock("statistics")
        everything[name] = [str(t) for t in truths]
    (arguments.directory / f"truths-{arguments.part}.json").write_text(json.dumps(everything))


def copies(model, planted, judge, chosen, false_alarm):
    """Truths at `OWN`, and of every kind its captions and copy rates by guidance."""
    names = [planted.captions[i].caption for i in chosen]
    shape = (len(names) * SAMPLES, *model.shape)
    noise = jax.random.normal(jax.random.key(7), shape)  # the same under all weights
    repeated = [name for name in names for _ in range(SAMPLES)]
    truths, rates = [], {}
    for weight in WEIGHTS:
        images = model.sample(
            repeated, noise=noise, num_steps=STEPS, guidance=weight, batch_size=256
        )
        images = np.clip(images, -1, 1).reshape(len(names), SAMPLES, *images.shape[1:])
        found = [
            truth(own, i, planted, judge, false_alarm=false_alarm)
            for i, own in zip(chosen, images, strict=True)
        ]
        for one in found:
            rates.setdefault(_kind(one), {}).setdefault(weight, []).append(one.copies / SAMPLES)
        if weight == OWN:
            truths = found
    table = {
        kind: (len(own[OWN]), [float(np.mean(own[w])) for w in WEIGHTS])
        for kind, own in sorted(rates.items())
    }
    return truths, table


def _kind(one):
    if one.kind == "mixed":
        return f"mixed q={one.q:g} x{one.level}"
    return f"{one.kind} x{one.level}" if one.level else one.kind


def scores(model, captions):
    """Of each statistic a value a caption: the mean over the same noises."""
    noises = jax.random.normal(jax.random.key(11), (NOISES, *model.shape))

    @functools.partial(jax.jit, static_argnames="statistic")
    def value(model, label, noises, statistic):
        pair = model.scores(label, FIRST)
        return jax.lax.map(lambda x: STATISTICS[statistic](pair, x), noises).mean()

    labels = model.encode(captions)
    return {
        name: {
            caption: float(value(model, label, noises, name))
            for caption, label in zip(captions, labels, strict=True)
        }
        for name in STATISTICS
    }


if __name__ == "__main__":
    main()
