"""`sharpjax ground-truth`: which conditions or captions are memorized, by generation."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from sharpjax.commands.blocks import with_blocks
from sharpjax.commands.options import (
    Devices,
    DigitsFiles,
    Opened,
    Output,
    Prompts,
    SeedOption,
    finite,
    of_option,
    tell_written,
    wide_console,
)

if TYPE_CHECKING:
    from sharpjax.models.latent_diffusion import LatentDiffusion


@with_blocks
def ground_truth(
    *,
    model: DigitsFiles,
    out: Output,
    samples: Annotated[
        int | None,
        typer.Option(min=2, help="Samples a condition. Default: 32, of some captions 8."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="DDIM steps a sample. Default: 50, of the drawings' captions 25."),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            callback=finite,
            help="Classifier-free guidance of captions. Default: what the model is meant for; "
            "conditions have none.",
        ),
    ] = None,
    captions: Annotated[
        int | None,
        typer.Option(min=1, help="Only so many captions of every group and level. Default: all."),
    ] = None,
    file: Prompts,
    references: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="Training images of prompts, which samples are compared with: a table with "
            "columns [bold]prompt[/bold] and [bold]file[/bold], or a directory. With --prompts: of "
            "any model.",
        ),
    ] = None,
    seed: SeedOption = 0,
    spread: Devices,
) -> None:
    """Find out by generation which conditions or captions are memorized.

    Draws samples and counts those that copy a training image.  The measure and its threshold are
    fixed beforehand, on images that no sample is judged by: see
    sharpjax/runs/truth_of_conditions.py for the conditions of a pixel model,
    sharpjax/runs/truth_of_drawings.py for captions.  Of your own model: --prompts and --references;
    truth.csv is then a file of labelled prompts, as detect takes it.  Resumable.
    """
    if (file.prompts is None) != (references is None):
        raise ValueError(
            "--prompts and --references go together: what is sampled, and the training images that "
            "samples are compared with"
        )
    if references is not None and captions is not None:
        raise ValueError("--captions chooses among a bundled model's; --prompts names its own")
    cases = file.cases()
    opened = model.open(spread=spread)
    if steps is not None:
        of_option("--steps", opened.network.schedule.timesteps, steps)
    given = {
        "num_samples": samples, "num_steps": steps, "guidance": guidance, "seed": seed,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    if references is not None:
        _prompts(opened, out, [case.condition for case in cases], references, options)
    elif opened.network.takes_prompts:
        _drawings(opened, out, captions, options)
    elif guidance is not None or captions is not None:
        raise ValueError(
            f"--guidance and --captions are for models of captions, {opened.name} is one of "
            "conditions: leave them out"
        )
    else:
        _conditions(opened, out, options)


def _conditions(opened: Opened, out: Output, options: dict[str, Any]) -> None:
    from sharpjax.detection.oracle import TrainingSet
    from sharpjax.report import ground_truth as report
    from sharpjax.report.terminal import show
    from sharpjax.runs.truth_of_conditions import TRUTH_NAME, measure_truth

    network, folder = opened.network, opened.folder(out, "ground-truth")
    network.check(())  # has it any conditions?
    known, who = TrainingSet.load(opened.directory), opened.fingerprint
    truths = measure_truth(network, network.conditions, known, folder, fingerprint=who, **options)
    report.write_condition_grid(folder, truths, known)
    opened.clock.record(folder)
    if out.as_json:
        rows = [dataclasses.asdict(t) | {"verdict": t.verdict} for t in truths]
        print(json.dumps({"directory": str(folder), "truths": rows}))
        return
    show(wide_console(), [report.truth_table(truths)])
    tell_written(folder, [TRUTH_NAME, "samples.png", "samples/"])


def _prompts(
    opened: Opened, out: Output, texts: list[str], references: Path, options: dict[str, Any]
) -> None:
    from sharpjax.mitigation.reference_judge import ReferenceJudge
    from sharpjax.report import ground_truth as report
    from sharpjax.report.blocks import Text
    from sharpjax.report.terminal import show
    from sharpjax.runs.references import read_references
    from sharpjax.runs.truth_of_drawings import TRUTH_NAME
    from sharpjax.runs.truth_of_prompts import measure_prompts

    if not opened.network.takes_prompts:
        raise ValueError(
            f"--prompts and --references are for models of prompts, {opened.name} is one of "
            "conditions: leave them out"
        )
    judge = ReferenceJudge(*read_references(references))
    opened.network.check(texts)
    folder = opened.folder(out, "ground-truth")
    options |= {"fingerprint": opened.fingerprint, "mesh": opened.mesh}
    options |= {"references": judge.digest, "false_alarm": judge.control.high}
    network = cast("LatentDiffusion", opened.network)
    truths = measure_prompts(network, texts, judge, folder, **options)
    rows = [dataclasses.asdict(truth) for truth in truths]
    opened.clock.record(folder)
    if out.as_json:
        print(json.dumps({"directory": str(folder), "truths": rows}))
        return
    show(wide_console(), [Text(str(judge.control)), report.prompt_table(rows)])
    tell_written(folder, [TRUTH_NAME, "samples/"])


def _drawings(opened: Opened, out: Output, captions: int | None, options: dict[str, Any]) -> None:
    from sharpjax.datasets.planted_drawings import planted_drawings
    from sharpjax.report import drawings_truth as report
    from sharpjax.report.terminal import show
    from sharpjax.runs.truth_of_drawings import TRUTH_NAME, knows_drawings, load_judge, measure

    if not knows_drawings(opened.directory):
        raise ValueError(
            f"{opened.directory} was not trained on the captions of this version's drawings, so "
            "what it may copy is not known here; name prompts and training images by --prompts and "
            "--references"
        )
    network, planted = cast("LatentDiffusion", opened.network), planted_drawings()
    judge, limits = load_judge(opened.directory, planted, network.vae)
    folder = opened.folder(out, "ground-truth")
    options |= {"fingerprint": opened.fingerprint, "mesh": opened.mesh, "most": captions}
    truths = measure(network, planted, judge, folder, false_alarm=limits.high, **options)
    report.write_grid(folder, truths, planted, judge)
    opened.clock.record(folder)
    if out.as_json:
        rows = [dataclasses.asdict(t) for t in truths]
        print(json.dumps({"directory": str(folder), "truths": rows}))
        return
    show(wide_console(), [report.control_line(limits), *report.blocks(truths)])
    tell_written(folder, [TRUTH_NAME, "samples.png", "samples-*/"])
