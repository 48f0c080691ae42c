"""What commands do at their end, of a run that was computed in Python: tables, plots, the page."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpjax.detection.calibration import CALIBRATION_NAME, QUANTILE, Calibration
from sharpjax.detection.compute import evaluations
from sharpjax.detection.settings import DetectSettings
from sharpjax.detection.summary import deciding_column
from sharpjax.mitigation.judging import Judge
from sharpjax.mitigation.methods import NONE
from sharpjax.prompts import Case
from sharpjax.report import detect, mitigate
from sharpjax.report.detection import Detection, costs
from sharpjax.report.page import write_page
from sharpjax.rundir.about import Clock
from sharpjax.rundir.run import Run

NAME = "a model in memory"


def finish_calibration(
    directory: str | Path, *, quantile: float = QUANTILE, model: str = NAME
) -> Calibration:
    """Set thresholds by a run of `sharpjax.runs.detect` on conditions that are known to be clean.

    Args:
        directory: of the run.
        quantile: fraction of new clean conditions that may not be called memorized.
        model: its name on the page.

    Returns:
        What `finish_detection` takes; `calibration.json` in the directory holds it, which `sharpjax
        detect --calibration` does not take: a model in memory has another digest than its files.

    Raises:
        ValueError: a run of another kind or that is not finished, or too few conditions.
    """
    run = _finished(directory, "detect", "num_conditions")
    fitted = Calibration.fit(
        run.records(), _settings(run), fingerprint=run.settings["model"], quantile=quantile
    )
    fitted.save(run.folder / CALIBRATION_NAME)
    Clock(model).record(run.folder)
    write_page([run.folder])
    return fitted


def finish_detection(
    directory: str | Path,
    cases: Sequence[Case] = (),
    *,
    thresholds: Calibration | None = None,
    decide_by: str | None = None,
    model: str = NAME,
) -> Detection:
    """Judge a run of `sharpjax.runs.detect`; write its tables, its plots and its page.

    Args:
        directory: of the run.
        cases: what is known of its conditions; of those that are not among them, nothing.
        thresholds: of verdicts; none, no verdicts.
        decide_by: the statistic of the verdicts; `score_difference` if None, or the first that has
            a threshold.
        model: its name on the page.

    Returns:
        `rows`, of each condition the values, margins and verdict, which `results.csv` has too;
        `summaries`, of each statistic how well it tells where cases are known. The page is
        `report.html` in the directory.

    Raises:
        ValueError: a run of another kind or that is not finished; thresholds of another model or
            other settings, or none of `decide_by`.
    """
    run = _finished(directory, "detect", "num_conditions")
    records, known = run.records(), {case.condition: case for case in cases}
    settings = _settings(run)
    told: dict[str, Any] = {"remark": "No verdicts: no thresholds were given."}
    if thresholds is not None:
        thresholds.check(settings, fingerprint=run.settings["model"])
        columns = [name for r in records for name in r.get("network", ())]
        column = deciding_column(decide_by, list(dict.fromkeys(columns)), thresholds)
        told = {"thresholds": thresholds, "decide_by": column}
    elif decide_by is not None:
        raise ValueError(f"decide_by={decide_by!r} needs thresholds")
    found = Detection.of(
        records,
        [known.get(r["condition"], Case(r["condition"])) for r in records],
        costs=costs(run.folder, evaluations(settings)),
        **told,
    )
    detect.write(run.folder, found)
    Clock(model).record(run.folder, **found.facts)
    write_page([run.folder])
    return found


def finish_mitigation(
    directory: str | Path,
    *,
    judge: Judge | None = None,
    detection: Detection | None = None,
    model: str = NAME,
) -> list[dict[str, Any]]:
    """Judge the images of a run of `sharpjax.runs.mitigate`; write its tables and its page.

    Args:
        directory: of the run: of one method at one strength, beside images without.
        judge: of copies, such as a `sharpjax.mitigation.ReferenceJudge`; none, nothing is judged.
        detection: of the same prompts, for their verdicts.
        model: its name on the page.

    Returns:
        Of each prompt the verdict, the shares of copies before and after, files of images; as in
        `prompts.json`. The page is `report.html` in the directory.

    Raises:
        ValueError: a run of another kind, or of several methods or none.
    """
    run = _finished(directory, "mitigate")
    records = run.records()
    used = {(r["method"], r["strength"]) for r in records if r["method"] != NONE}
    if len(used) != 1:
        told = ", ".join(f"{name} at {strength:g}" for name, strength in sorted(used))
        raise ValueError(
            f"a page is of one method at one strength, {run.folder} has {told or 'none'}"
        )
    prompts = dict(sorted((r["index"], r["prompt"]) for r in records))
    verdicts = None
    if detection is not None and (name := detection.verdicts_by) is not None:
        limit, judged = detection.limits[name], detection.judged
        values = zip(judged.cases, judged.means("network", name), strict=True)
        by = {case.condition: (float(v), limit.verdict(float(v))) for case, v in values}
        lacking = (float(np.nan), "not known: not detected")
        verdicts = [by.get(prompt, lacking) for prompt in prompts.values()], limit
    ((method, strength),) = used
    table, _ = mitigate.write(
        run.folder, records, prompts, judge, method=method, strength=strength, found=verdicts
    )
    above = None if verdicts is None else verdicts[1].value
    Clock(model).record(run.folder, method=method, strength=strength, threshold=above)
    write_page([run.folder])
    return table


def _settings(run: Run) -> DetectSettings:
    fields = [field.name for field in dataclasses.fields(DetectSettings) if field.init]
    return DetectSettings(**{name: run.settings[name] for name in fields})


def _finished(directory: str | Path, kind: str, total: str = "") -> Run:
    run = Run.open(directory)
    if run.kind != kind:
        raise ValueError(f"{run.folder} holds a run of kind {run.kind!r}, not {kind!r}")
    there, asked = len(run.records()), run.settings.get(total, 0)
    if there < asked:
        raise ValueError(
            f"{run.folder} has {there} of {asked} conditions: call sharpjax.runs.{kind} again, "
            "which goes on"
        )
    return run
