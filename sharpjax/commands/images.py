"""`sharpjax images`: which finished images are memorized, without their prompts."""

from pathlib import Path
from typing import Annotated

import typer

from sharpjax.commands.blocks import with_blocks
from sharpjax.commands.options import (
    Devices,
    Judging,
    ModelFiles,
    OfImages,
    Output,
    PageOption,
    SeedOption,
    of_option,
)


@with_blocks
def images(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Of images. A [bold]labels.csv[/bold] in it may have columns prompt (the file's "
            "name), label and source.",
        ),
    ],
    *,
    model: ModelFiles,
    out: Output,
    of_images: OfImages,
    seed: SeedOption = 0,
    judging: Judging,
    page: PageOption = True,
    spread: Devices,
) -> None:
    """Tell which finished images are memorized, without their prompts.

    Computes the p-Laplacian about each from the unconditional score: the more negative, the more it
    says memorized.  Verdicts need thresholds, which sharpjax calibrate --images sets on clean ones.
    """
    from sharpjax.runs.images import detect_images, find_images

    cases = find_images(directory)  # before a model is opened, which may take minutes
    opened = model.open(spread=spread)
    from sharpjax.commands.detect_verdicts import tell, verdicts_by
    from sharpjax.report.detect import write
    from sharpjax.report.detection import Detection, costs

    of_option("--timestep", opened.network.schedule.checked_timestep, of_images.timestep)
    settings = of_images.settings(seed)
    verdicts = verdicts_by(judging, opened, settings, settings.names())
    folder = opened.folder(out, "images")
    records = detect_images(
        opened.network, directory, cases, folder, settings, fingerprint=opened.fingerprint
    )
    evaluations = {"p_laplacian": ("images", settings.num_directions, 0)}
    spent = costs(folder, evaluations)
    found = Detection.of(records, cases, what="image", costs=spent, **verdicts)
    written = write(folder, found)
    path = opened.finish(folder, page=page, **found.facts)
    tell(folder, found, written, path, as_json=out.as_json)
