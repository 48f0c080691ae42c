"""Run directories as the page reads them: finished or not, of older versions too."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sharpjax.page.blocks import Picture
from sharpjax.page.drawing import picture
from sharpjax.provenance import read_about
from sharpjax.rundir import SETTINGS_NAME, read_csv, read_lines, within

KINDS = {  # of settings.json, and the commands that make them
    "detect": "sharpjax detect or calibrate",
    "detect images": "sharpjax detect --images",
    "mitigate": "sharpjax mitigate",
    "spectrum": "sharpjax spectrum",
    "ground-truth": "sharpjax ground-truth",
    "sample": "sharpjax sample or ground-truth",
}


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
            for record in read_lines(within(self.folder, path.name), repair=False)
        ]
        return sorted(found, key=lambda record: record.get("index", 0))

    def table(self, name: str) -> list[dict[str, str]]:
        """The rows of a CSV file of the run; none if it is not there.

        Raises:
            ValueError: it cannot be read as one, or leads out of the run.
        """
        path = within(self.folder, name)
        if not path.is_file():
            return []
        try:
            return read_csv(path)
        except ValueError as error:
            raise ValueError(
                f"{error}. The command that made the run writes it anew, and computes nothing again"
            ) from error

    def document(self, name: str) -> Any:
        """What a JSON file of the run holds; None if it is not there.

        Raises:
            ValueError: it is not valid JSON, or leads out of the run.
        """
        path = within(self.folder, name)
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error


def shown_image(run: Run, name: str, label: str, **looks: bool) -> Picture | None:
    """An image of the run as the page shows it; None if it cannot be read, or leads out of it.

    Args:
        run: that it belongs to.
        name: of the file, which may have been read from another file.
        label: what is shown.
        looks: as of :func:`sharpjax.page.drawing.picture`.
    """
    try:
        return picture(within(run.folder, name), label, **looks)
    except ValueError:
        return None


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
    path = within(folder, SETTINGS_NAME)
    if not path.is_file():
        inside = [p.name for p in folder.iterdir() if (p / SETTINGS_NAME).is_file()]
        hint = (
            f"; there are runs in it: {', '.join(sorted(inside)[:8])}"
            if inside
            else "; give the run directory that a command of sharpjax printed"
        )
        raise ValueError(f"{folder} holds no run ({SETTINGS_NAME} is missing){hint}")
    try:
        settings = json.loads(path.read_bytes())
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
