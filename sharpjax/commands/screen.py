"""`sharpjax screen`: set the screen of screened sampling, and bound what it misses."""

import json
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from sharpjax.commands.blocks import with_blocks
from sharpjax.commands.judges import JudgeFiles
from sharpjax.commands.options import (
    Devices,
    ModelFiles,
    Output,
    Prompts,
    SeedOption,
    finite,
    of_option,
    tell_written,
    wide_console,
)
from sharpjax.prompts import read_prompts


@with_blocks
def screen(
    *,
    model: ModelFiles,
    file: Prompts,
    clean: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts that are certainly not memorized, of the kind that will be asked "
            "for: they set thresholds. Default: the model's own, where it has some."
        ),
    ] = None,
    out: Output,
    quantity: Annotated[
        Literal["effective_dimension", "score_difference"],
        typer.Option(help="What is looked at, on the way down a path."),
    ] = "effective_dimension",
    step: Annotated[
        int | None, typer.Option(min=1, help="Before which step. Default: half-way.")
    ] = None,
    probes: Annotated[int, typer.Option(min=1, help="Of the effective dimension.")] = 8,
    images: Annotated[int, typer.Option(min=2, help="Of each memorized prompt.")] = 16,
    steps: Annotated[int, typer.Option(min=2, help="DDIM steps.")] = 50,
    guidance: Annotated[
        float | None,
        typer.Option(
            callback=finite, help="After the start. Default: what the model is meant for."
        ),
    ] = None,
    judging: JudgeFiles,
    seed: SeedOption = 0,
    spread: Devices,
) -> None:
    """Set the screen of screened sampling: what drops a path, and how many copies slip through.

    Looks at one path of every clean prompt, without guidance in its first 20%, and, of prompts that
    --prompts labels memorized, at several, whose images a judge compares with --references.  Writes
    screen.json, which mitigate --screen takes: with it comes a bound on the copies among the images
    that it lets through.  Resumable.
    """
    cases = file.cases()
    texts = [] if clean is None else read_prompts(clean)
    opened = model.open(spread=spread)
    from sharpjax.mitigation.screen_calibration import SCREEN_NAME
    from sharpjax.models.latent_diffusion import LatentDiffusion
    from sharpjax.prompts import distinct
    from sharpjax.report import screen as report
    from sharpjax.report.terminal import show
    from sharpjax.runs.cases import clean_prompts, knows_its_memories, verified_cases
    from sharpjax.runs.screen import ScreenSettings, set_screen

    if not opened.network.takes_prompts:
        raise ValueError(
            f"{model.model} is a pixel model; sharpjax screen is for models of prompts"
        )
    of_option("--steps", opened.network.schedule.timesteps, steps)
    bundled = knows_its_memories(opened.directory)
    if not cases and bundled:
        cases = verified_cases(opened.directory)
    texts = texts or [c.condition for c in cases if c.verdict == "clean"]
    texts = texts or clean_prompts(opened.directory)
    texts = [texts[place] for place in distinct(texts)]
    if not texts:
        raise ValueError(
            "--clean FILE is needed: prompts that the model has certainly not memorized, from "
            "which the screen takes its threshold"
        )
    memorized = [case.condition for case in cases if case.verdict == "memorized"]
    judge = judging.load(opened, bundled=bundled, needed=bool(memorized)) if memorized else None
    if memorized and judge is None:
        raise ValueError(
            "--references is needed: training images that samples of the memorized prompts are "
            "compared with; or leave these out, and nothing is bounded"
        )
    settings = ScreenSettings(
        quantity=quantity, step=step, num_probes=probes, num_images=images, num_steps=steps,
        guidance=guidance, seed=seed,
    )  # fmt: skip
    folder, who = opened.folder(out, "screen"), opened.fingerprint
    network = cast(LatentDiffusion, opened.network)
    found = set_screen(
        network, texts, memorized, judge, folder, settings, fingerprint=who, mesh=opened.mesh
    )
    path = found.save(folder / SCREEN_NAME)
    opened.clock.record(folder)
    if out.as_json:
        answer = {"directory": str(folder), "screen": str(path)}
        print(json.dumps(answer | {"rows": report.rows_of(found)}))
        return
    show(wide_console(), report.blocks(found))
    tell_written(folder, [SCREEN_NAME])
