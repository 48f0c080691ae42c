"""Run directories as the page reads them: finished or not, of older versions too."""

import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sharpjax.provenance import read_about
from sharpjax.rundir import SETTINGS_NAME, read_lines

KINDS = {  # of settings.json, and the commands that make them
    "detect": "sharpjax detect or calibrate",
    "detect images": "sharpjax detect --images",
    "mitigate": "sharpjax mitigate",
    "spectrum": "sharpjax spectrum",
    "ground-truth": "sharpjax ground-truth",
    "sample": "sharpjax sample or ground-truth",
}
_CELL = 2**24  # characters that a cell of a table may have; csv's own limit is 128 KiB


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory holds.

    Attributes:
        folder: where it is.
        kind: one of :data:`KINDS`.
        settings: everything that defines its results.
        about: what made it; empty for runs of older versions.
    """

    folder: Path
    kind: str
    settings: Mapping[str, Any]
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the model where it is known, or of the directory."""
        return str(self.about.get("model", self.folder.resolve().name))

    def records(self) -> list[dict[str, Any]]:
        """Of all processes, in the order of their numbers; nothing is repaired."""
        found = [
            record
            for path in sorted(self.folder.glob("results*.jsonl"))
            for record in read_lines(path, repair=False)
        ]
        return sorted(found, key=lambda record: record.get("index", 0))

    def table(self, name: str) -> list[dict[str, str]]:
        """The rows of a CSV file of the run; none if it is not there.

        Raises:
            ValueError: it cannot be read as one.
        """
        path = self.folder / name
        if not path.is_file():
            return []
        before = csv.field_size_limit(_CELL)
        try:
            with path.open(newline="") as file:
                return list(csv.DictReader(file))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} cannot be read as a table: {error}. The command that made the run writes "
                "it anew, and computes nothing again"
            ) from error
        finally:
            csv.field_size_limit(before)

    def document(self, name: str) -> Any:
        """What a JSON file of the run holds; None if it is not there.

        Raises:
            ValueError: it is not valid JSON.
        """
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error


def read_run(folder: str | Path) -> Run:
    """Look into a run directory.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it holds no run, or one that there is no page for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise FileNotFoundError(
            f"{folder} {what}; give the run directory that a command of sharpjax printed"
        )
    path = folder / SETTINGS_NAME
    if not path.is_file():
        inside = [p.name for p in folder.iterdir() if (p / SETTINGS_NAME).is_file()]
        hint = (
            f"; there are runs in it: {', '.join(sorted(inside)[:8])}"
            if inside
            else "; give the run directory that a command of sharpjax printed"
        )
        raise ValueError(f"{folder} holds no run ({SETTINGS_NAME} is missing){hint}")
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON: {error}; without it the run cannot be read or resumed"
        ) from error
    if not isinstance(settings, dict) or not all(
        isinstance(settings.get(name), str) for name in ("run", "model")
    ):
        raise ValueError(
            f"{path} is not what a run of sharpjax writes; without it the run cannot be read or "
            "resumed"
        )
    kind = settings["run"]
    if kind not in KINDS:
        raise ValueError(
            f"{folder} holds a run of kind {kind!r}, which has no page; there are pages of "
            f"{', '.join(KINDS)}"
        )
    return Run(folder, kind, settings, read_about(folder))


def number(row: Mapping[str, str], name: str) -> float:
    """A cell of a table as a number; NaN where there is none."""
    try:
        return float(row.get(name) or "nan")
    except ValueError:
        return float("nan")
