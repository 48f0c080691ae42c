"""``sharpjax calibrate``: thresholds of detection from prompts or images known to be clean."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sharpjax import devices, replication
from sharpjax.commands.detect_options import (
    IMAGES,
    BatchOption,
    DevicesOption,
    DirectionsOption,
    DtypeOption,
    ExactOption,
    GuidanceOption,
    IndependentOption,
    NoisesOption,
    ProbesOption,
    PromptsOption,
    SquaredOption,
    StatisticsOption,
    StepsOption,
    TimestepOption,
    TraceNoisesOption,
    load_network,
    prompt_settings,
    refuse_with_images,
    with_type,
)
from sharpjax.commands.options import (
    ColumnOption,
    FollowLinksOption,
    JsonOption,
    ModelOption,
    SeedOption,
    VariantOption,
    console,
    run_name,
)
from sharpjax.datasets.openmoji import CAPTIONS_NAME
from sharpjax.detection import run
from sharpjax.detection.calibration import CALIBRATION_NAME, QUANTILE, Calibration
from sharpjax.detection.cases import Case, from_file
from sharpjax.detection.images import detect_images, find_images
from sharpjax.detection.settings import NEAR_THE_END, DetectSettings, ImageSettings
from sharpjax.detection.summary import Judged
from sharpjax.models.fingerprint import fingerprint
from sharpjax.models.load import find
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.provenance import Clock
from sharpjax.report import detection as report


def calibrate(
    model: ModelOption = "openmoji",
    prompts: PromptsOption = None,
    column: ColumnOption = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Calibrate on the images of this directory instead, known to be clean, for "
            "detect --images.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    directions: DirectionsOption = 128,
    timestep: TimestepOption = NEAR_THE_END,
    exact: ExactOption = False,
    output: Annotated[
        Path | None, typer.Option(help="Run directory. Default: runs/calibrate-NAME.")
    ] = None,
    statistics: StatisticsOption = None,
    quantile: Annotated[
        float, typer.Option(help="Fraction of clean prompts that may not be called memorized.")
    ] = QUANTILE,
    noises: NoisesOption = 4,
    steps: StepsOption = 50,
    guidance: GuidanceOption = 7.5,
    probes: ProbesOption = 4,
    trace_noises: TraceNoisesOption = None,
    independent: IndependentOption = False,
    squared: SquaredOption = False,
    dtype: DtypeOption = "float32",
    seed: SeedOption = 0,
    batch: BatchOption = None,
    as_json: JsonOption = False,
    num_devices: DevicesOption = None,
    variant: VariantOption = None,
    follow_links: FollowLinksOption = False,
) -> None:
    """Set thresholds on prompts that are known to be clean, for a model whose memories are not.

    Writes calibration.json to the run directory, which sharpjax detect --calibration takes: the
    threshold of every statistic with its interval, and the means and standard deviations that
    guidance_alignment and step_displacement are measured by.  Use prompts of the kind that will be
    judged, at least 72 different ones: fewer leave the threshold's interval open, and --quantile
    0.99 needs 368.  The bundled model has 100 captions for that.
    """
    clock = Clock(model)
    directory = find(model, variant=variant, follow_links=follow_links)
    devices.split_cpu(num_devices)
    mesh = devices.local_mesh(num_devices)
    network = load_network(directory, dtype)
    who = with_type(fingerprint(directory), dtype)
    folder = output or Path("runs") / f"calibrate-{run_name(model, directory)}"
    settings: DetectSettings | ImageSettings
    if images is not None:
        if prompts is not None or column is not None:
            raise ValueError("--images is without prompts: leave --prompts and --column out")
        refuse_with_images(
            statistics=statistics, independent_noise=independent, squared=squared,
            trace_noises=trace_noises,
        )  # fmt: skip
        settings = ImageSettings(
            num_directions=directions, exact=exact, timestep=timestep, seed=seed
        )
        cases = find_images(images)
        _check_clean(cases, images)
        records = detect_images(network, images, cases, folder, settings, fingerprint=who)
    else:
        default = "first,traces" if isinstance(network, PixelDiffusion) else "first"
        settings = of_prompts = prompt_settings(
            network, default if statistics is None else statistics, noises=noises, steps=steps,
            guidance=guidance, probes=probes, trace_noises=trace_noises, independent=independent,
            squared=squared, seed=seed, num_directions=directions,
        )  # fmt: skip
        network.check(())  # has it any conditions?
        cases = _clean_cases(directory, prompts, column)
        records = run.detect(
            network, [case.condition for case in cases], folder, of_prompts, fingerprint=who,
            batch_size=4 * (mesh.size if mesh else 1) if batch is None else batch, mesh=mesh,
        )  # fmt: skip
    fitted = Calibration.fit(records, settings, fingerprint=who, quantile=quantile)
    path = fitted.save(folder / CALIBRATION_NAME)
    clock.record(folder)
    if as_json:
        print(path.read_text())
        return
    console.print(report.threshold_table(fitted))
    for line in report.failures(Judged.of(records, cases)):
        console.print(line)
    console.print(
        f"Written to [bold]{folder}[/bold]: {path.name}; use it by sharpjax detect "
        f"{'' if images is None else '--images DIR '}--calibration {path}"
    )


def _clean_cases(directory: Path, prompts: Path | None, column: str | None) -> list[Case]:
    if column is not None and prompts is None:
        raise ValueError("--column names a column of the file that --prompts gives")
    if prompts is not None:
        cases = from_file(prompts, column=column)
        _check_clean(cases, prompts)
        return cases
    if (captions := directory / CAPTIONS_NAME).is_file():
        return [Case(caption, "clean") for caption in replication.clean_captions(captions)]
    raise ValueError(
        "--prompts is needed: a file of prompts that the model has certainly not memorized"
    )


def _check_clean(cases: Sequence[Case], where: Path) -> None:
    if wrong := [case for case in cases if case.verdict not in (None, "clean")]:
        raise ValueError(
            f"{where} must hold clean ones only; {len(wrong)} are labelled otherwise, such as "
            f"{wrong[0].condition!r} ({wrong[0].verdict})"
        )
