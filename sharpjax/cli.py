"""The ``sharpjax`` command: the only module that joins everything."""

import dataclasses
import json
import logging
import math
import os
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import jax
import numpy as np
import typer
from rich.console import Console
from rich.markup import escape

from sharpjax import __version__, devices, plots, report, zoo
from sharpjax import spectrum as spectra
from sharpjax.curvature.validation import positive_integer
from sharpjax.detection import run as detection
from sharpjax.detection.oracle import TRAINING_SET_NAME, TrainingSet
from sharpjax.detection.truth import TRUTH_NAME, read_truths, select_truths, typical
from sharpjax.ground_truth_command import ground_truth
from sharpjax.identities import verify as verify_identities
from sharpjax.model_commands import convert, sample
from sharpjax.models.fingerprint import fingerprint
from sharpjax.models.load import load
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.options import JsonOption, ModelOption, SeedOption, console, run_name, wide_console
from sharpjax.rundir import write_text
from sharpjax.train_commands import train_app

app = typer.Typer(
    help="Measure how sharp a diffusion model's probability landscape is, and tell from that "
    "which of its outputs are memorized.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(train_app, name="train")
_SPREAD = "Devices and processes"  # a panel of the help


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log what is going on.")] = False,
) -> None:
    if version:
        console.print(f"sharpjax {__version__}")
        raise typer.Exit
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING)
    _enable_compilation_cache()


@app.command()
def detect(
    model: ModelOption = "mnist",
    output: Annotated[
        Path | None,
        typer.Option(help="Run directory; the same command resumes it. Default: runs/detect-NAME."),
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="Only this condition; repeat for more. Default: all of the model's."),
    ] = None,
    noises: Annotated[int, typer.Option(help="Initial noises a condition, at least 2.")] = 4,
    probes: Annotated[int, typer.Option(help="Hutchinson probes a trace.")] = 4,
    trace_noises: Annotated[
        int, typer.Option(help="Noises that traces are taken at, at least 2, at most --noises.")
    ] = 2,
    seed: SeedOption = 0,
    batch: Annotated[
        int | None,
        typer.Option(help="Conditions at a time; changes speed only. Default: 4 a device."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="The long version: 16 noises, 4 of them with 32 probes.")
    ] = False,
    as_json: JsonOption = False,
    num_devices: Annotated[
        int | None,
        typer.Option(
            "--devices",
            help="Devices of this machine to use. Default: all; on CPU a device is a core.",
            rich_help_panel=_SPREAD,
        ),
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where process 0 runs, and a free port there.",
            rich_help_panel=_SPREAD,
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            help="How many processes share the conditions; all write to one directory.",
            rich_help_panel=_SPREAD,
        ),
    ] = None,
    process: Annotated[
        int | None,
        typer.Option(help="Which of them this is, from 0.", rich_help_panel=_SPREAD),
    ] = None,
) -> None:
    """Tell which conditions of a model are memorized.

    Computes the statistics of memorization of every condition from its scores alone, with the
    exact score's value beside each where the training set is known; judges them against the ground
    truth that ships with the model; writes JSON Lines, CSV and plots to the run directory.

    For several hosts with a directory in common, start the same command on each with --coordinator,
    --processes and --process.  Whatever ends early, the same commands, or one without these
    options, go on from what is there.
    """
    directory = zoo.find(model)
    if everything:
        noises, probes, trace_noises = 16, 32, 4
    settings = detection.DetectSettings(
        num_noises=noises, trace_noises=trace_noises, num_probes=probes, seed=seed
    )
    if trace_noises > noises:
        raise ValueError(f"--trace-noises {trace_noises} exceeds --noises {noises}")
    devices.split_cpu(num_devices)
    _join(coordinator, processes, process)
    mesh = devices.local_mesh(num_devices)
    network = _with_conditions(directory)
    known = (directory / TRAINING_SET_NAME).is_file()
    training_set = TrainingSet.load(directory) if known else None
    truths = read_truths(directory) if (directory / TRUTH_NAME).is_file() else None
    chosen = tuple(condition) if condition else network.conditions
    labels = np.asarray(network.encode(chosen))
    folder = output or Path("runs") / f"detect-{run_name(model, directory)}"
    records = detection.detect(
        network,
        chosen,
        folder,
        settings,
        fingerprint=fingerprint(directory),
        training_set=training_set,
        labels=labels if known else None,
        batch_size=4 * (mesh.size if mesh else 1) if batch is None else batch,
        mesh=mesh,
    )
    if jax.process_index() > 0:
        print(f"process {process} is done; process 0 writes the tables", file=sys.stderr)
        return
    sizes = None if training_set is None else np.asarray(training_set.set_sizes)[labels]
    chosen_truths = None if truths is None else select_truths(truths, chosen)
    summaries, written = report.write_detection(
        folder, records, truths=chosen_truths, set_sizes=sizes
    )
    grid = report.copy_shipped_grid(directory, folder)
    written += [grid] if grid else []
    write_text(folder / "summary.json", json.dumps(report.as_json(summaries), indent=2) + "\n")
    if as_json:
        print(json.dumps({"directory": str(folder), "summary": report.as_json(summaries)}))
        return
    console.print(report.summary_table(summaries))
    if sizes is not None:
        console.print(report.dose_table(records, sizes, chosen_truths))
    for line in report.remarks(summaries, chosen_truths):
        console.print(line)
    files = ", ".join(path.name for path in [*detection.result_files(folder), *written])
    console.print(f"Written to [bold]{folder}[/bold]: {files}")


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Become one of several processes, if so asked."""
    given = (coordinator, processes, process)
    if given == (None, None, None):
        return
    if None in given:
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


@app.command()
def spectrum(
    model: ModelOption = "mnist",
    output: Annotated[
        Path | None, typer.Option(help="Run directory. Default: runs/spectrum-NAME.")
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            help="A condition; repeat for more. Default: one memorized and one general condition, "
            "by the ground truth that ships with the model."
        ),
    ] = None,
    score: Annotated[
        str, typer.Option(help=f"Whose Jacobian: {', '.join(spectra.SCORES)}.")
    ] = "conditional",
    noises: Annotated[int, typer.Option(help="Sampling paths a condition.")] = 1,
    stages: Annotated[
        int, typer.Option(help="Steps of the path that are analysed, first to last.")
    ] = 3,
    steps: Annotated[int, typer.Option(help="DDIM steps of the path.")] = 50,
    matvecs: Annotated[int, typer.Option(help="Steps of Lanczos and of Arnoldi.")] = 48,
    tolerance: Annotated[
        float, typer.Option(help="An eigenvalue of σ²H this close to 0 counts as near zero.")
    ] = 0.05,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """All eigenvalues of the Hessian at the first, middle and last steps of sampling.

    Exact, with Lanczos and Arnoldi values and, where the training set is known, the exact score's
    spectrum beside.  Writes JSON Lines, CSV and a plot to the run directory; resumable.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"--tolerance must be a finite number >= 0, got {tolerance}")
    directory = zoo.find(model)
    network = _with_conditions(directory)
    chosen = tuple(condition) if condition else _typical(directory, network.conditions)
    known = (directory / TRAINING_SET_NAME).is_file()
    folder = output or Path("runs") / f"spectrum-{run_name(model, directory)}"
    records = spectra.spectrum(
        network,
        chosen,
        folder,
        spectra.SpectrumSettings(
            num_noises=noises,
            num_stages=stages,
            num_steps=steps,
            num_matvecs=matvecs,
            score=score,
            seed=seed,
        ),
        fingerprint=fingerprint(directory),
        training_set=TrainingSet.load(directory) if known else None,
        labels=np.asarray(network.encode(chosen)) if known else None,
    )
    rows = spectra.write_table(folder / "spectrum.csv", records, tolerance=tolerance)
    picture = plots.spectra(records, folder / "spectrum.png")
    if as_json:
        print(json.dumps({"directory": str(folder), "spectra": rows}))
        return
    console.print(report.spectrum_table(rows, tolerance=tolerance))
    console.print(
        f"Written to [bold]{folder}[/bold]: {spectra.RESULTS_NAME}, spectrum.csv, {picture.name}"
    )


app.command("ground-truth")(ground_truth)
app.command()(sample)
app.command()(convert)


@app.command()
def verify(
    dim: Annotated[int, typer.Option(help="Dimensions of the densities, 2 to 32.")] = 5,
    samples: Annotated[int, typer.Option(help="Draws behind each mean, at least 1,000.")] = 50_000,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Check the identities that sharpjax stands on by numbers, and the printed forms beside.

    Draws densities from the seed and compares both sides of L1 to L5 (moments of scores) and P1 to
    P4 (p-Laplacians) by Monte Carlo and automatic differentiation, in float64.  Exit status 1 if
    an identity fails.  Proofs and the forms as printed: docs/identities.md.
    """
    rows = verify_identities(dim=dim, num_samples=samples, seed=seed)
    if as_json:
        values = [dataclasses.asdict(r) | {"z": r.z, "verdict": r.verdict} for r in rows]
        print(json.dumps({"dim": dim, "samples": samples, "seed": seed, "rows": values}))
    else:
        wide = wide_console()
        wide.print(report.statements_table(rows))
        wide.print()
        wide.print(report.identities_table(rows))
        for line in report.identities_remarks(rows):
            wide.print(line)
    if any(row.verdict != "holds" for row in rows):
        raise typer.Exit(1)


def _with_conditions(directory: Path) -> PixelDiffusion:
    """A model that knows its conditions; prompts are open-ended."""
    network = load(directory)
    if not isinstance(network, PixelDiffusion):
        raise ValueError(
            f"{directory} takes prompts, and this command works on models with a list of "
            "conditions. Use sharpjax.detection and sharpjax.curvature on model.scores(prompt, t)"
        )
    return network


def _typical(directory: Path, conditions: tuple[str, ...]) -> tuple[str, str]:
    if not (directory / TRUTH_NAME).is_file():
        raise ValueError(
            f"{directory} has no {TRUTH_NAME} to choose conditions by; name them with --condition: "
            f"{', '.join(conditions)}"
        )
    return typical(read_truths(directory))


def _enable_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the user configured JAX's cache already."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(home / "sharpjax" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _stop(*_) -> None:
    """Leave at once on Ctrl-C: finished results are on disk, and XLA may be busy for a while."""
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")  # show the cursor: a progress bar hides it
    sys.stderr.write("\nstopped; a run with a directory goes on by the same command\n")
    sys.stderr.flush()
    os._exit(130)


def main() -> None:
    """Run the command line; expected failures are one line and exit status 1."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _stop)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda text, *_: _tell("[yellow]warning:[/yellow]", text)
            app()
    except (ValueError, OSError, ImportError) as error:
        _tell("[red]error:[/red]", error)
        _fail()
    except Exception:
        traceback.print_exc()
        _fail()


def _tell(what: str, message: object) -> None:
    """One line on standard error, above a progress bar if there is one."""
    line = f"{what} {escape(str(message))}"
    Console(file=sys.stderr).print(line, highlight=False, soft_wrap=True)


def _fail() -> NoReturn:
    """Exit with status 1; of several processes at once, where JAX would wait for the others."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(1)
