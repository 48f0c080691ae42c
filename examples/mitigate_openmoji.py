# %% [markdown]
# # SAIL on the bundled text-to-image model, step by step, and where its noises go
#
# Optimises the initial noises of memorized captions until their sharpness is a fraction of what is
# usual for clean captions, samples with and without, counts copies, and takes the loss apart: how
# much of its fall is a flatter landscape, and how much a shorter score difference? `sharpjax
# mitigate --compare` does this for every method; see docs/mitigation.md.
#
# `python examples/mitigate_openmoji.py [--quick] [--output DIR]`

# %%
import argparse
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import sharpjax as sj
from sharpjax import devices, plots, zoo
from sharpjax.datasets.openmoji import planted_pictograms
from sharpjax.detection.truth import read_truths
from sharpjax.judging import PictogramJudge
from sharpjax.models.checkpoints import from_pretrained
from sharpjax.replication import CaptionTruth, clean_captions, control

parser = argparse.ArgumentParser(description="SAIL on the bundled text-to-image model.")
parser.add_argument("--quick", action="store_true", help="two captions, few steps")
parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the figure")
options, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own

# %% The model, what it has memorized, and what is usual among captions that it has not
devices.split_cpu()  # one device a core, before the first array
folder, model, mesh = zoo.find("openmoji"), sj.load("openmoji"), devices.local_mesh()
truths = read_truths(folder, CaptionTruth)
memorized = [t.caption for t in truths if t.verdict == "memorized"]
count = 2 if options.quick else 4
shown = memorized[:: len(memorized) // count][:count]
clean = clean_captions(folder / "captions.csv")[: 8 if options.quick else 40]
key = jax.random.key(0)
levels = sj.mitigation.calibrate(model, clean, key, names=("exact",), mesh=mesh)
limit = levels.threshold("exact", 0.5)
print(
    f"sharpness of {limit.num_prompts} clean captions: median {limit.value:.4f} "
    f"[{limit.low:.4f}, {limit.high:.4f}]"
)

# %% Optimise four noises of each caption, to a tenth of that
t, guidance, steps = int(model.schedule.timesteps(50)[0]), 3.0, 4 if options.quick else 25
score_difference = jax.jit(sj.detection.score_difference)
noises, optimised, shares, towards, elsewhere = [], [], [], [], []
pictograms = planted_pictograms()
index = [pictograms.captions.index(caption) for caption in memorized]
images = np.asarray(model.encode_image(pictograms.fixed_images(np.array(index))))
directions = (images - images.mean(axis=0)).reshape(len(memorized), -1)
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
for number, caption in enumerate(shown):
    pair = model.scores(caption, t)
    noise = jax.random.normal(jax.random.fold_in(key, number), (4, *model.shape))
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
    shares.append(2 * np.log(lengths[1] / lengths[0]) / np.log(sailed.after / sailed.before))
    moved = np.asarray(sailed.noise - noise).reshape(4, -1)
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
print(
    f"of the fall of the loss (its logarithm) {np.median(shares):.0%} is a shorter score "
    f"difference, {1 - np.median(shares):.0%} a flatter landscape along it"
)
error = np.std(np.concatenate(towards)) / np.sqrt(4 * len(shown))
print(
    f"cosine of the noise's move and the caption's own memorized image: "
    f"{np.mean(towards):+.3f} ± {error:.3f}; the other images: {np.mean(elsewhere):+.3f}"
)

# %% Sample both, count copies
judge = PictogramJudge(
    pictograms, memorized, control(model, pictograms, repeats=1 if options.quick else 8).threshold,
    from_pretrained(folder / "classifier"),
)  # fmt: skip
contexts = jnp.repeat(model.encode(shown), 4, axis=0)
prompts = [caption for caption in shown for _ in range(4)]
rows = [[caption] for caption in shown]
for name, start in (("without", noises), ("with SAIL", optimised)):
    pixels = model.sample(
        contexts, noise=jnp.concatenate(start), guidance=guidance, num_steps=steps, batch_size=8,
        mesh=mesh,
    )  # fmt: skip
    verdict = judge(pixels, prompts)
    print(
        f"{name}: copies {verdict.copied.mean():.2f} (of another image {verdict.turned.mean():.2f})"
        f", concept shown {verdict.fidelity.mean():.2f}, both shown and no copy "
        f"{np.mean(~verdict.copied * verdict.fidelity):.2f}"
    )
    for i, row in enumerate(rows):
        row.append((pixels[4 * i : 4 * i + 4], verdict.copied[4 * i : 4 * i + 4]))
options.output.mkdir(parents=True, exist_ok=True)
path = plots.before_and_after(
    rows, options.output / "mitigate_openmoji.png",
    title="without mitigation (left), with SAIL to a tenth of the clean median (right); red: copy",
)  # fmt: skip
print(f"written {path}")
