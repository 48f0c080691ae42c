"""``sharpjax ground-truth``: which conditions or captions are memorized, by generation."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sharpjax import devices, replication
from sharpjax.commands.options import (
    FollowLinksOption,
    JsonOption,
    ModelOption,
    SeedOption,
    VariantOption,
    console,
    run_name,
    wide_console,
)
from sharpjax.datasets.openmoji import CAPTIONS_NAME, SPLIT_PATH, planted_pictograms
from sharpjax.detection.oracle import TRAINING_SET_NAME, TrainingSet
from sharpjax.detection.truth import TRUTH_NAME, measure_truth
from sharpjax.models.checkpoints import from_pretrained
from sharpjax.models.fingerprint import fingerprint
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.models.load import find, load
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.provenance import Clock
from sharpjax.report import captions as caption_tables
from sharpjax.report import conditions


def ground_truth(
    model: ModelOption = "mnist",
    output: Annotated[
        Path | None, typer.Option(help="Run directory. Default: runs/ground-truth-NAME.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples a condition. Default: 32, of a caption 8.")
    ] = None,
    steps: Annotated[int, typer.Option(help="DDIM steps a sample.")] = 50,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Classifier-free guidance of captions. Default: "
            f"{replication.GUIDANCE}; conditions have none."
        ),
    ] = None,
    captions: Annotated[
        int | None,
        typer.Option(min=1, help="Only so many captions of every group and level. Default: all."),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    variant: VariantOption = None,
    follow_links: FollowLinksOption = False,
) -> None:
    """Find out by generation which conditions or captions are memorized.

    Draws samples and counts those that copy a training image.  The measure and its threshold are
    fixed beforehand, on images that no sample is judged by: see sharpjax/detection/truth.py for the
    conditions of a pixel model, sharpjax/replication.py for captions.  Resumable.
    """
    clock = Clock(model)
    directory = find(model, variant=variant, follow_links=follow_links)
    devices.split_cpu()
    network = load(directory)
    folder = output or Path("runs") / f"ground-truth-{run_name(model, directory)}"
    if isinstance(network, LatentDiffusion):
        _captions(
            network, directory, folder, clock, as_json=as_json, captions=captions, num_steps=steps,
            num_samples=8 if samples is None else samples, seed=seed,
            guidance=replication.GUIDANCE if guidance is None else guidance,
        )  # fmt: skip
        return
    if guidance is not None or captions is not None:
        raise ValueError("--guidance and --captions are for models of captions")
    _conditions(
        network, directory, folder, clock, as_json=as_json, num_steps=steps, seed=seed,
        num_samples=32 if samples is None else samples,
    )  # fmt: skip


def _conditions(
    network: PixelDiffusion,
    directory: Path,
    folder: Path,
    clock: Clock,
    *,
    as_json: bool,
    **options: Any,
) -> None:
    network.check(())  # has it any conditions?
    training_set = TrainingSet.load(directory)
    truths = measure_truth(
        network,
        network.conditions,
        training_set,
        folder,
        fingerprint=fingerprint(directory),
        **options,
    )
    conditions.write_sample_grid(folder, truths, training_set)
    clock.record(folder)
    if as_json:
        rows = [dataclasses.asdict(t) | {"verdict": t.verdict} for t in truths]
        print(json.dumps({"directory": str(folder), "truths": rows}))
        return
    console.print(conditions.truth_table(truths))
    console.print(f"Written to [bold]{folder}[/bold]: {TRUTH_NAME}, samples.png, samples/")


def _captions(
    network: LatentDiffusion,
    directory: Path,
    folder: Path,
    clock: Clock,
    *,
    as_json: bool,
    captions: int | None,
    **options: Any,
) -> None:
    _check_captions(directory)
    pictograms = planted_pictograms()
    index = replication.measured_concepts(pictograms)
    if captions is not None:
        kinds = [(pictograms.concepts[i].group, pictograms.concepts[i].level) for i in index]
        index = np.array([i for n, i in enumerate(index) if kinds[:n].count(kinds[n]) < captions])
    judge = directory / "classifier"
    truths, limits = replication.measure(
        network,
        pictograms,
        folder,
        fingerprint=fingerprint(directory),
        index=index,
        classifier=from_pretrained(judge) if judge.is_dir() else None,
        mesh=devices.local_mesh(),
        **options,
    )
    caption_tables.write_grid(folder, truths, pictograms, limits.threshold)
    clock.record(folder)
    if as_json:
        rows = [dataclasses.asdict(t) | {"verdict": t.verdict} for t in truths]
        print(json.dumps({"directory": str(folder), "threshold": limits.threshold, "truths": rows}))
        return
    console.print(caption_tables.control_line(limits))
    wide_console().print(caption_tables.level_table(truths))
    console.print(f"Written to [bold]{folder}[/bold]: {TRUTH_NAME}, samples.png, images/")


def _check_captions(directory: Path) -> None:
    path = directory / CAPTIONS_NAME
    if not path.is_file():
        raise ValueError(
            f"{directory} has neither {TRAINING_SET_NAME} nor {CAPTIONS_NAME}: what it was trained "
            "on is not known here, so copies cannot be told. Models of sharpjax train say"
        )
    if path.read_bytes() != SPLIT_PATH.read_bytes():
        raise ValueError(f"{path} is not the list of captions of this version of sharpjax")
