"""Run directories to one HTML page that needs nothing else: no network, no other file."""

import base64
import contextlib
import hashlib
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sharpjax import zoo
from sharpjax.detection.plugins import check_plugins
from sharpjax.report import audit, comparison, detect, dimension, maps, reading, sample, spectrum
from sharpjax.report.blocks import Block, Column, Section, Table, Text, visible
from sharpjax.report.detection import RESULTS_TABLE
from sharpjax.report.drawing import MOST, drawn
from sharpjax.rundir.files import write_text
from sharpjax.rundir.run import Run
from sharpjax.runs.spectrum import SPECTRA_NAME

REPORT_NAME = "report.html"
_MARK = '<meta name="generator" content="sharpjax">'  # of our pages, which may be overwritten
# of the kinds of settings.json: what makes them, and what they show
_KINDS: dict[str, tuple[str, list[Callable[[Run], list[Section]]]]] = {
    "detect": ("detect or calibrate", [detect.sections_of, sample.grid_of]),
    "detect images": ("images", [detect.sections_of]),
    "mitigate": (
        "mitigate",
        [comparison.sections_of],
    ),
    "audit": ("audit", [audit.sections_of]),
    "maps": ("detect --maps", [maps.sections_of]),
    "dimension": ("dimension", [dimension.sections_of]),
    "spectrum": ("spectrum", [spectrum.sections_of]),
    "ground-truth": ("ground-truth", [sample.sections_of]),
    "sample": ("sample or ground-truth", [sample.sections_of]),
}


def write_page(folders: Sequence[str | Path], path: str | Path | None = None) -> Path:
    """Write the page of one run, or of several that belong together; its path.

    Args:
        folders: run directories; of one model, as a page speaks of one.
        path: of the page; `report.html` in the first directory if None.

    Raises:
        FileNotFoundError: a directory does not exist.
        ValueError: one holds no run that there is a page for, or damaged files; runs of different
            models; a plugin is missing, or not that of the run.
        OSError: the page cannot be written.
    """
    if not folders:
        raise ValueError("a page needs at least one run directory")
    places = [Path(folder).resolve() for folder in folders]
    if twice := [place for place in places if places.count(place) > 1]:
        raise ValueError(f"{twice[0]} is given twice; a page shows a run once")
    runs = [Run.open(folder) for folder in folders]
    for run in runs:
        if run.kind not in _KINDS:
            raise ValueError(
                f"{run.folder} holds a run of kind {run.kind!r}, which has no page; there are "
                f"pages of {', '.join(_KINDS)}"
            )
        check_plugins(run.settings.get("plugins") or ())
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
    earlier = path.is_file() and not path.is_symlink() and _MARK.encode() in path.read_bytes()
    if not earlier and (path.exists() or path.is_symlink()):
        raise FileExistsError(
            f"{path} is there and is no earlier page; choose another name, or remove it"
        )
    return path


def render(runs: Sequence[Run]) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sharpjax.report"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["visible"] = visible
    environment.filters["whole_words"] = _whole_words
    environment.filters["drawn"] = drawn
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["unbroken"] = lambda text: any(len(w) > _WORD for w in text.split())
    sections: list[Section] = []
    bodies = []

    def add(found: Sequence[Section]) -> None:
        bodies.append(environment.get_template("sections.html").render(sections=found, most=MOST))
        sections.extend(found)

    add([Section("What was run", _about(runs))])
    for run in runs:
        with _damage_told(run):
            taken = {section.title for section in sections}
            add([
                Section(f"{one.title} ({run.folder.name})", one.blocks)
                if one.title in taken else one
                for part in _KINDS[run.kind][1]
                for one in part(run)
            ])  # fmt: skip
    with _damage_told(runs[0]):
        add(_missing(runs))
    add([reading.section()])
    folder = files("sharpjax.report") / "templates"
    style, script = ((folder / name).read_text() for name in ("page.css", "tables.js"))
    return environment.get_template("page.html").render(
        mark=_MARK,
        title=f"sharpjax: {runs[0].about.get('model', runs[0].folder.resolve().name)}",
        sections=sections,
        bodies=bodies,
        style=style,
        script=script,
        # The browser runs this script alone, whatever a prompt holds, and asks nothing of anyone.
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


@contextlib.contextmanager
def _damage_told(run: Run) -> Iterator[None]:
    """A run's files may be anything, written by hand or by other versions: errors say so."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ValueError) and str(run.folder) in str(error):
            raise  # it names the file already
        raise ValueError(
            f"{run.folder}: its files do not say what a run of sharpjax {_KINDS[run.kind][0]} says "
            f"({type(error).__name__}: {error}). The command that made the run writes its tables "
            "anew, and computes nothing again"
        ) from error


_WORD = 30  # letters: what is longer may be broken anywhere
_WHOLE = 24  # letters of an option, a name or a date that stay on one line, on a phone too


def _whole_words(text: str) -> Markup:
    """Words in which a browser breaks no line, `--images` after no dash; long ones where they join.

    What is selected and copied is the text as it was.
    """
    return Markup("").join(
        word if not re.search(r"[-/,=_.]", word)
        else Markup('<span class="whole">{}</span>').format(word) if len(word) <= _WHOLE
        else Markup("<wbr>").join(re.split(r"(?<=[,=/_])(?=\w)", word))
        for word in re.split(r"(\s+)", text)
    )  # fmt: skip


def _about(runs: Sequence[Run]) -> list[Block]:
    rows: list[tuple[str, str]] = []
    for run in runs:
        about, settings = run.about, run.settings
        model = f"fingerprint {settings.get('model')}"
        told = ", ".join(
            f"{name} {_setting(value)}"
            for name, value in settings.items()
            if name not in ("run", "model", "conditions", "images")
        )
        rows.append(("directory", str(run.folder)))
        if not about:
            rows += [("model", model), ("settings", told)]
            continue
        versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items())
        rows += [
            ("command", about["command"]), ("model", f"{about['model']}, {model}"),
            ("settings", told), ("versions", versions), ("devices", about["devices"]),
        ]  # fmt: skip
        sessions = about["sessions"]
        rows += [("time", f"{s['seconds']:g} s, begun {s['started']}") for s in sessions]
        if len(sessions) > 1:
            rows.append(("in all", f"{sum(s['seconds'] for s in sessions):g} s"))
    columns = [Column("what", lambda row: row[0]), Column("value", lambda row: row[1])]
    told = "A run says nothing of versions and time: it is not finished, or was made by an older "
    told += "version of sharpjax. Its numbers are shown as they are."
    note = [] if all(run.about for run in runs) else [Text(told, "note")]
    return [Table("", columns, rows), *note]


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_setting(one)}" for name, one in value.items())
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _missing(runs: Sequence[Run]) -> list[Section]:
    """What can be added to a page of detection, and by which commands."""
    first = runs[0]
    kinds = {run.kind for run in runs}
    finished = (first.folder / RESULTS_TABLE).is_file()
    if first.kind != "detect" or not finished or not first.about:
        return []
    blocks: list[Block] = []
    if "spectrum" not in kinds and not (first.folder / SPECTRA_NAME).is_dir():
        told = "Spectra of the sharpest and the flattest condition; nothing else is computed again:"
        blocks += [Text(told), Text(f"{first.about['command']} --spectra", "code")]
    model = first.about["model"]
    if "mitigate" not in kinds and model != "mnist":
        told = f"sharpjax mitigate --model {shlex.quote(model)}"
        # the bundled one names prompts of its own, if these are not the run's
        if model not in zoo.bundled() or "--prompts" in first.about["command"]:
            told += " --prompts FILE --calibration FILE --clean FILE"
        blocks += [
            Text("Images without copies, before and after:"),
            Text(told, "code"),
            Text("Give the directory that it prints to sharpjax report, after this one:"),
            Text(f"sharpjax report {shlex.quote(str(first.folder))} OTHER_RUN ...", "code"),
        ]
    return [Section("What can be added", blocks)] if blocks else []
