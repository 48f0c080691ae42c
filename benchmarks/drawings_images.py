"""Which finished images of the drawings are copies, without their prompts: by statistic and level.

    python benchmarks/drawings_images.py --model drawings [--captions 6] [--images 4]

Samples of memorized captions (every kind and share) and of clean ones (every breadth, hot and
held-out), each labelled by the judge: a copy or none.  About each, from the unconditional score
alone: the flux of the p-Laplacian, the effective dimension tr K, the local dimension FLIPD and the
denoising loss, at several levels; and of each statistic the mean of its levels, standardised on
the clean tuning images.  Small values mean a copy, of all of them.

And under a caption that the classifier guesses from the image, `tr K` and the length of the gap.

One statistic is chosen, by its AUC over the images of the tuning captions; then the AUCs on the
test captions are printed, of the chosen one and of all, with intervals: against all clean images,
against those of each kind, and against clean images that are as complex (the length of a PNG file).
An image is no unit here: images of one caption are alike, so intervals are by the caption (its
mean).

With `--why`, what none of them can choose, because it needs what a user has not: the same of the
exact score of the training data without a caption (`latent_world`), of the network under each
image's own caption, and of the network without a caption about images *that are no samples*, the
repeated images themselves and fresh renderings of clean captions.  They tell whether what is missed
is not in the data, not in the unconditional score, or covered up by how this network draws.

The samples and values are kept in `--output`; needs the `datasets` extra.
"""

import argparse
import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sharpjax as sj
from sharpjax.datasets.planted_drawings import MAKER_WORDS, planted_drawings
from sharpjax.detection.evaluation import evaluate
from sharpjax.detection.statistics import p_laplacian
from sharpjax.dimension import denoising_loss, flipd
from sharpjax.mitigation.drawing_judge import NOTHING
from sharpjax.models.load import find
from sharpjax.recipes.drawings_quick import latent_world
from sharpjax.runs.cases import own_cases
from sharpjax.runs.sample import to_picture
from sharpjax.runs.truth_of_drawings import load_judge
from sharpjax.score import ScorePair

STEPS, BATCH = 25, 8
LEVELS = {
    "effective_dimension": (100, 400),
    "denoising_loss": (50, 200, 400),
    "flipd": (50, 200),
    "p_laplacian": (10, 100, 400),
}
GUESSED = {"effective_dimension": (400,), "gap": (400,)}
WITH_CAPTION = {"effective_dimension": (100, 400), "p_laplacian": (10, 400)}
EXACT = {"effective_dimension": (100, 400), "p_laplacian": (10, 100, 400), "denoising_loss": (400,)}
DIRECTIONS, PROBES, NOISES, RENDERINGS = 32, 8, 4, 4


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="drawings")
    parser.add_argument("--output", type=Path, default=Path("runs/drawings-images"))
    parser.add_argument("--captions", type=int, default=6, help="of each kind and part")
    parser.add_argument("--images", type=int, default=4, help="of each caption")
    parser.add_argument("--why", action="store_true", help="also what a user has not")
    arguments = parser.parse_args()
    directory = find(arguments.model).path
    model, planted = sj.load(arguments.model), planted_drawings()
    judge, _ = load_judge(directory, planted, model.vae)
    cases = chosen(own_cases(model, directory, (), everything=True), arguments.captions)
    captions = [case.condition for case in cases]
    arguments.output.mkdir(parents=True, exist_ok=True)
    images = drawn(model, captions, arguments)
    copied = judge(images, np.repeat(captions, arguments.images).tolist()).copied
    of_network = functools.partial(measured, Network(model), folder=arguments.output)
    latents = encoded(model, images)
    values = of_network("values", LEVELS, latents, None)
    guessed = of_network("guessed", GUESSED, latents, model.encode(guesses(judge, images)))
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
    values |= {f"{name}, guessed caption": guessed[name] for name in guessed}

    told = Told(caption, copied, clean, tuning)
    tried = {name: told.auc(values[name], tuning).value for name in values}
    best = max(tried, key=tried.get)
    print(f"{copied.sum()} copies, {clean.sum()} images of clean captions; chosen of {len(tried)} "
          f"on tuning captions: {best} (AUC {tried[best]:.3f} there)\n")  # fmt: skip
    sources = sorted(set(kinds[clean]))
    alike = clean & as_complex(size, copied & ~tuning, clean & ~tuning)
    print(f"| statistic | tuning | test | as complex | {' | '.join(sources)} |")
    print("| --- " * (4 + len(sources)) + "|")
    for name in sorted(values, key=lambda n: -tried[n]):
        cells = [
            f"{tried[name]:.3f}",
            told.auc(values[name], ~tuning),
            told.auc(values[name], ~tuning, alike),
        ]
        cells += [told.auc(values[name], ~tuning, clean & (kinds == source)) for source in sources]
        print(f"| `{name}` | {' | '.join(map(str, cells))} |", flush=True)
    if not arguments.why:
        return
    print("\n| score | statistic | tuning | test |\n" + "| --- " * 4 + "|")

    def rows(who, told, found):
        for name, value in found.items():
            cells = [told.auc(value, part) for part in (told.tuning, ~told.tuning)]
            print(f"| {who} | `{name}` | {cells[0]} | {cells[1]} |", flush=True)

    own = model.encode(np.repeat(captions, arguments.images).tolist())
    rows("its own caption", told, of_network("own-caption", WITH_CAPTION, latents, own))
    of_exact = functools.partial(
        measured, Exact(latent_world(model.vae, planted).exact()), folder=arguments.output
    )
    rows("exact score", told, of_exact("exact", EXACT, latents, None))
    shown, which = training_images(planted, cases)
    repeated = np.isin(which, memorized(cases))
    of_tuning = np.array([cases[i].part == "tuning" for i in which])
    told = Told(which, repeated, ~repeated, of_tuning)
    latents = encoded(model, shown)
    rows("training images", told, of_network("training", LEVELS, latents, None))
    exactly = of_exact("training-exact", EXACT, latents, None)
    rows("training images, exact score", told, exactly)


@dataclasses.dataclass(frozen=True)
class Told:
    """Of images `(n,)`: their caption's number, and which are copies, clean, of the tuning part."""

    caption: np.ndarray
    copied: np.ndarray
    clean: np.ndarray
    tuning: np.ndarray

    def auc(self, values, part, others=None):
        """Of captions: the mean over a caption's copies, and over a clean caption's images."""
        others = self.clean if others is None else others
        found, labels = [], []
        for i in np.unique(self.caption[part]):
            for label, rows in ((True, self.copied), (False, others & ~self.copied)):
                own = part & rows & (self.caption == i)
                if own.any():
                    found.append(-values[own].mean())
                    labels.append(label)
        return evaluate(np.array(found), np.array(labels)).auc


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


def guesses(judge, images):
    """A caption of each image, of the thing and maker that the classifier sees; "" of nothing."""
    found = []
    for thing, maker in zip(*judge.shown(images), strict=True):
        maker = "" if maker == NOTHING else f" by {MAKER_WORDS.get(maker, maker)}"
        found.append("" if thing == NOTHING else thing + maker)
    return found


def memorized(cases):
    return [i for i, case in enumerate(cases) if case.verdict == "memorized"]


def training_images(planted, cases):
    """Repeated images of memorized captions, then fresh ones of clean captions; and whose."""
    place = {case.condition: i for i, case in enumerate(cases)}
    names = [caption.caption for caption in planted.captions]
    repeated = {cases[i].condition for i in memorized(cases)}
    kept = [k for k, i in enumerate(planted.planted) if names[i] in repeated]
    which = [place[names[planted.planted[k]]] for k in kept]
    fresh = [i for i, case in enumerate(cases) if case.verdict == "clean"] * RENDERINGS
    index = np.array([names.index(cases[i].condition) for i in fresh])
    images = planted.fresh_images(jax.random.key(12), index)
    return np.concatenate([planted.fixed_images()[kept], images]), np.array(which + fresh)


def encoded(model, images):
    return jnp.concatenate(
        [jnp.asarray(model.encode_image(images[i : i + 64])) for i in range(0, len(images), 64)]
    )


def measured(who, block, wanted, latents, conditions, *, folder):
    """`(n,)` of every statistic and level about the latents; kept one by one in the folder."""
    path = folder / f"{block}.npz"
    found = dict(np.load(path)) if path.is_file() else {}
    names = {f"{name}@{t}": (name, t) for name, levels in wanted.items() for t in levels}
    for column, (name, t) in names.items():
        if len(found.get(column, ())) == len(latents):
            continue
        level = {"alpha": who.schedule.alpha(t), "sigma": who.schedule.sigma(t)}

        @jax.jit
        def every(who, latents, conditions, name=name, t=t, level=level):
            one = lambda own: getattr(who, name)(*own, t, **level)
            return jax.lax.map(one, (latents, conditions), batch_size=who.batch)

        found[column] = np.asarray(every(who, latents, conditions))
        np.savez(path, **found)
        print(f"measured {path.stem} {column}", flush=True)
    return {column: found[column] for column in names}


KEY = functools.partial(jax.random.key, 0)


def noised(z, *, alpha, sigma):
    """Two noised images, the same noise of all, with a key each."""
    noises = jax.vmap(jax.random.split)(jax.random.split(KEY(), 2))
    draws = jax.vmap(lambda key: jax.random.normal(key, z.shape))(noises[:, 0])
    return alpha * z + sigma * draws, noises[:, 1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Network:
    """Estimates by a model's score, under a condition or none."""

    model: Any
    batch = BATCH

    @property
    def schedule(self):
        return self.model.schedule

    def score(self, condition, t):
        if condition is None:
            return self.model.unconditional(t)
        return self.model.scores(condition, t).conditional

    def p_laplacian(self, z, condition, t, *, alpha, sigma):
        score = self.score(condition, t)
        pair = ScorePair(score, score, alpha, sigma)
        return p_laplacian(pair, z, key=KEY(), p=1.0, num_directions=DIRECTIONS)

    def effective_dimension(self, z, condition, t, **level):
        """tr K at noised images, the mean over two noises."""
        score, sigma = self.score(condition, t), level["sigma"]

        def at(x, key):
            found = sj.curvature.effective_dimension(
                score, x, sigma=sigma, key=key, num_matvecs=PROBES
            )
            return found.value

        return jnp.mean(jax.vmap(at)(*noised(z, **level)))

    def flipd(self, z, condition, t, **level):
        found = flipd(self.score(condition, t), z, **level, key=KEY(), num_matvecs=PROBES)
        return found.value

    def denoising_loss(self, z, condition, t, **level):
        found = denoising_loss(self.score(condition, t), z, **level, key=KEY(), num_samples=NOISES)
        return found.value

    def gap(self, z, condition, t, **level):
        """Minus the length of the score difference, so that small means a copy."""
        pair = self.model.scores(condition, t)
        difference = lambda x: jnp.linalg.norm(pair.conditional(x) - pair.unconditional(x))
        return -jnp.mean(jax.vmap(difference)(noised(z, **level)[0]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Exact(Network):
    """Closed forms of the noised training data; the p-Laplacian at the sphere's middle."""

    batch = 1  # more hold the distances to all components each

    def density(self, **level):
        unet = self.model.unet
        return unet.mixture.reweighted(unet.shares[...][-1]).noised(level["alpha"], level["sigma"])

    def score(self, condition, t):
        return self.density(alpha=self.schedule.alpha(t), sigma=self.schedule.sigma(t)).score

    def p_laplacian(self, z, condition, t, **level):
        return self.density(**level).p_laplacian(level["alpha"] * z, 1.0)

    def effective_dimension(self, z, condition, t, **level):
        points = noised(z, **level)[0]
        return jnp.mean(jax.lax.map(self.density(**level).effective_dimension, points))


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
