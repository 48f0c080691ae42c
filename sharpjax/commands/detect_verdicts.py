"""How runs of `sharpjax detect` and `sharpjax images` are judged, and how that is told."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sharpjax.commands.options import Judging, Opened, tell_written, wide_console
from sharpjax.detection.calibration import CALIBRATION_NAME, Calibration
from sharpjax.detection.sequential import UntilSure
from sharpjax.detection.settings import DetectSettings, ImageSettings
from sharpjax.detection.summary import deciding_column
from sharpjax.report.detect import sections
from sharpjax.report.detection import Detection, answer
from sharpjax.report.terminal import show
from sharpjax.rundir.run import Run


def verdicts_by(
    asked: Judging, opened: Opened, settings: DetectSettings | ImageSettings, columns: Sequence[str]
) -> dict[str, Any]:
    """Of a `Detection`: its thresholds and the column that decides; or a remark why by nothing.

    They are those that are asked for, or the model's own if its settings are these.

    Raises:
        ValueError: these are of another model or other settings, or know nothing of the column.
    """
    found, remark = None, "No verdicts: thresholds are not known. sharpjax calibrate "
    own = opened.directory / CALIBRATION_NAME
    if asked.calibration is not None:
        found = Calibration.load(asked.calibration)
        found.check(settings, fingerprint=opened.fingerprint)
    elif isinstance(settings, ImageSettings):
        remark += (
            "--images sets them on clean images. The smaller (the more negative) the p-Laplacian, "
            "the more it says memorized."
        )
    elif not own.is_file():
        remark += "sets them on clean prompts."
    else:
        found = Calibration.load(own)
        try:
            found.check(settings, fingerprint=opened.fingerprint)
        except ValueError as error:
            shipped = str(error).replace("the calibration", "the calibration of the model", 1)
            found, remark = None, f"No verdicts: {shipped}."
    wanted = asked.decide_by
    if wanted is not None and wanted not in {*columns, *(name.split("@")[0] for name in columns)}:
        raise ValueError(f"--decide-by must be one of {', '.join(columns)}, got {wanted!r}")
    if found is not None:
        decide_by = deciding_column(wanted, columns, found)
        if decide_by is None and asked.calibration is not None:
            raise ValueError(
                f"{asked.calibration} has no threshold of {', '.join(columns)}, but of "
                f"{', '.join(found.thresholds)}: make one of the same --statistics, or leave "
                "--calibration out"
            )
        return {"thresholds": found, "decide_by": decide_by}
    if wanted is not None:
        raise ValueError(f"--decide-by {wanted} needs --calibration. {remark}")
    return {"remark": remark}


def rule_of(verdicts: Mapping[str, Any], settings: DetectSettings) -> UntilSure:
    """When `--until-sure` stops, by the threshold that verdicts go by.

    Raises:
        ValueError: there is none, or it cannot say how much noises differ.
    """
    column = verdicts.get("decide_by")
    if column is None:
        raise ValueError(f"--until-sure needs a threshold. {verdicts.get('remark', '')}".strip())
    if settings.num_noises < 2:
        raise ValueError("--until-sure adds noises: give --noises 2 or more")
    return UntilSure.of(column, verdicts["thresholds"].thresholds[column], most=settings.num_noises)


def tell(
    folder: Path, found: Detection, written: list[Path], path: Path | None, *, as_json: bool
) -> None:
    """What was found, or the summaries as JSON; `path` is that of the page.

    Raises:
        ValueError: no case gave numbers.
    """
    if as_json:
        where = {"directory": str(folder), "report": path and str(path)}
        print(json.dumps(where | answer(found)))
    else:
        show(wide_console(), sections(found))
        names = [file.name for file in [*Run.open(folder).result_files, *written]]
        tell_written(folder, names, path)
    if not found.judged.records:
        raise ValueError(f"no {found.what} gave numbers: {folder} says why of each")
