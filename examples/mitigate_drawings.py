# %% [markdown]
# # SAIL on the bundled text-to-image model, step by step, and where its noises go
#
# Optimises the initial noises of mixed captions that are memorized until their sharpness is a
# fraction of what is usual for clean captions, samples with and without, counts copies, and takes
# the loss apart: how much of its fall is a flatter landscape, and how much a shorter score
# difference? `sharpjax mitigate --compare` does this for every method; see docs/mitigation.md.
#
# `python examples/mitigate_drawings.py [--quick] [--output DIR]`

# %%
import argparse
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import sharpjax as sj
from sharpjax.datasets.planted_drawings import planted_drawings
from sharpjax.mesh import devices
from sharpjax.report import plots
from sharpjax.runs.cases import clean_prompts
from sharpjax.runs.truth_of_drawings import load_judge

parser = argparse.ArgumentParser(description="SAIL on the bundled text-to-image model.")
parser.add_argument("--quick", action="store_true", help="two captions, few steps")
parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the figure")
options, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own

# %% The model, what it has memorized, and what is usual among captions that it has not
devices.split_cpu()  # one device a core, before the first array
bench = sj.bench.drawings()
model, mesh = sj.load(bench.directory), devices.local_mesh()
memorized = [t.caption for t in bench.truths if t.verdict == "memorized"]
mixed = [t.caption for t in bench.truths if (t.verdict, t.kind) == ("memorized", "mixed")]
count, each = (2, 2) if options.quick else (4, 4)  # captions, noises of each
shown = mixed[:: len(mixed) // count][:count]  # of which the model knows other images too
clean = clean_prompts(bench.directory)[: 8 if options.quick else 40]
key = jax.random.key(0)
levels = sj.mitigation.calibrate(model, clean, key, names=("exact",), mesh=mesh)
limit = levels.threshold("exact", 0.5)
print(
    f"sharpness of {limit.num_prompts} clean captions: median {limit.value:.4f} "
    f"[{limit.low:.4f}, {limit.high:.4f}]"
)

# %% Optimise noises of each caption, to a tenth of that
t, steps = int(model.schedule.timesteps(50)[0]), 4 if options.quick else 25
score_difference = jax.jit(sj.detection.score_difference)
noises, optimised, shares, towards, elsewhere, official = [], [], [], [], [], []
planted = planted_drawings()
place = {planted.captions[i].caption: m for m, i in enumerate(planted.planted.tolist())}
fixed = planted.fixed_images()[[place[caption] for caption in memorized]]
images = np.asarray(model.encode_image(fixed))
directions = (images - images.mean(axis=0)).reshape(len(memorized), -1)
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
for number, caption in enumerate(shown):
    pair = model.scores(caption, t)
    noise = jax.random.normal(jax.random.fold_in(key, number), (4, *model.shape))[:each]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sailed = sj.mitigation.sail(
            pair, noise=noise, threshold=0.1 * limit.value, mesh=mesh,
            max_steps=3 if options.quick else 50,
        )  # fmt: skip
    lengths = [
        np.array([score_difference(pair, x) for x in batch]) for batch in (noise, sailed.noise)
    ]
    # L = |H_D s_D|^2 = |s_D|^2 |H_D e|^2 with e the direction of s_D: log L falls by two parts
    went = np.asarray(sailed.steps) > 0  # one that is flat enough already stays
    fall = np.log(sailed.after[went] / sailed.before[went])
    shares.append(2 * np.log(lengths[1] / lengths[0])[went] / fall)
    moved = np.asarray(sailed.noise - noise).reshape(each, -1)[went]
    cosines = moved @ directions.T / np.linalg.norm(moved, axis=1, keepdims=True)
    own = memorized.index(caption)
    towards.append(cosines[:, own])
    elsewhere.append(np.delete(cosines, own, axis=1).mean(axis=1))
    print(
        f"{caption}: sharpness {np.median(sailed.before):.4f} -> {np.median(sailed.after):.4f} in "
        f"{np.mean(sailed.steps):.0f} steps, |s_D| {lengths[0].mean():.2f} -> "
        f"{lengths[1].mean():.2f}, norm {np.mean([p.norm for p in sailed.plausibility]):.2f}"
    )
    noises.append(noise)
    optimised.append(sailed.noise)
    # a threshold below every loss: all of them go their ten steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sj.mitigation.sail_official(
            pair, key, noise=noise, num_noises=each, num_candidates=each, threshold=1e-6, retries=0,
            mesh=mesh,
        )  # fmt: skip
    official += [one.norm for one in theirs.plausibility]
print(
    f"of the fall of the loss (its logarithm) {np.median(np.concatenate(shares)):.0%} is a shorter "
    f"score difference, {1 - np.median(np.concatenate(shares)):.0%} a flatter landscape along it"
)
moves, others = np.concatenate(towards), np.concatenate(elsewhere)
error = np.std(moves) / np.sqrt(len(moves))
print(
    f"cosine of the noise's move and the caption's own memorized image (± standard error): "
    f"{moves.mean():+.3f} ± {error:.3f}; the other images: {others.mean():+.3f}"
)

# %% Sample both, count copies
judge, _ = load_judge(bench.directory, planted, model.vae)
contexts = jnp.repeat(model.encode(shown), each, axis=0)
prompts = [caption for caption in shown for _ in range(each)]
rows = [[caption] for caption in shown]
for name, start in (("without", noises), ("with SAIL", optimised)):
    pixels = model.sample(
        contexts, noise=jnp.concatenate(start), num_steps=steps, batch_size=8, mesh=mesh
    )
    verdict = judge(pixels, prompts)
    print(
        f"{name}: copies {verdict.copied.mean():.2f} (of another image {verdict.turned.mean():.2f})"
        f", thing shown {verdict.fidelity.mean():.2f}, both shown and no copy "
        f"{np.mean(~verdict.copied * verdict.fidelity):.2f}"
    )
    for i, row in enumerate(rows):
        mine = slice(each * i, each * (i + 1))
        row.append((pixels[mine], verdict.copied[mine]))
options.output.mkdir(parents=True, exist_ok=True)
path = plots.mosaic(
    [(row[0], row[1:]) for row in rows], options.output / "mitigate_drawings.png",
    title="without mitigation (left), with SAIL to a tenth of the clean median (right); red: copy",
)  # fmt: skip
print(f"written {path}")
before = np.mean([sj.mitigation.plausibility(x).norm for x in np.concatenate(noises)])
print(
    f"ten steps of the public code's loss: the noises' length over the usual one {before:.3f} -> "
    f"{np.mean(official):.3f}"
)
