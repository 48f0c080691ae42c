"""`sharpjax sample`: images of prompts, or of a model's conditions."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from sharpjax.commands.blocks import with_blocks
from sharpjax.commands.options import (
    FILES,
    ModelFiles,
    Output,
    Prompts,
    SeedOption,
    console,
    finite,
    of_option,
    tell_written,
)

_drawing = partial(typer.Option, rich_help_panel="How images are drawn")
_screening = partial(typer.Option, rich_help_panel="Without copies")


@with_blocks
def sample(
    *,
    model: ModelFiles,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A prompt, or a condition of a pixel model; repeat for more."),
    ] = None,
    file: Prompts,
    images: Annotated[int, typer.Option(min=1, help="Images a prompt.")] = 1,
    out: Output,
    seed: SeedOption = 0,
    steps: Annotated[int, _drawing(min=1, help="DDIM steps.")] = 50,
    guidance: Annotated[
        float | None,
        _drawing(
            callback=finite,
            help="Classifier-free guidance; 1 is none, and half the work. Default: what the "
            "model is meant for, 7.5 where it does not say; pixel models 1.",
        ),
    ] = None,
    negative: Annotated[str, _drawing(help="What guidance leads away from.")] = "",
    height: Annotated[int | None, _drawing(min=1, help="Pixels. Default: the model's own.")] = None,
    width: Annotated[int | None, _drawing(min=1, help="Pixels. Default: the model's own.")] = None,
    batch: Annotated[
        int | None,
        _drawing(
            min=1,
            help="Images at a time, which changes them by rounding. Default: 4; pixel models 64.",
        ),
    ] = None,
    screen: Annotated[
        Path | None,
        _screening(
            exists=True,
            dir_okay=False,
            help="What sharpjax screen wrote: paths that look like a copy half-way are dropped and "
            "begun again from another noise, up to 16 times, and without guidance at first. An "
            "image for which none passes is not drawn.",
        ),
    ] = None,
    dropped: Annotated[
        float | None,
        _screening(min=0, max=1, help="Share of clean prompts' paths that it drops. Default: 0.1."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(
            help="Of weights and arithmetic; bfloat16 takes half the memory.", rich_help_panel=FILES
        ),
    ] = "float32",
) -> None:
    """Draw images of prompts, or of a pixel model's conditions (default: all of them), if any.

    One PNG file each, and a line about it, in the run directory.  An image depends on the seed, the
    prompt, its number in the list and the image's number: prompts added at the end, and more images
    of each, leave the others as they are, and a run that was stopped goes on.
    """
    chosen = [*(prompt or []), *file.texts()]
    if dropped is not None and screen is None:
        raise ValueError("--dropped goes with --screen")
    opened = model.open(dtype=dtype)
    from sharpjax.mitigation.screen_calibration import ScreenCalibration
    from sharpjax.rundir.run import RESULTS_NAME
    from sharpjax.runs.sample import GRID_NAME, GenerationSettings, generate

    network = opened.network
    of_option("--steps", network.schedule.timesteps, steps)
    known = None if screen is None else ScreenCalibration.load(screen)
    if known is not None and (negative or height or width or not network.takes_prompts):
        raise ValueError("--screen is for prompts, without --negative, --height and --width")
    if not chosen and network.takes_prompts:
        raise ValueError("no prompts: give --prompt TEXT, repeated for more, or --prompts FILE")
    settings = GenerationSettings(
        num_steps=steps,
        guidance=guidance,
        negative_prompt=negative,
        height=height,
        width=width,
        seed=seed,
        screen=None if known is None else known.digest,
        dropped=None if known is None else 0.1 if dropped is None else dropped,
    )
    folder = opened.folder(out, "sample")
    records = generate(
        network,
        chosen or network.conditions or [""],  # of an unconditional one
        folder,
        settings,
        fingerprint=opened.fingerprint,
        num_images=images,
        batch_size=batch,
        screen=known,
    )
    refused = sum(record["file"] is None for record in records)
    opened.clock.record(folder)
    if out.as_json:
        print(json.dumps({"directory": str(folder), "images": records}))
        return
    if refused:
        console.print(
            f"{refused} of {len(records)} images were refused: none of their noises passed the "
            "screen."
        )
    tell_written(folder, [f"{len(records) - refused} files in images/", RESULTS_NAME, GRID_NAME])
