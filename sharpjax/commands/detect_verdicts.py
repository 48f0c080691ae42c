"""How a run of ``sharpjax detect`` is judged, and how that is told."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from sharpjax.commands.options import console, tell_written, wide_console
from sharpjax.detection import run
from sharpjax.detection.calibration import CALIBRATION_NAME, Calibration
from sharpjax.detection.settings import DetectSettings
from sharpjax.detection.summary import REFERENCE, Judged, Summary
from sharpjax.page import write_page
from sharpjax.provenance import Clock
from sharpjax.report import detection as report


def find_calibration(
    path: Path | None, directory: Path, settings: DetectSettings, who: str
) -> tuple[Calibration | None, str]:
    """The one that was asked for, or the model's own if its settings are these; and a remark."""
    if path is not None:
        found = Calibration.load(path)
        found.check(settings, fingerprint=who)
        return found, ""
    own = directory / CALIBRATION_NAME
    if not own.is_file():
        return None, (
            "No verdicts: thresholds are not known. sharpjax calibrate sets them on clean prompts."
        )
    found = Calibration.load(own)
    try:
        found.check(settings, fingerprint=who)
    except ValueError as error:
        return None, f"No verdicts: {error}."
    return found, ""


def deciding_column(
    wanted: str | None, columns: Sequence[str], thresholds: Calibration | None, remark: str
) -> str | None:
    """The column that verdicts go by."""
    if thresholds is None:
        if wanted is not None:
            raise ValueError(f"--decide-by {wanted} needs --calibration. {remark}")
        return None
    able = [name for name in columns if name in thresholds.thresholds]
    names = (wanted or REFERENCE,)
    for name in able:
        if name in names or name.split("@")[0] in names:
            return name
    if wanted is not None:
        raise ValueError(
            f"--decide-by {wanted}: no threshold of it here; there are those of "
            f"{', '.join(able) or 'none'}"
        )
    return able[0] if able else None


@dataclasses.dataclass(frozen=True)
class Found:
    """What a run came to, and what it was judged by."""

    judged: Judged
    summaries: list[Summary]
    costs: dict[str, dict[str, float]]
    thresholds: Calibration | None
    decide_by: str | None
    remark: str


def finish(
    folder: Path, found: Found, written: list[Path], *, clock: Clock, page: bool, as_json: bool
) -> None:
    """Note what the run was judged by, write its page, tell."""
    limits = found.thresholds.thresholds if found.thresholds else {}
    clock.record(
        folder,
        decide_by=found.decide_by,
        remark=found.remark,
        **report.plain(
            {
                "thresholds": {name: dataclasses.asdict(one) for name, one in limits.items()},
                "costs": found.costs,
            }
        ),
    )
    path = write_page([folder]) if page else None
    if as_json:
        answer = {"directory": str(folder), "report": path and str(path)}
        print(json.dumps(answer | {"summary": report.as_json(found.summaries)}))
        return
    _show(found)
    if found.remark:
        console.print(found.remark)
    tell_written(folder, [file.name for file in [*run.result_files(folder), *written]], path)


def _show(found: Found) -> None:
    judged, summaries = found.judged, found.summaries
    wide = wide_console()
    if (summaries and summaries[0].network is not None) or any(s.oracle for s in summaries):
        wide.print(report.summary_table(summaries))
    for which in ("source", "level"):
        if (table := report.apart_table(summaries, which)) is not None:
            wide.print(table)
    if (table := report.dose_table(judged)) is not None:
        wide.print(table)
    if found.decide_by in judged.names() and found.thresholds is not None:
        wide.print(report.verdict_table(judged, found.thresholds, found.decide_by))
    elif judged.records and summaries and summaries[0].network is None:
        wide.print(report.values_table(judged))
    wide.print(report.cost_table(found.costs))
    for line in report.remarks(judged, summaries):
        wide.print(line)
    shown = {column.split("@")[0] for column in judged.names()}
    absent = [name for name in found.costs if name not in shown]
    if absent and judged.records:
        wide.print(
            f"Not shown: {', '.join(absent)}, which are measured by clean prompts; run sharpjax "
            "calibrate with the same settings and give its file by --calibration."
        )
