"""``sharpjax spectrum``: all eigenvalues of the Hessian along the sampling path."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sharpjax import plots, replication
from sharpjax import spectrum as spectra
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
from sharpjax.detection.oracle import TRAINING_SET_NAME, TrainingSet
from sharpjax.detection.truth import TRUTH_NAME, read_truths, typical
from sharpjax.models.fingerprint import fingerprint
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.models.load import find, load
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.provenance import Clock
from sharpjax.report.spectrum import spectrum_table

TOLERANCE = 0.05  # of sigma^2 H: what counts as zero
_TABLE, _PICTURE = "spectrum.csv", "spectrum.png"


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
        str | None,
        typer.Option(
            help=f"Whose Jacobian: {', '.join(spectra.SCORES)}. Default: conditional, where there "
            "are conditions."
        ),
    ] = None,
    noises: Annotated[int, typer.Option(help="Sampling paths a condition.")] = 1,
    stages: Annotated[
        int, typer.Option(help="Steps of the path that are analysed, first to last.")
    ] = 3,
    steps: Annotated[int, typer.Option(help="DDIM steps of the path.")] = 50,
    matvecs: Annotated[int, typer.Option(help="Steps of Lanczos and of Arnoldi.")] = 48,
    tolerance: Annotated[
        float, typer.Option(help="An eigenvalue of σ²H this close to 0 counts as near zero.")
    ] = TOLERANCE,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    variant: VariantOption = None,
    follow_links: FollowLinksOption = False,
) -> None:
    """All eigenvalues of the Hessian at the first, middle and last steps of sampling.

    Exact, with Lanczos and Arnoldi values and, where the training set is known, the exact score's
    spectrum beside.  Writes JSON Lines, CSV and a plot to the run directory; resumable.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"--tolerance must be a finite number >= 0, got {tolerance}")
    clock = Clock(model)
    directory = find(model, variant=variant, follow_links=follow_links)
    network = load(directory)
    chosen: tuple[str, ...] = tuple(condition or ())
    if not chosen and network.has_conditions:
        chosen = _typical(directory, network)
    if score is None:
        score = "conditional" if network.has_conditions else spectra.UNCONDITIONAL
    folder = output or Path("runs") / f"spectrum-{run_name(model, directory)}"
    settings = spectra.SpectrumSettings(
        num_noises=noises, num_stages=stages, num_steps=steps, num_matvecs=matvecs, score=score,
        seed=seed,
    )  # fmt: skip
    rows = write_spectra(
        network, directory, chosen, folder, settings, who=fingerprint(directory),
        tolerance=tolerance,
    )  # fmt: skip
    clock.record(folder)
    if as_json:
        print(json.dumps({"directory": str(folder), "spectra": rows}))
        return
    wide_console().print(spectrum_table(rows, tolerance=tolerance))
    console.print(f"Written to [bold]{folder}[/bold]: {spectra.RESULTS_NAME}, {_TABLE}, {_PICTURE}")


def write_spectra(
    network: PixelDiffusion | LatentDiffusion,
    directory: Path,
    conditions: Sequence[str],
    folder: Path,
    settings: spectra.SpectrumSettings,
    *,
    who: str,
    tolerance: float = TOLERANCE,
) -> list[dict[str, Any]]:
    """Compute spectra, the exact score's beside where it is known; table and plot; the rows."""
    training_set = labels = None
    known = isinstance(network, PixelDiffusion) and network.has_conditions
    if known and (directory / TRAINING_SET_NAME).is_file():
        training_set = TrainingSet.load(directory)
        labels = np.asarray(network.encode(conditions))
    records = spectra.spectrum(
        network, conditions, folder, settings, fingerprint=who, training_set=training_set,
        labels=labels,
    )  # fmt: skip
    plots.spectra(records, folder / _PICTURE)
    return spectra.write_table(folder / _TABLE, records, tolerance=tolerance)


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
