"""`sharpjax calibrate`: thresholds of detection from prompts or images known to be clean."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sharpjax.commands.blocks import with_blocks
from sharpjax.commands.options import (
    IMAGES,
    Devices,
    ModelFiles,
    Numbers,
    OfImages,
    Output,
    Prompts,
    console,
    of_option,
    tell_written,
)
from sharpjax.prompts import Case, distinct


@with_blocks
def calibrate(
    *,
    model: ModelFiles,
    file: Prompts,
    images: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Calibrate on the images of this directory instead, known to be clean, for "
            "sharpjax images.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    of_images: OfImages,
    out: Output,
    quantile: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Fraction of new clean prompts that may not be called memorized."
        ),
    ] = 0.95,
    numbers: Numbers,
    spread: Devices,
) -> None:
    """Set thresholds on prompts that are known to be clean, for a model whose memories are not.

    Writes calibration.json to the run directory, which sharpjax detect --calibration takes: the
    threshold of every statistic with its interval, and the means and standard deviations that
    standardised_alignment and step_displacement are measured by.  Use prompts of the kind that will
    be judged: of fewer than 19 different ones no threshold promises 95% (--quantile 0.99 needs 99),
    and fewer than 72 (368) leave its interval open.  The bundled model has
    captions of its own for that.
    """
    if images is not None and file.prompts is not None:
        raise ValueError("--images is without prompts: leave --prompts and --column out")
    if images is not None and dataclasses.replace(numbers, seed=0, dtype="float32") != Numbers():
        raise ValueError(
            "--images computes the p-Laplacian alone; leave the options of prompts out"
        )
    cases = file.cases()
    _check_clean(cases, file.prompts)
    opened = model.open(dtype=numbers.dtype, spread=spread, baseline=numbers.baseline)
    from sharpjax.detection.calibration import CALIBRATION_NAME, Calibration, check_count
    from sharpjax.detection.settings import DetectSettings, ImageSettings
    from sharpjax.detection.summary import Judged
    from sharpjax.report import detect as report
    from sharpjax.report.terminal import show
    from sharpjax.runs.cases import clean_prompts
    from sharpjax.runs.detect import detect
    from sharpjax.runs.images import detect_images, find_images

    network, who, folder = opened.network, opened.fingerprint, opened.folder(out, "calibrate")
    settings: DetectSettings | ImageSettings
    if images is not None:
        of_option("--timestep", network.schedule.checked_timestep, of_images.timestep)
        settings = of_image = of_images.settings(numbers.seed)
        cases = find_images(images)
        _check_clean(cases, images)
        check_count(len(cases), quantile)
        records = detect_images(network, images, cases, folder, of_image, fingerprint=who)
    else:
        settings = of_prompts = numbers.settings(opened, num_directions=of_images.directions)
        network.check(())  # has it any conditions?
        cases = cases or [Case(prompt, "clean") for prompt in clean_prompts(opened.directory)]
        if not cases:
            raise ValueError(
                "--prompts is needed: a file of prompts that the model has certainly not memorized"
            )
        names = [case.condition for case in cases]
        check_count(len(distinct(names)), quantile)
        records = detect(opened.scored, names, folder, of_prompts, **opened.how(numbers.batch))
    fitted = Calibration.fit(records, settings, fingerprint=who, quantile=quantile)
    path = fitted.save(folder / CALIBRATION_NAME)
    opened.clock.record(folder)
    if out.as_json:
        print(path.read_text())
        return
    show(console, [report.threshold_table(fitted), *report.failures(Judged.of(records, cases))])
    use = "detect" if images is None else "images DIR"
    tell_written(folder, [path.name], then=f"; use it by sharpjax {use} --calibration {path}")


def _check_clean(cases: Sequence[Case], where: Path | None) -> None:
    if wrong := [case for case in cases if case.verdict not in (None, "clean")]:
        raise ValueError(
            f"{where} must hold clean ones only; {len(wrong)} are labelled otherwise, such as "
            f"{wrong[0].condition!r} ({wrong[0].verdict})"
        )
