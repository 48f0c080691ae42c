"""Run directories to one HTML page that needs nothing else: no network, no other file."""

import base64
import functools
import hashlib
import re
import shlex
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from sharpjax import zoo
from sharpjax.page import detection, mitigation, reading, samples, spectrum
from sharpjax.page.blocks import Cell, Column, Section, Table, Text
from sharpjax.page.runs import KINDS, Run, read_run
from sharpjax.rundir import write_text

REPORT_NAME = "report.html"
_MARK = '<meta name="generator" content="sharpjax">'  # of our pages, which may be overwritten
_SECTIONS = {
    "detect": [detection.sections, detection.spectra, samples.grid],
    "detect images": [detection.sections],
    "mitigate": [mitigation.sections],
    "spectrum": [spectrum.sections],
    "ground-truth": [samples.sections],
    "sample": [samples.sections],
}


def write_page(folders: Sequence[str | Path], path: str | Path | None = None) -> Path:
    """Write the page of one run, or of several that belong together.

    Args:
        folders: run directories; of one model, as a page speaks of one.
        path: of the page; ``report.html`` in the first directory if None.

    Returns:
        The path.

    Raises:
        FileNotFoundError: a directory does not exist.
        ValueError: one holds no run that there is a page for, or damaged files; runs of different
            models.
        OSError: the page cannot be written.
    """
    if not folders:
        raise ValueError("a page needs at least one run directory")
    places = [Path(folder).resolve() for folder in folders]
    if twice := [
        str(f) for f, place in zip(folders, places, strict=True) if places.count(place) > 1
    ]:
        raise ValueError(f"{twice[0]} is given twice; a page shows a run once")
    runs = [read_run(folder) for folder in folders]
    models = {str(run.settings.get("model")) for run in runs}
    if len(models) > 1:
        told = ", ".join(f"{run.folder} of {run.settings.get('model')}" for run in runs)
        raise ValueError(f"these runs are of different models ({told}); write a page for each")
    path = _check_place(runs[0].folder / REPORT_NAME if path is None else Path(path))
    text = render(runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _check_place(path: Path) -> Path:
    """Where the page goes: nothing but an earlier page is overwritten.

    Raises:
        IsADirectoryError: it is a directory.
        FileExistsError: something else is there: a file of the user's, a device.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; the page needs the name of a file")
    if path.exists() or path.is_symlink():
        earlier = False
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                earlier = _MARK.encode() in file.read(1000)
        if not earlier:
            raise FileExistsError(
                f"{path} is there and is no earlier page; choose another name, or remove it"
            )
    return path


def render(runs: Sequence[Run]) -> str:
    """The page as text."""
    sections = [Section("What was run", _about(runs))]
    for run in runs:
        found = _read(run, functools.partial(_sections_of, run))
        taken = {section.title for section in sections}
        sections += [
            Section(f"{one.title} ({run.folder.name})", one.blocks) if one.title in taken else one
            for one in found
        ]
    sections += _read(runs[0], functools.partial(_missing, runs))
    sections.append(reading.section())
    folder = files("sharpjax.page") / "templates"
    style, script = ((folder / name).read_text() for name in ("page.css", "tables.js"))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sharpjax.page"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["visible"] = _visible
    environment.filters["unbroken"] = lambda text: any(len(w) > _WORD for w in text.split())
    return environment.get_template("page.html").render(
        mark=_MARK,
        title=f"sharpjax: {runs[0].name}",
        sections=sections,
        style=style,
        script=script,
        # The browser runs this script alone, whatever a prompt holds, and asks nothing of anyone.
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _sections_of(run: Run) -> list[Section]:
    return [section for part in _SECTIONS[run.kind] for section in part(run)]


def _read(run: Run, make: Callable[[], list[Section]]) -> list[Section]:
    """Sections made of a run's files.

    These may be anything, written by hand or by other versions: that one of them holds something
    else than we would write is an error of the files, not of ours.
    """
    try:
        return make()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ValueError) and str(run.folder) in str(error):
            raise  # it names the file already
        raise ValueError(
            f"{run.folder}: its files do not say what a run of {KINDS[run.kind]} says "
            f"({type(error).__name__}: {error}). The command that made the run writes its tables "
            "anew, and computes nothing again"
        ) from error


_WORD = 30  # letters: what is longer may be broken anywhere
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def _visible(text: Any) -> str:
    """Text whose control characters are shown as signs, which HTML forbids."""
    return _CONTROLS.sub(
        lambda m: "␡" if m.group() == "\x7f" else chr(0x2400 + ord(m.group())), str(text)
    )


def _about(runs: Sequence[Run]) -> list[Any]:
    rows: list[list[Cell]] = []
    for run in runs:
        about, settings = run.about, run.settings
        rows.append([Cell("directory"), Cell(str(run.folder))])
        if about:
            rows.append([Cell("command"), Cell(about["command"])])
        model = f"{run.name}, " if about else ""
        rows.append([Cell("model"), Cell(f"{model}fingerprint {settings.get('model')}")])
        told = ", ".join(
            f"{name} {_setting(value)}"
            for name, value in settings.items()
            if name not in ("run", "model", "conditions", "images")
        )
        rows.append([Cell("settings"), Cell(told)])
        if about:
            versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items())
            rows.append([Cell("versions"), Cell(versions)])
            rows.append([Cell("devices"), Cell(about["devices"])])
            for session in about["sessions"]:
                rows.append(
                    [Cell("time"), Cell(f"{session['seconds']:g} s, begun {session['started']}")]
                )
    blocks: list[Any] = [Table("", [Column("what"), Column("value")], rows)]
    if not all(run.about for run in runs):
        blocks.append(
            Text(
                "A run says nothing of versions and time: it is not finished, or was made by an "
                "older version of sharpjax. Its numbers are shown as they are.",
                "note",
            )
        )
    return blocks


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(str, value)) or "none"
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _missing(runs: Sequence[Run]) -> list[Section]:
    """What can be added to a page of detection, and by which commands."""
    first = runs[0]
    kinds = {run.kind for run in runs}
    finished = (first.folder / "results.csv").is_file()
    if first.kind != "detect" or not finished or not first.about:
        return []
    blocks: list[Any] = []
    if "spectrum" not in kinds and not detection.spectra(first):
        told = "Spectra of the sharpest and the flattest condition; nothing else is computed again:"
        blocks += [Text(told), Text(f"{first.about['command']} --spectra", "code")]
    model = first.about["model"]
    if "mitigate" not in kinds and model != "mnist":
        told = f"sharpjax mitigate --model {shlex.quote(model)}"
        if model not in zoo.bundled():  # the bundled one names prompts of its own
            told += " --prompts FILE --calibration FILE --clean FILE"
        blocks += [
            Text("Images without copies, before and after:"),
            Text(told, "code"),
            Text("Give the directory that it prints to sharpjax report, after this one:"),
            Text(f"sharpjax report {shlex.quote(str(first.folder))} OTHER_RUN ...", "code"),
        ]
    return [Section("What can be added", blocks)] if blocks else []
