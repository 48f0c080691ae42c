"""Which finished images of the drawings are copies, without their prompts: by statistic and level.

    python benchmarks/drawings_images.py --model drawings [--captions 6] [--images 4]

Samples of memorized captions (every kind and share) and of clean ones (every breadth, hot and
held-out), each labelled by the judge: a copy or none.  About each, from the unconditional score
alone: the flux of the p-Laplacian, the effective dimension tr K, the local dimension FLIPD and the
denoising loss, at several levels; and of each statistic the mean of its levels, standardised on
the clean tuning images.  Small values mean a copy, of all of them.

One statistic is chosen, by its AUC over the images of the tuning captions; then the AUCs on the
test captions are printed, of the chosen one and of all, with intervals: against all clean images,
against those of each kind, and against clean images that are as complex (the length of a PNG file).
An image is no unit here: images of one caption are alike, so intervals are by the caption (its
mean).  The samples and values are kept in `--output`; needs the `datasets` extra.
"""

import argparse
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import sharpjax as sj
from sharpjax.conditional import unconditional_pair
from sharpjax.datasets.planted_drawings import planted_drawings
from sharpjax.detection.evaluation import evaluate
from sharpjax.detection.statistics import p_laplacian
from sharpjax.dimension import denoising_loss, flipd
from sharpjax.models.load import find
from sharpjax.runs.cases import own_cases
from sharpjax.runs.sample import to_picture
from sharpjax.runs.truth_of_drawings import load_judge

STEPS, BATCH = 25, 8
LEVELS = {
    "effective_dimension": (100, 400),
    "denoising_loss": (50, 200, 400),
    "flipd": (50, 200),
    "p_laplacian": (10, 100, 400),
}
DIRECTIONS, PROBES, NOISES = 32, 8, 4


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="drawings")
    parser.add_argument("--output", type=Path, default=Path("runs/drawings-images"))
    parser.add_argument("--captions", type=int, default=6, help="of each kind and part")
    parser.add_argument("--images", type=int, default=4, help="of each caption")
    arguments = parser.parse_args()
    directory = find(arguments.model).path
    model, planted = sj.load(arguments.model), planted_drawings()
    judge, _ = load_judge(directory, planted, model.vae)
    cases = chosen(own_cases(model, directory, (), everything=True), arguments.captions)
    captions = [case.condition for case in cases]
    arguments.output.mkdir(parents=True, exist_ok=True)
    images = drawn(model, captions, arguments)
    copied = judge(images, np.repeat(captions, arguments.images).tolist()).copied
    values = measured(model, images, arguments.output / "values.npz")
    kinds = np.repeat([case.source for case in cases], arguments.images)
    clean = np.repeat([case.verdict == "clean" for case in cases], arguments.images) & ~copied
    tuning = np.repeat([case.part == "tuning" for case in cases], arguments.images)
    caption = np.repeat(np.arange(len(cases)), arguments.images)
    size = np.array([png_length(image) for image in images])
    for name in LEVELS:
        own = np.stack([values[f"{name}@{t}"] for t in LEVELS[name]])
        usual = own[:, clean & tuning]
        scores = (own - usual.mean(axis=1, keepdims=True)) / usual.std(axis=1, keepdims=True)
        values[f"{name}, levels joined"] = scores.mean(axis=0)

    def auc(name, part, others):
        """Of captions: the mean over a caption's copies, and over a clean caption's images."""
        found, labels = [], []
        for i in np.unique(caption[part]):
            for label, rows in ((True, copied), (False, others & ~copied)):
                own = part & rows & (caption == i)
                if own.any():
                    found.append(-values[name][own].mean())
                    labels.append(label)
        return evaluate(np.array(found), np.array(labels)).auc

    tried = {name: auc(name, tuning, clean).value for name in values}
    best = max(tried, key=tried.get)
    print(f"{copied.sum()} copies, {clean.sum()} images of clean captions; chosen of {len(tried)} "
          f"on tuning captions: {best} (AUC {tried[best]:.3f} there)\n")  # fmt: skip
    sources = sorted(set(kinds[clean]))
    alike = clean & as_complex(size, copied & ~tuning, clean & ~tuning)
    print(f"| statistic | tuning | test | as complex | {' | '.join(sources)} |")
    print("| --- " * (4 + len(sources)) + "|")
    for name in sorted(values, key=lambda n: -tried[n]):
        cells = [f"{tried[name]:.3f}", auc(name, ~tuning, clean), auc(name, ~tuning, alike)]
        cells += [auc(name, ~tuning, clean & (kinds == source)) for source in sources]
        print(f"| `{name}` | {' | '.join(map(str, cells))} |", flush=True)


def chosen(cases, count):
    """So many memorized and clean captions of every kind and part."""
    found, counts = [], {}
    for case in cases:
        if case.verdict in ("memorized", "clean"):
            key = case.verdict, case.source, case.part
            counts[key] = counts.get(key, 0) + 1
            if counts[key] <= count:
                found.append(case)
    return found


def drawn(model, captions, arguments):
    """`(n, 3, h, w)`, from the file if they are there."""
    path = arguments.output / "images.npz"
    if path.is_file() and (kept := np.load(path))["captions"].tolist() == captions:
        return kept["images"]
    images = np.clip(
        model.sample(
            captions, jax.random.key(11), num_images=arguments.images, num_steps=STEPS,
            batch_size=32,
        ), -1, 1,
    )  # fmt: skip
    np.savez(path, captions=captions, images=images)
    return images


def measured(model, images, path):
    """`(n,)` of every statistic and level, about the encoded image; kept one by one."""
    found = dict(np.load(path)) if path.is_file() else {}
    key = jax.random.key(0)
    latents = jnp.concatenate(
        [jnp.asarray(model.encode_image(images[i : i + 64])) for i in range(0, len(images), 64)]
    )
    functions = {"p_laplacian": flux, "effective_dimension": open_directions,
                 "flipd": local, "denoising_loss": loss}  # fmt: skip
    for name, t in ((name, t) for name, levels in LEVELS.items() for t in levels):
        if len(found.get(f"{name}@{t}", ())) == len(images):
            continue

        @jax.jit
        def every(model, latents, name=name, t=t):
            one = lambda z: functions[name](model, z, t, key)
            return jax.lax.map(one, latents, batch_size=BATCH)

        found[f"{name}@{t}"] = np.asarray(every(model, latents))
        np.savez(path, **found)
        print(f"measured {name}@{t}", flush=True)
    return {name: found[name] for name in (f"{n}@{t}" for n, ts in LEVELS.items() for t in ts)}


def flux(model, z, t, key):
    pair = unconditional_pair(model, t)
    return p_laplacian(pair, z, key=key, p=1.0, num_directions=DIRECTIONS)


def open_directions(model, z, t, key):
    """tr K at noised images, the mean over two noises."""
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    score = model.unconditional(t)

    def at(key):
        noise, probes = jax.random.split(key)
        x = alpha * z + sigma * jax.random.normal(noise, z.shape)
        found = sj.curvature.effective_dimension(
            score, x, sigma=sigma, key=probes, num_matvecs=PROBES
        )
        return found.value

    return jnp.mean(jax.vmap(at)(jax.random.split(key, 2)))


def local(model, z, t, key):
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    found = flipd(model.unconditional(t), z, alpha=alpha, sigma=sigma, key=key, num_matvecs=PROBES)
    return found.value


def loss(model, z, t, key):
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    found = denoising_loss(
        model.unconditional(t), z, alpha=alpha, sigma=sigma, key=key, num_samples=NOISES
    )
    return found.value


def as_complex(size, positives, negatives):
    """Of the negatives, for each positive in turn the free one that is nearest in size."""
    chosen, free = np.zeros(len(size), bool), set(np.flatnonzero(negatives).tolist())
    for i in np.flatnonzero(positives):
        if free:
            nearest = min(free, key=lambda j: (abs(size[j] - size[i]), j))
            free.remove(nearest)
            chosen[nearest] = True
    return chosen


def png_length(image):
    file = io.BytesIO()
    to_picture(image, "a drawing").save(file, "png", optimize=True)
    return len(file.getvalue())


if __name__ == "__main__":
    main()
