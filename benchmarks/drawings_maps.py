"""Where templates are memorized, pixel by pixel: maps against the masks of what is repeated.

    python benchmarks/drawings_maps.py [--output runs/drawings-maps] [--figure maps.png]

Every template's caption is drawn once, and its map (`sharpjax.detection.maps`, 16 probes, the last
of 50 steps) compared with the template's exact mask: pixels that show the same drawing under eight
captions.  Beside it the cheap proxy of the same paper, the squared length of the score difference
at the same state, and two maps that know nothing of memory: how far a pixel's colour is from the
image's border (a template is a drawing on a plain ground, so this one cuts it out), and the
distance from the middle.

Prints the AUC of pixels, a mean over captions, and the IoU with the mask at one threshold, which
has the largest mean IoU on the *tuning* captions, on the test captions; 95% intervals from a
bootstrap of the drawings that the templates repeat, of which there are few.  The figure has images,
maps and masks of two grounds of each drawing.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import sharpjax as sj
from sharpjax.checkpoints.fingerprint import fingerprint
from sharpjax.detection.maps import pixel_auc, pixel_iou, to_pixels
from sharpjax.detection.trajectory import follow
from sharpjax.models.load import find
from sharpjax.pictures import read_picture, write_png
from sharpjax.report.maps import overlay
from sharpjax.runs.maps import MapSettings, maps

DRAWS, GRID = 10_000, 200


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="drawings")
    parser.add_argument("--output", type=Path, default=Path("runs/drawings-maps"))
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    directory = find(arguments.model).path
    model, bench = sj.load(arguments.model), sj.bench.drawings(directory)
    masks = bench.masks()
    truths = [t for t in bench.truths if t.kind == "template" and t.verdict == "memorized"]
    captions = [t.caption for t in truths]
    settings = MapSettings(guidance=model.default_guidance)
    records = maps(model, captions, arguments.output, settings, fingerprint=fingerprint(directory))
    images = [np.asarray(read_picture(arguments.output / r["image"]), float) for r in records]
    found = {
        "the map": [np.load(arguments.output / r["map"]) for r in records],
        "squared score difference": proxies(model, captions, settings),
        "distance from the border's colour": [from_border(image) for image in images],
        "nearness to the middle": [middle(image.shape[:2]) for image in images],
    }
    truth = [masks[caption] for caption in captions]
    tuning = np.array([t.part == "tuning" for t in truths])
    # captions of one template share its mask: that is the unit
    drawing = np.unique([m.tobytes() for m in truth], return_inverse=True)[1]
    print(f"{tuning.sum()} captions to choose a threshold, {(~tuning).sum()} to judge, of "
          f"{len(set(drawing[~tuning]))} drawings; the mask is "
          f"{np.mean([m.mean() for m in truth]):.2f} of an image\n")  # fmt: skip
    print("| map | AUC of pixels | threshold | IoU |\n| --- | --- | --- | --- |")
    for name, values in found.items():
        areas = np.array([pixel_auc(v, m) for v, m in zip(values, truth, strict=True)])
        grid = np.quantile(np.stack([v for v, t in zip(values, tuning, strict=True) if t]),
                           np.linspace(0.01, 0.99, GRID))  # fmt: skip
        overlaps = np.array([[pixel_iou(v, m, threshold=limit) for limit in grid]
                             for v, m in zip(values, truth, strict=True)])  # fmt: skip
        best = overlaps[tuning].mean(axis=0).argmax()
        cells = [mean_of(areas[~tuning], drawing[~tuning]), f"{grid[best]:.3g}",
                 mean_of(overlaps[~tuning, best], drawing[~tuning])]  # fmt: skip
        print(f"| {name} | {' | '.join(cells)} |")
    if arguments.figure is not None:
        draw(arguments.figure, images, found["the map"], truth, drawing)
    everything = [m.mean() for m, t in zip(truth, tuning, strict=True) if not t]
    print(f"| every pixel | .500 | | {mean_of(np.array(everything), drawing[~tuning])} |")


def proxies(model, captions, settings):
    """`(s_c - s_u)^2`, summed over channels, at the states of the maps."""
    key = jax.random.key(settings.seed)
    unit = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 0), 0), model.shape)
    noise = model.schedule.first_sigma * unit
    last = model.schedule.timesteps_with_signal(settings.num_steps)[-1].item()

    @jax.jit
    def one(model, context):
        path = follow(model, context, noise, num_steps=settings.num_steps,
                      guidance=settings.guidance)  # fmt: skip
        return (model.scores(context, last).difference(path.states[-2]) ** 2).sum(axis=0)

    contexts = model.encode(captions)
    return [to_pixels(np.asarray(one(model, c)), model.image_shape) for c in contexts]


def draw(path, images, values, truth, drawing):
    """Columns of an image, its map over it, and its mask."""
    scale = np.quantile(np.stack(values), 0.99)
    chosen = [i for d in np.unique(drawing) for i in np.flatnonzero(drawing == d)[:2]]
    columns = []
    for i in chosen:
        image = Image.fromarray(images[i].astype(np.uint8))
        mask = np.repeat(255 * truth[i].astype(np.uint8)[..., None], 3, axis=-1)
        column = [np.asarray(image), np.asarray(overlay(image, values[i] / scale)), mask]
        columns.append(np.concatenate([np.pad(x, ((2, 2), (2, 2), (0, 0))) for x in column]))
    picture = Image.fromarray(np.concatenate(columns, axis=1))
    write_png(path, picture.resize((2 * picture.width, 2 * picture.height), Image.NEAREST))


def from_border(image):
    """How far a pixel is from the median colour of the border."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return np.linalg.norm(image - np.median(border, axis=0), axis=-1)


def middle(shape):
    y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
    return -np.hypot(y[:, None], x)


def mean_of(values, units):
    """The mean with a 95% interval, units drawn again with all of their captions."""
    rng = np.random.default_rng(0)
    names = np.unique(units)
    sums = np.array([[values[units == u].sum(), (units == u).sum()] for u in names])
    drawn = sums[rng.integers(len(names), size=(DRAWS, len(names)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
