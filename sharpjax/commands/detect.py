"""``sharpjax detect``: which conditions, prompts or images are memorized."""

import sys
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer

from sharpjax import devices, replication
from sharpjax.commands.detect_options import (
    IMAGES,
    JUDGING,
    NUMBERS,
    SPREAD,
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
from sharpjax.commands.detect_verdicts import Found, deciding_column, find_calibration, finish
from sharpjax.commands.options import (
    ColumnOption,
    FollowLinksOption,
    JsonOption,
    ModelOption,
    PageOption,
    SeedOption,
    VariantOption,
    run_name,
)
from sharpjax.commands.spectrum import write_spectra
from sharpjax.curvature.validation import positive_integer
from sharpjax.detection import run
from sharpjax.detection.calibration import Calibration
from sharpjax.detection.cases import Case, balanced, from_file
from sharpjax.detection.columns import evaluations
from sharpjax.detection.images import detect_images, find_images
from sharpjax.detection.oracle import TRAINING_SET_NAME, TrainingSet
from sharpjax.detection.settings import NEAR_THE_END, ImageSettings
from sharpjax.detection.summary import REFERENCE, Judged, summarize
from sharpjax.detection.truth import TRUTH_NAME, read_truths, select_truths
from sharpjax.models.fingerprint import fingerprint
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.models.load import find
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.prompts import distinct
from sharpjax.provenance import Clock
from sharpjax.report import detection as report
from sharpjax.rundir import within
from sharpjax.spectrum import SPECTRA_NAME, SpectrumSettings


def detect(
    model: ModelOption = "openmoji",
    prompts: PromptsOption = None,
    column: ColumnOption = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Judge the finished images of this directory instead, without their prompts, by "
            "the p-Laplacian about each. A [bold]labels.csv[/bold] in it may have columns prompt "
            "(the file's name), label and source.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    directions: DirectionsOption = 128,
    timestep: TimestepOption = NEAR_THE_END,
    exact: ExactOption = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Run directory; the same command resumes it. Default: runs/detect-NAME."),
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="Only this condition or prompt; repeat for more."),
    ] = None,
    statistics: StatisticsOption = None,
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
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="The long version: all statistics and all prompts of a bundled model; of "
            "conditions 16 noises, 4 of them with 32 probes.",
        ),
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Thresholds by sharpjax calibrate. Default: those that ship with the model, where "
            "the settings are theirs.",
            rich_help_panel=JUDGING,
        ),
    ] = None,
    decide_by: Annotated[
        str | None,
        typer.Option(
            help=f"Statistic of the verdicts. Default: {REFERENCE}, or the first that has a "
            "threshold.",
            rich_help_panel=JUDGING,
        ),
    ] = None,
    nearest: Annotated[
        bool,
        typer.Option(
            "--nearest",
            help="TPR at the false-positive rate nearest to 1%, as the papers have it, not at the "
            "largest up to 1%.",
            rich_help_panel=JUDGING,
        ),
    ] = False,
    spectra: Annotated[
        bool,
        typer.Option(
            "--spectra",
            help="Also all eigenvalues of the Hessian for the two conditions that the deciding "
            "statistic calls the sharpest and the flattest, at the first, middle and last steps.",
            rich_help_panel=NUMBERS,
        ),
    ] = False,
    page: PageOption = True,
    as_json: JsonOption = False,
    num_devices: DevicesOption = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where process 0 runs, and a free port there.",
            rich_help_panel=SPREAD,
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            help="How many processes share the conditions; all write to one directory.",
            rich_help_panel=SPREAD,
        ),
    ] = None,
    process: Annotated[
        int | None,
        typer.Option(help="Which of them this is, from 0.", rich_help_panel=SPREAD),
    ] = None,
    variant: VariantOption = None,
    follow_links: FollowLinksOption = False,
) -> None:
    """Tell which prompts, or conditions of a model, are memorized.

    Computes the statistics of memorization of each from its scores alone; judges them against what
    is known (labels in the file of prompts, or the ground truth that ships with the model), says
    memorized or clean by thresholds that clean prompts have set, and writes JSON Lines, CSV and
    plots to the run directory.  Of conditions whose training images are known, the exact score's
    value stands beside each.

    For several hosts with a directory in common, start the same command on each with --coordinator,
    --processes and --process.  Whatever ends early, the same commands, or one without these
    options, go on from what is there.
    """
    clock = Clock(model)
    directory = find(model, variant=variant, follow_links=follow_links)
    devices.split_cpu(num_devices)
    _join(coordinator, processes, process)
    mesh = devices.local_mesh(num_devices)
    network = load_network(directory, dtype)
    if images is not None:
        if prompts is not None or condition or column is not None:
            raise ValueError(
                "--images is without prompts: leave --prompts, --column and --condition out"
            )
        refuse_with_images(
            statistics=statistics, independent_noise=independent, squared=squared,
            trace_noises=trace_noises, all=everything, coordinator=coordinator, spectra=spectra,
        )  # fmt: skip
        of_images = ImageSettings(
            num_directions=directions, exact=exact, timestep=timestep, seed=seed
        )
        who = with_type(fingerprint(directory), dtype)
        folder = output or Path("runs") / f"images-{run_name(model, directory)}"
        _images(
            network, images, folder, of_images, who,
            calibration=calibration, decide_by=decide_by, nearest=nearest, as_json=as_json,
            clock=clock, page=page,
        )  # fmt: skip
        return
    is_pixel = isinstance(network, PixelDiffusion)
    if everything and is_pixel:
        noises, probes, trace_noises = 16, 32, 4
    default = "all" if everything and not is_pixel else "first,traces" if is_pixel else "first"
    settings = prompt_settings(
        network, default if statistics is None else statistics, noises=noises, steps=steps,
        guidance=guidance, probes=probes, trace_noises=trace_noises, independent=independent,
        squared=squared, seed=seed, num_directions=directions,
    )  # fmt: skip
    cases = _cases(network, directory, prompts, column, condition, everything=everything)
    known = is_pixel and (directory / TRAINING_SET_NAME).is_file()
    names = [case.condition for case in cases]
    who = with_type(fingerprint(directory), dtype)
    thresholds, remark = find_calibration(calibration, directory, settings, who)
    chosen = deciding_column(decide_by, settings.names(network.schedule), thresholds, remark)
    folder = output or Path("runs") / f"detect-{run_name(model, directory)}"
    records = run.detect(
        network,
        names,
        folder,
        settings,
        fingerprint=who,
        training_set=TrainingSet.load(directory) if known else None,
        labels=np.asarray(network.encode(names)) if known else None,
        batch_size=4 * (mesh.size if mesh else 1) if batch is None else batch,
        mesh=mesh,
    )
    if jax.process_index() > 0:
        print(f"process {process} is done; process 0 writes the tables", file=sys.stderr)
        return
    judged = Judged.of(records, cases, thresholds)
    summaries = summarize(judged, nearest=nearest)
    costs = report.costs(folder, evaluations(settings))
    written = report.write_detection(
        folder, judged, summaries, costs, calibration=thresholds, decide_by=chosen
    )
    grid = report.copy_shipped_grid(directory, folder)
    written += [grid] if grid else []
    if spectra and judged.records:
        column = chosen or judged.names()[0]
        inside = within(folder, Path(SPECTRA_NAME, column))
        of_spectra = SpectrumSettings(num_steps=steps, num_stages=min(3, steps), seed=seed)
        write_spectra(network, directory, judged.extremes(column), inside, of_spectra, who=who)
        written.append(folder / SPECTRA_NAME)
    found = Found(judged, summaries, costs, thresholds, chosen, remark)
    finish(folder, found, written, clock=clock, page=page, as_json=as_json)


def _images(
    network: PixelDiffusion | LatentDiffusion,
    images: Path,
    folder: Path,
    settings: ImageSettings,
    who: str,
    *,
    calibration: Path | None,
    decide_by: str | None,
    nearest: bool,
    as_json: bool,
    clock: Clock,
    page: bool,
) -> None:
    cases = find_images(images)
    thresholds, remark = None, (
        "No verdicts: thresholds are not known. sharpjax calibrate --images sets them on clean "
        "images. The smaller (the more negative) the p-Laplacian, the more it says memorized."
    )  # fmt: skip
    if calibration is not None:
        thresholds, remark = Calibration.load(calibration), ""
        thresholds.check(settings, fingerprint=who)
    chosen = deciding_column(decide_by, settings.names(), thresholds, remark)
    records = detect_images(network, images, cases, folder, settings, fingerprint=who)
    judged = Judged.of(records, cases)
    summaries = summarize(judged, nearest=nearest)
    costs = report.costs(folder, {"p_laplacian": ("images", settings.num_directions, 0)})
    written = report.write_detection(
        folder, judged, summaries, costs, calibration=thresholds, decide_by=chosen
    )
    found = Found(judged, summaries, costs, thresholds, chosen, remark)
    finish(folder, found, written, clock=clock, page=page, as_json=as_json)


def _cases(
    network: PixelDiffusion | LatentDiffusion,
    directory: Path,
    prompts: Path | None,
    column: str | None,
    condition: list[str] | None,
    *,
    everything: bool,
) -> list[Case]:
    """What is to be judged, with what is known of it; all different."""
    if column is not None and prompts is None:
        raise ValueError("--column names a column of the file that --prompts gives")
    if prompts is not None and condition:
        raise ValueError("--prompts and --condition exclude each other")
    if prompts is not None:
        return from_file(prompts, column=column)
    if condition:
        condition = [condition[place] for place in distinct(condition)]
        if not condition:
            raise ValueError("--condition is blank, which tells nothing of a model's memory")
    if isinstance(network, PixelDiffusion):
        return _conditions(network, directory, condition)
    truth = directory / TRUTH_NAME
    if condition:
        return [Case(prompt) for prompt in condition]
    if not truth.is_file():
        raise ValueError(
            f"{directory} says of no prompt whether it is memorized; give prompts by --prompts FILE"
        )
    cases = [
        Case(
            one.caption, one.verdict, one.group,
            one.level if one.group == "memorized" else 0, one.copy_rate,
        )
        for one in read_truths(directory, replication.CaptionTruth)
    ]  # fmt: skip
    return cases if everything else balanced(cases)


def _conditions(network: PixelDiffusion, directory: Path, chosen: list[str] | None) -> list[Case]:
    names = chosen or list(network.conditions)
    network.check(names)
    if not (directory / TRUTH_NAME).is_file():
        sizes = dict.fromkeys(names, 0)
        if (directory / TRAINING_SET_NAME).is_file():
            known = TrainingSet.load(directory).set_sizes
            sizes = {n: int(known[i]) for n, i in zip(names, network.encode(names), strict=True)}
        return [Case(name, level=sizes[name]) for name in names]
    truths = select_truths(read_truths(directory), names)
    return [Case(t.condition, t.verdict, "", t.set_size, t.copy_rate) for t in truths]


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Become one of several processes, if so asked."""
    if coordinator is None and processes is None and process is None:
        return
    if coordinator is None or processes is None or process is None:
        raise ValueError(
            "--coordinator, --processes and --process go together: the same HOST:PORT and number "
            "for all processes, and 0, 1, ... for each"
        )
    positive_integer("--processes", processes)
    positive_integer("--process", process, least=0, largest=processes - 1)
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(
            "--coordinator must be HOST:PORT, the host of process 0 and a free port there, "
            f"got {coordinator!r}"
        )
    print(
        f"process {process} of {processes}, meeting at {coordinator}, within "
        f"{devices.ARRIVAL_SECONDS} seconds; if one dies, JAX aborts the others within "
        f"{devices.HEARTBEAT_SECONDS} seconds, and the same commands resume the run",
        file=sys.stderr,
    )
    devices.join(coordinator, processes, process)
