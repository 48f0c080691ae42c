"""`sharpjax dimension`: how many directions the data have about finished images."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sharpjax.commands.blocks import with_blocks
from sharpjax.commands.options import (
    ModelFiles,
    Output,
    PageOption,
    SeedOption,
    of_option,
    tell_written,
    timesteps,
    wide_console,
)

TIMES = "1,5,10,20,50,100,200"


@with_blocks
def dimension(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Of images.")
    ],
    *,
    model: ModelFiles,
    out: Output,
    times: Annotated[
        str, typer.Option(help="Timesteps of training with commas between: noise levels.")
    ] = TIMES,
    probes: Annotated[int, typer.Option(min=2, help="Of LHSD, at each level.")] = 8,
    seed: SeedOption = 0,
    page: PageOption = True,
) -> None:
    """Estimate the local intrinsic dimension of finished images, level by level.

    By the unconditional score: FLIPD and LHSD, with standard errors, at every noise level, and the
    level at which no eigenvalue of the Hessian lies near the cutoff.  Images of a model's own:
    sharpjax sample --prompts FILE, then this on its images/.  A memorized image has few directions
    about it; so has a simple one.  Resumable.
    """
    from sharpjax.runs.images import find_images

    steps, cases = timesteps(times, TIMES), find_images(directory)
    opened = model.open()
    of_option("--times", opened.network.schedule.checked_timestep, steps)
    from sharpjax.report import dimension as report
    from sharpjax.report.terminal import show
    from sharpjax.rundir.run import RESULTS_NAME
    from sharpjax.runs.dimension import DimensionSettings, dimension_of_images

    settings = DimensionSettings(times=steps, num_probes=probes, seed=seed)
    folder = opened.folder(out, "dimension")
    records = dimension_of_images(
        opened.network, directory, cases, folder, settings, fingerprint=opened.fingerprint
    )
    written = report.write(folder, records)
    path = opened.finish(folder, page=page)
    if out.as_json:
        answer = {"directory": str(folder), "report": path and str(path)}
        print(json.dumps(answer | {"images": records}))
    else:
        show(wide_console(), report.blocks(records, report.rows_of(records)))
        tell_written(folder, [RESULTS_NAME, *(one.name for one in written)], path)
    if all("failed" in record for record in records):
        raise ValueError(f"no image of {directory} could be read")
