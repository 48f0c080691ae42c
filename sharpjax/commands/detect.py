"""`sharpjax detect`: which conditions or prompts are memorized."""

import dataclasses
import sys
from typing import Annotated

import typer

from sharpjax.commands.blocks import with_blocks
from sharpjax.commands.options import (
    JUDGING,
    NUMBERS,
    ConditionOption,
    Judging,
    ModelFiles,
    Numbers,
    Output,
    PageOption,
    Processes,
    Prompts,
)


@with_blocks
def detect(
    *,
    model: ModelFiles,
    file: Prompts,
    condition: ConditionOption = None,
    out: Output,
    numbers: Numbers,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="The long version: all statistics and all prompts of a bundled model; of "
            "conditions 16 noises, 4 of them with 32 probes.",
        ),
    ] = False,
    judging: Judging,
    until_sure: Annotated[
        bool,
        typer.Option(
            "--until-sure",
            help="Noises are added one by one, at most --noises, and only while they could change "
            "the verdict: in at most 1% of the prompts it is another than that of all of them.",
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
    maps: Annotated[
        bool,
        typer.Option(
            "--maps",
            help="Also where the first image of each is memorized: a PNG and an array a condition, "
            "one more path and 16 probes.",
            rich_help_panel=NUMBERS,
        ),
    ] = False,
    page: PageOption = True,
    spread: Processes,
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
    if file.prompts is not None and condition:
        raise ValueError("--prompts and --condition exclude each other")
    if until_sure and spread.processes is not None:
        raise ValueError("--until-sure is for one process: leave --processes out, or it")
    cases = file.cases()
    opened = model.open(dtype=numbers.dtype, spread=spread, baseline=numbers.baseline)
    import jax

    from sharpjax.commands.detect_verdicts import rule_of, tell, verdicts_by
    from sharpjax.detection.compute import evaluations
    from sharpjax.report import maps as maps_report
    from sharpjax.report import spectrum as spectra_report
    from sharpjax.report.detect import write
    from sharpjax.report.detection import Detection, costs
    from sharpjax.report.sample import copy_shipped_grid
    from sharpjax.rundir.files import within
    from sharpjax.runs.cases import own_cases, training_set_of
    from sharpjax.runs.detect import detect as compute
    from sharpjax.runs.maps import MAPS_NAME, MapSettings
    from sharpjax.runs.maps import maps as compute_maps
    from sharpjax.runs.spectrum import SPECTRA_NAME, SpectrumSettings
    from sharpjax.runs.spectrum import spectrum as compute_spectra
    from sharpjax.runs.until_sure import share_of_noises
    from sharpjax.runs.until_sure import until_sure as compute_until_sure

    network, directory, scored = opened.network, opened.directory, opened.scored
    compared = opened.compared is not None
    settings = numbers.settings(opened, everything=everything)
    cases = cases or own_cases(network, directory, condition or [], everything=everything)
    names = [case.condition for case in cases]
    verdicts = verdicts_by(judging, opened, settings, settings.names(network.schedule))
    folder = opened.folder(out, "detect")
    # the exact score is of one model, not of the difference of two
    known = {} if compared else training_set_of(network, directory, names)
    how, rule = opened.how(numbers.batch), None
    if until_sure:
        rule = rule_of(verdicts, settings)
        records = compute_until_sure(scored, names, folder, settings, rule, **how)
    else:
        records = compute(scored, names, folder, settings, **how, **known)
    if jax.process_index() > 0:
        print(f"process {spread.process} is done; process 0 writes the tables", file=sys.stderr)
        return
    asked = evaluations(settings, compared=compared)
    if rule is not None:
        asked = share_of_noises(asked, records, rule)
    facts = {
        "costs": costs(folder, asked),
        "level": network.meaning_of_levels,
        "baseline": numbers.baseline or "",
        "until_sure": rule and dataclasses.asdict(rule),
    }
    found = Detection.of(records, cases, **facts, **verdicts)
    written = write(folder, found)
    # of the model's own prompts: not of others
    grid = None if file.prompts else copy_shipped_grid(directory, folder)
    written += [grid] if grid else []
    if spectra and found.judged.records:
        column = found.decide_by or found.judged.names()[0]
        chosen = found.judged.extremes(column)
        steps = settings.num_steps
        of_spectra = SpectrumSettings(num_steps=steps, num_stages=min(3, steps), seed=settings.seed)
        inside = within(folder, f"{SPECTRA_NAME}/{column}")
        known, who = training_set_of(network, directory, chosen), opened.fingerprint
        curves = compute_spectra(network, chosen, inside, of_spectra, fingerprint=who, **known)
        spectra_report.write(inside, curves)
        written.append(folder / SPECTRA_NAME)
    if maps:
        of_maps = MapSettings(
            num_steps=settings.num_steps, guidance=settings.guidance, seed=settings.seed
        )
        inside, who = within(folder, MAPS_NAME), opened.fingerprint
        maps_report.write(inside, compute_maps(scored, names, inside, of_maps, fingerprint=who))
        written.append(inside)
    path = opened.finish(folder, page=page, **found.facts)
    tell(folder, found, written, path, as_json=out.as_json)
