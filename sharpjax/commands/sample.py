"""``sharpjax sample``: images of prompts, or of a model's conditions."""

import json
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import typer
from rich.markup import escape

from sharpjax.commands.options import (
    ANY_MODEL,
    MODEL_FILES,
    PROMPT_FILES,
    ColumnOption,
    FollowLinksOption,
    JsonOption,
    RevisionOption,
    SeedOption,
    VariantOption,
    console,
    run_name,
)
from sharpjax.generation import GRID_NAME, RESULTS_NAME, GenerationSettings, generate
from sharpjax.models.fingerprint import fingerprint
from sharpjax.models.load import find, load
from sharpjax.prompts import read_prompts
from sharpjax.provenance import Clock

_SAMPLER = "How images are drawn"  # a panel of the help


def sample(
    model: Annotated[str, typer.Option(help=ANY_MODEL)] = "mnist",
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A prompt, or a condition of a pixel model; repeat for more."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help=f"A file of prompts: {PROMPT_FILES}."),
    ] = None,
    column: ColumnOption = None,
    images: Annotated[int, typer.Option(min=1, help="Images a prompt.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option(help="Run directory; the same command resumes it. Default: runs/sample-NAME."),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    steps: Annotated[
        int, typer.Option(min=1, help="Sampler steps.", rich_help_panel=_SAMPLER)
    ] = 50,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Classifier-free guidance; 1 is none, and half the work. Default: 7.5; pixel "
            "models 1.",
            rich_help_panel=_SAMPLER,
        ),
    ] = None,
    eta: Annotated[
        float,
        typer.Option(
            help="Noise added on the way: 0 DDIM, 1 ancestral. Above 0, images are drawn one at a "
            "time.",
            rich_help_panel=_SAMPLER,
        ),
    ] = 0.0,
    negative: Annotated[
        str, typer.Option(help="What guidance leads away from.", rich_help_panel=_SAMPLER)
    ] = "",
    clip_skip: Annotated[
        int,
        typer.Option(
            min=0, help="Last layers of the text encoder to leave out.", rich_help_panel=_SAMPLER
        ),
    ] = 0,
    height: Annotated[
        int | None,
        typer.Option(help="Pixels. Default: the model's own.", rich_help_panel=_SAMPLER),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="Pixels. Default: the model's own.", rich_help_panel=_SAMPLER),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Images at a time; changes speed only. Default: 4; pixel models 64.",
            rich_help_panel=_SAMPLER,
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(
            help="Of weights and arithmetic; bfloat16 takes half the memory.",
            rich_help_panel=MODEL_FILES,
        ),
    ] = "float32",
    variant: VariantOption = None,
    revision: RevisionOption = None,
    follow_links: FollowLinksOption = False,
) -> None:
    """Draw images of prompts, or of a pixel model's conditions (default: all of them), if any.

    One PNG file each, and a line about it, in the run directory.  An image depends on the seed, the
    prompt, its number in the list and the image's number: prompts added at the end, and more images
    of each, leave the others as they are, and a run that was stopped goes on.
    """
    if column is not None and prompts is None:
        raise ValueError("--column names a column of the file that --prompts gives")
    read = read_prompts(prompts, column=column) if prompts else []
    chosen = [*(prompt or []), *read]
    clock = Clock(model)
    directory = find(model, variant=variant, revision=revision, follow_links=follow_links)
    network = load(directory, **({} if dtype == "float32" else {"dtype": getattr(jnp, dtype)}))
    if not chosen and not hasattr(network, "conditions"):
        raise ValueError("no prompts: give --prompt TEXT, repeated for more, or --prompts FILE")
    folder = output or Path("runs") / f"sample-{run_name(model, directory)}"
    records = generate(
        network,
        chosen or getattr(network, "conditions", ()) or [""],  # of an unconditional one
        folder,
        GenerationSettings(
            num_steps=steps,
            guidance=guidance,
            eta=eta,
            negative_prompt=negative,
            height=height,
            width=width,
            clip_skip=clip_skip,
            seed=seed,
        ),
        fingerprint=fingerprint(directory),
        num_images=images,
        batch_size=batch,
    )
    clock.record(folder)
    if as_json:
        print(json.dumps({"directory": str(folder), "images": records}))
        return
    console.print(
        f"Written to [bold]{escape(str(folder))}[/bold]: {len(records)} files in images/, "
        f"{RESULTS_NAME}, {GRID_NAME}"
    )
