"""`sharpjax spectrum`: all eigenvalues of the Hessian along the sampling path."""

import json
from typing import Annotated, Literal

import typer

from sharpjax.commands.blocks import with_blocks
from sharpjax.commands.options import (
    ConditionOption,
    ModelFiles,
    Output,
    SeedOption,
    of_option,
    tell_written,
    wide_console,
)

ScoreName = Literal["conditional", "unconditional", "difference"]


@with_blocks
def spectrum(
    *,
    model: ModelFiles,
    out: Output,
    condition: ConditionOption = None,
    score: Annotated[
        ScoreName | None,
        typer.Option(help="Whose Jacobian. Default: conditional, where there are conditions."),
    ] = None,
    noises: Annotated[int, typer.Option(min=1, help="Sampling paths a condition.")] = 1,
    stages: Annotated[
        int, typer.Option(min=1, help="Steps of the path that are analysed, first to last.")
    ] = 3,
    steps: Annotated[int, typer.Option(min=1, help="DDIM steps of the path.")] = 50,
    seed: SeedOption = 0,
) -> None:
    """All eigenvalues of the Hessian at the first, middle and last steps of sampling.

    Exact, with Lanczos and Arnoldi values and, where the training set is known, the exact score's
    spectrum beside.  Writes JSON Lines, CSV and a plot to the run directory; resumable.  Without
    --condition it takes memorized and other ones by the ground truth that ships with the model.
    """
    if stages > steps:
        raise ValueError(f"--stages must be at most --steps = {steps}, got {stages}")
    opened = model.open()
    of_option("--steps", opened.network.schedule.timesteps, steps)
    from sharpjax.report import spectrum as report
    from sharpjax.report.terminal import show
    from sharpjax.rundir.run import RESULTS_NAME
    from sharpjax.runs.cases import training_set_of, typical
    from sharpjax.runs.spectrum import UNCONDITIONAL, SpectrumSettings
    from sharpjax.runs.spectrum import spectrum as compute

    network, directory = opened.network, opened.directory
    chosen = tuple(condition or ())
    if not chosen and network.has_conditions:
        chosen = typical(network, directory)
    settings = SpectrumSettings(
        num_noises=noises,
        num_stages=stages,
        num_steps=steps,
        score=score or ("conditional" if network.has_conditions else UNCONDITIONAL),
        seed=seed,
    )
    folder = opened.folder(out, "spectrum")
    known, who = training_set_of(network, directory, chosen), opened.fingerprint
    records = compute(network, chosen, folder, settings, fingerprint=who, **known)
    rows = report.write(folder, records)
    opened.clock.record(folder)
    if out.as_json:
        print(json.dumps({"directory": str(folder), "spectra": rows}))
        return
    show(wide_console(), [report.spectrum_table(rows)])
    tell_written(folder, [RESULTS_NAME, report.SPECTRUM_TABLE, report.PICTURE_NAME])
