"""Screened sampling where everything is known: copies as a function of q, guidance and dimension.

    python benchmarks/screen_closed_forms.py [--images 64] [--json PATH]

A world of 12 things, each a Gaussian of rank 24 about a mean of its own, with exact scores.  Under
the prompt of a thing an example is one fixed point with probability q, and else of the thing.  A
sampler copies where it ends at that point (nearer than a third of the thing's width), and shows
the right thing where it ends nearer to its mean than to any other.  Of every q, guidance and
dimension: without a cure, without guidance in the first 30% of the steps, that and the best of 5 by
a look, and that and a screen whose threshold is the 5% quantile of prompts with q = 0.

SAIL moves the noise until its sharpness is 0.3 of the median of clean prompts, without and with its
penalty of the length, and then samples with guidance from the first step; `SAIL, screened` begins
its tries there.

Shown are the shares of copies and of images of the right thing that are no copies, of refused ones
where there are any, and what an image costs; a look is 9 evaluations, in every row but SAIL's too.
"""

import argparse
import dataclasses
import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax import PixelDiffusion, Schedule
from sharpjax.densities import LowRankMixture
from sharpjax.mitigation import calibrate, sail
from sharpjax.mitigation.screen import Look, ranked, screened
from sharpjax.networks.mixture_denoiser import MixtureDenoiser

THINGS, RANK, STEPS, FREE = 12, 24, 50, 0.3
SHARES = (0.0, 0.25, 0.5, 0.75, 0.95, 0.999)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def world(dimension, shares, seed=0):
    """A model whose conditions are one thing of each share, `q=...`, the others with q = 0."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(THINGS, dimension)) * 0.8
    directions = np.stack([np.linalg.qr(rng.normal(size=(dimension, RANK)))[0].T] * THINGS)
    for own in directions[1:]:
        own[:] = np.linalg.qr(rng.normal(size=(dimension, RANK)))[0].T
    width = np.sqrt(0.36 * dimension / RANK)
    fixed = means[: len(shares)] + np.einsum(
        "nr,nrd->nd", rng.normal(size=(len(shares), RANK)) * width, directions[: len(shares)]
    )
    shape = (dimension, 1, 1)
    flat = np.zeros((len(shares), RANK, dimension))
    mixture = LowRankMixture(
        np.full(THINGS + len(shares), 1 / (THINGS + len(shares))),
        np.concatenate([means, fixed]).reshape(-1, *shape),
        np.concatenate([directions, flat]).reshape(-1, RANK, *shape),
        np.concatenate([np.full((THINGS, RANK), width**2), np.zeros((len(shares), RANK))]),
        np.full(THINGS + len(shares), 1e-4),
    )
    weights = np.zeros((THINGS + 1, THINGS + len(shares)))
    weights[:THINGS, :THINGS] = np.eye(THINGS)
    for i, q in enumerate(shares):
        weights[i, i], weights[i, THINGS + i] = 1 - q, q
    weights[-1] = weights[:-1].mean(axis=0)
    schedule = Schedule.create(**BETAS)
    names = [f"thing {i}" for i in range(THINGS)]
    model = PixelDiffusion(
        MixtureDenoiser(mixture, jnp.asarray(weights, jnp.float32), schedule), schedule, names
    )
    return model, means, fixed, width * np.sqrt(RANK)


def outcomes(examples, accepted, row, means, fixed, width):
    """Copies among all images, right and no copy among all, and refused ones."""
    flat = examples.reshape(len(examples), -1)
    near = np.linalg.norm(flat - fixed[row], axis=1) < width / 3
    thing = np.argmin(((flat[:, None] - means) ** 2).sum(axis=2), axis=1)
    copies = accepted & near
    right = accepted & ~near & (thing == row)
    return copies.mean(), right.mean(), 1 - accepted.mean()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64, help="of each q")
    parser.add_argument("--dimensions", default="64,256", help="with commas between")
    parser.add_argument("--guidance", default="3,7.5", help="with commas between")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    options = parser.parse_args()
    rows = []
    for dimension in map(int, options.dimensions.split(",")):
        model, means, fixed, width = world(dimension, SHARES)
        for guidance in map(float, options.guidance.split(",")):
            rows += compared(model, means, fixed, width, guidance, options.images)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def sailed(model, names, key, images, usual, penalty):
    """Noises `(conditions, images, *shape)` that SAIL moves to, and what each cost."""
    first = model.schedule.timesteps_with_signal(STEPS)[0]
    noises, spent = [], []
    for row, name in enumerate(names):
        drawn = jax.random.normal(jax.random.fold_in(key, row), (images, *model.shape))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of implausible ones
            found = sail(
                model.scores(name, int(first)), noise=drawn, threshold=0.3 * usual, penalty=penalty
            )
        noises.append(np.asarray(found.noise))
        spent.append(12 * (found.steps + 1))
    return np.stack(noises), np.stack(spent)


def compared(model, means, fixed, width, guidance, images):
    """One table."""
    common = {"guidance": guidance, "num_steps": STEPS, "batch_size": 32}
    others = [f"thing {i}" for i in range(len(SHARES), THINGS)]
    clean = model.encode(others)
    names = model.encode([f"thing {i}" for i in range(len(SHARES))])
    key, other = jax.random.key(0), jax.random.key(1)
    # what is usual, on prompts without a fixed point and noises of their own
    half = Look(quantity="effective_dimension", step=STEPS // 2)
    usual = ranked(model, clean, other, look=half, num_tries=1, num_images=16, free=FREE, **common)
    values = np.array([v[0] for row in usual.values for image in row for v in image])
    screen = Look(
        quantity="effective_dimension", step=STEPS // 2, threshold=float(np.quantile(values, 0.05))
    )
    early = Look(quantity="score_difference", step=round(FREE * STEPS) + 1)
    given = {"num_images": images, **common}
    levels = calibrate(
        model, [f"thing {i}" for i in range(len(SHARES), THINGS)], other, names=["exact"]
    )
    usual, size = levels.threshold("exact", 0.5).value, int(np.prod(model.shape))
    moved = [sailed(model, names, key, images, usual, a) for a in (0.0, usual / size)]
    found = {
        "plain": ranked(model, names, key, look=half, num_tries=1, free=0.0, **given),
        "no guidance at first": ranked(
            model, names, key, look=half, num_tries=1, free=FREE, **given
        ),
        "best of 5, |s_D|": ranked(model, names, key, look=early, num_tries=5, free=FREE, **given),
        "best of 5, tr K": ranked(model, names, key, look=half, num_tries=5, free=FREE, **given),
        "screened": screened(model, names, key, looks=[screen], free=FREE, **given),
    }
    for name, (noise, spent) in zip(("SAIL", "SAIL, penalty"), moved, strict=True):
        one = ranked(model, names, key, look=half, num_tries=1, free=0.0, noise=noise, **given)
        found[name] = dataclasses.replace(one, evaluations=one.evaluations + spent)
    noise, spent = moved[1]
    one = screened(model, names, key, looks=[screen], free=FREE, noise=noise, **given)
    found["SAIL, screened"] = dataclasses.replace(one, evaluations=one.evaluations + spent)
    rows = []
    for i, q in enumerate(SHARES):
        for name, one in found.items():
            copies, right, refused = outcomes(
                one.examples[i], one.accepted[i], i, means, fixed, width
            )
            rows.append(
                {
                    "dimension": size, "guidance": guidance, "images": images, "q": q,
                    "method": name, "copies": float(copies), "right": float(right),
                    "refused": float(refused), "evaluations": float(one.evaluations[i].mean()),
                }
            )  # fmt: skip
    print(table(rows), flush=True)
    return rows


def table(rows):
    """Of one dimension and guidance: a line a method, a column a share."""
    first = rows[0]
    lines = [
        f"\n{first['dimension']} dimensions, guidance {first['guidance']:g}, {first['images']} "
        "images of each q: copies|right (refused)",
        f"{'q':22}" + "".join(f"{q:>17g}" for q in SHARES),
    ]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        cells = ""
        for row in own:
            refused = f" ({row['refused']:.2f})" if row["refused"] else ""
            cells += f"{row['copies']:.2f}|{row['right']:.2f}{refused}".rjust(17)
        lines.append(f"{method:22}{cells}")
    lines.append("evaluations an image")
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        lines.append(f"{method:22}" + "".join(f"{row['evaluations']:17.0f}" for row in own))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
