"""From which step on a training repeats images: the quick world's checkpoints, audited.

    python benchmarks/drawings_audit.py [--steps 1500] [--keep-every 150] [--output runs/...]

Trains the quick world of the drawings (a perceptron), keeps a model every so many steps, and runs
`sharpjax audit` on all of them.  Suspected are the repeated images of the verbatim captions;
held-out are the same drawings in other poses of the same kind, with the same captions: a model that
has learned what the caption shows, and not the one image of it, loses as much on either.
"""

import argparse
import csv
import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from sharpjax.datasets.poses import colour
from sharpjax.pictures import write_png
from sharpjax.recipes import drawings_quick as recipe
from sharpjax.runs.sample import to_picture
from sharpjax.training import Settings, averaged, kept_steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--keep-every", type=int, default=150)
    parser.add_argument("--output", type=Path, default=Path("runs/drawings-audit"))
    arguments = parser.parse_args()
    world, usual = recipe.quick_world(), recipe.QUICK_SETTINGS
    settings = Settings(steps=arguments.steps, batch_size=usual.batch_size,
                        learning_rate=usual.learning_rate)  # fmt: skip
    model = recipe.train_quick(
        arguments.output / "training", world, settings,
        keep_every=arguments.keep_every, checkpoint_every=arguments.keep_every,
    )  # fmt: skip
    folders = []
    for step in kept_steps(arguments.output / "training"):
        if step % arguments.keep_every == 0:
            unet = averaged(model.unet, arguments.output / "training", step)
            kept = dataclasses.replace(model, unet=unet)
            folders.append(kept.save_pretrained(arguments.output / "models" / f"{step:06d}"))
    planted = world.planted
    own = planted.of("verbatim")
    texts = [planted.captions[i].caption for i in own]
    rows = np.isin(planted.planted, own)
    suspected = planted.fixed_images()[rows]
    order = [texts.index(planted.captions[i].caption) for i in planted.planted[rows]]
    drawings = np.asarray(planted.fixed)[rows]
    colours = np.array([colour("")] * len(drawings), np.float32)
    held_out = planted.render(jax.random.key(1), drawings, colours, fixed=True)
    captions = [texts[i] for i in order]
    for name, images in (("suspected", suspected), ("held-out", held_out)):
        folder = arguments.output / name
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images):
            write_png(folder / f"{i:03d}.png", to_picture(np.asarray(image), name))
        with (folder / "metadata.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["file_name", "text"])
            table.writerows([f"{i:03d}.png", caption] for i, caption in enumerate(captions))
    prompts = arguments.output / "captions.txt"
    prompts.write_text("".join(f"{caption}\n" for caption in texts))
    subprocess.run(
        [sys.executable, "-m", "sharpjax", "audit", *map(str, folders),
         "--suspected", str(arguments.output / "suspected"),
         "--held-out", str(arguments.output / "held-out"), "--prompts", str(prompts),
         "--output", str(arguments.output / "audit")],
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
