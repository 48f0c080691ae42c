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

from sharpjax import __version__, plots, replication, report
from sharpjax import spectrum as spectra
from sharpjax.detect_command import calibrate, detect
from sharpjax.detection.oracle import TRAINING_SET_NAME, TrainingSet
from sharpjax.detection.truth import TRUTH_NAME, read_truths, typical
from sharpjax.ground_truth_command import ground_truth
from sharpjax.identities import verify as verify_identities
from sharpjax.mitigate_command import mitigate_prompts
from sharpjax.model_commands import convert, sample
from sharpjax.models.fingerprint import fingerprint
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.models.load import find, load
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.options import JsonOption, ModelOption, SeedOption, console, run_name, wide_console
from sharpjax.train_commands import train_app

app = typer.Typer(
    help="Measure how sharp a diffusion model's probability landscape is, and tell from that "
    "which of its outputs are memorized.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(train_app, name="train")


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


app.command()(detect)
app.command()(calibrate)


@app.command()
def spectrum(
    model: ModelOption = "openmoji",
    output: Annotated[
        Path | None, typer.Option(help="Run directory. Default: runs/spectrum-NAME.")
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            help="A condition or prompt; repeat for more. Default: memorized and not, by the "
            "ground truth that ships with the model."
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
    directory = find(model)
    network = load(directory)
    chosen = tuple(condition) if condition else _typical(directory, network)
    known = isinstance(network, PixelDiffusion) and (directory / TRAINING_SET_NAME).is_file()
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
    wide_console().print(report.spectrum_table(rows, tolerance=tolerance))
    console.print(
        f"Written to [bold]{folder}[/bold]: {spectra.RESULTS_NAME}, spectrum.csv, {picture.name}"
    )


app.command("ground-truth")(ground_truth)
app.command("mitigate")(mitigate_prompts)
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


def _typical(directory: Path, network: PixelDiffusion | LatentDiffusion) -> tuple[str, ...]:
    """What is shown if nothing is named: memorized and not, by the model's own ground truth."""
    if not (directory / TRUTH_NAME).is_file():
        known = getattr(network, "conditions", None)
        raise ValueError(
            f"{directory} has no {TRUTH_NAME} to choose by; name conditions or prompts with "
            "--condition" + (f": {', '.join(known)}" if known else "")
        )
    if isinstance(network, PixelDiffusion):
        return typical(read_truths(directory))
    return replication.typical(read_truths(directory, replication.CaptionTruth))


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
    # Tokenizers need no PyTorch, so its absence is no news
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
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
