"""A run: settings that may not change, records that survive being killed.

`settings.json` is everything that defines the results; `results.jsonl` has a JSON line per finished
unit of work, each fsynced. The same command again goes on where the file ends; a half-written last
line is dropped. Several processes may claim one directory at the same time; each appends to a file
of its own, `results.0.jsonl`, and reads those of all.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

from sharpjax.rundir import files
from sharpjax.rundir.about import Session, read_about
from sharpjax.rundir.files import PART, read_lines, within
from sharpjax.rundir.progress import progress

logger = logging.getLogger(__name__)

SETTINGS_NAME, RESULTS_NAME = "settings.json", "results.jsonl"
FORMAT = 2  # of runs and calibrations; files without one are of format 1
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.part$")


def check_format(what: str, document: Mapping[str, Any], *, instead: str) -> None:
    """See that a file of a run is of this version.

    Raises:
        ValueError: it is of another; the message says what to do `instead` of reading it.
    """
    if (given := document.get("format", 1)) != FORMAT:
        by = "an earlier" if given == 1 else "another"
        raise ValueError(
            f"{what} was made by {by} version of sharpjax (format {given}), this one reads format "
            f"{FORMAT}; {instead}, or use that version"
        )


class Run:
    """A run directory, to be gone on with (`claim`) or looked into (`open`).

    Attributes:
        folder: where it is.
        kind: such as `"detect"`.
        settings: everything that defines its results.
        done: the records that are on disk, by their key; of a run that was claimed.
    """

    def __init__(self, folder: Path, kind: str, settings: Mapping[str, Any]):
        self.folder, self.kind, self.settings = folder, kind, settings
        self.done: dict[Any, dict[str, Any]] = {}
        self._key: Callable[[Any], Any] = itemgetter("index")
        self._fields: Collection[str] = ()
        self._own = folder / RESULTS_NAME

    @classmethod
    def claim(
        cls,
        directory: str | Path,
        kind: str,
        settings: Mapping[str, Any],
        *,
        key: Sequence[str] = (),
        fields: Collection[str] = (),
        process: int | None = None,
    ) -> "Run":
        """Make the directory for a run, or find that it holds this very run, and read its records.

        Args:
            directory: made with its parents if missing.
            kind: of run.
            settings: everything that defines the results, JSON values and NumPy's scalars only.
            key: the fields that tell one record from another; none if there are no records.
            fields: what else every record must have.
            process: number of this process, if there are several.

        Raises:
            ValueError: a run of another format or kind or with other settings is there, the message
                lists them. Or a setting is NaN or infinite: as NaN differs from itself, its run
                could never go on. Or a record that is none.
            FileExistsError: the directory holds something else, or the path is a file.
            PermissionError: it cannot be written.
        """
        folder = Path(directory)
        settings = {name: _plain(name, value) for name, value in settings.items()}
        settings = {"format": FORMAT, "run": kind} | settings
        path = folder / SETTINGS_NAME
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} must be a directory, it is a file")
        files.refuse_link(path)
        # Another process of this run may claim it meanwhile: settings are looked for again after
        # the other files, which are then its own.
        if folder.exists() and not path.exists() and _strangers(folder) and not path.exists():
            raise FileExistsError(
                f"{folder} is not empty and holds no {kind} run; choose another directory"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            if is_new:
                files.create_text(path, json.dumps(settings, indent=2) + "\n")
            elif not os.access(folder, os.W_OK):
                raise PermissionError(f"directory is not writable: {folder}")
        except OSError as error:
            raise PermissionError(f"cannot write to {folder}: {error}") from error
        _check_same(folder, _read_settings(folder), settings)
        _sweep(folder)
        logger.info("%s: %s", folder, f"a new {kind} run" if is_new else f"the {kind} run goes on")
        run = cls(folder, kind, settings)
        if key:
            run._key, run._fields = itemgetter(*key), {*key, *fields}
            if process is not None:
                run._own = folder / f"results.{process}.jsonl"
            run.read()
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Look into a run directory; nothing is repaired or written.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it holds no run, or one of another format.
        """
        folder = Path(folder)
        given = "give the run directory that a command of sharpjax printed"
        if not folder.is_dir():
            what = "is a file" if folder.is_file() else "does not exist"
            raise FileNotFoundError(f"{folder} {what}; {given}")
        if not within(folder, SETTINGS_NAME).is_file():
            inside = sorted(p.name for p in folder.iterdir() if (p / SETTINGS_NAME).is_file())
            hint = f"there are runs in it: {', '.join(inside[:8])}" if inside else given
            raise ValueError(f"{folder} holds no run ({SETTINGS_NAME} is missing); {hint}")
        settings = _read_settings(folder)
        return cls(folder, settings["run"], settings)

    # --- records -----------------------------------------------------------------------------

    @property
    def result_files(self) -> list[Path]:
        """What the processes of the run have written."""
        return sorted(self.folder.glob("results.*jsonl"))

    def read(self) -> None:
        """Fill `done` with the records of all processes; those of others may be growing."""
        for path in self.result_files:
            for record in read_lines(path, self._fields, repair=path == self._own):
                try:
                    # computed twice, they are equal
                    self.done.setdefault(self._key(record), record)
                except TypeError as error:  # a key that is a list
                    raise ValueError(f"{path} holds what is no record of this run") from error

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See that its records, by `index` and `prompt`, are of these; more may follow at the end.

        Raises:
            ValueError: one is of another.
        """
        for record in self.done.values():
            index, there = record["index"], record["prompt"]
            if index < len(prompts) and there != prompts[index]:
                raise ValueError(
                    f"{self.folder} holds images of other prompts: number {index} is {there!r} "
                    f"there, {prompts[index]!r} now; repeat its prompts in their order (more may "
                    "follow), or choose another directory"
                )

    def work(
        self,
        what: str,
        batches: Iterable[Sequence[Any]],
        compute: Callable[[Sequence[Any], list[Any]], Iterable[dict[str, Any]]],
        *,
        note: Callable[[dict[str, Any]], str] = lambda record: "",
        again: Collection[Any] = (),
    ) -> None:
        """Compute what is not on disk, under a progress bar, and append it.

        Args:
            what: is done, for the bar.
            batches: of keys. One that is not whole on disk is computed again whole: the same
                program on the same numbers gives the same bits, whenever the run was killed.
            compute: `(batch, missing) -> records` of the missing ones; each is on disk before the
                next is asked for.
            note: of a record, beside the bar.
            again: keys that are computed though their records are there, because their files are
                not; such a record is not written twice.
        """
        batches = list(batches)
        left = [[k for k in batch if k not in self.done or k in again] for batch in batches]
        total = sum(map(len, batches))
        # of several processes, which work at the same time, one tells for all
        session = None if re.search(r"\.[1-9]\d*\.jsonl$", self._own.name) else Session(self.folder)
        with progress(what, total=total, done=total - sum(map(len, left))) as bar:
            for batch, missing in zip(batches, left, strict=True):
                for record in compute(batch, missing) if missing else ():
                    if (key := self._key(record)) not in self.done:
                        files.append_lines(self._own, [record])
                        self.done[key] = record
                    if session is not None:
                        session.note()
                    bar.advance(note=note(record))

    def records(self) -> list[dict[str, Any]]:
        """Those of all processes, in the order of their numbers; nothing is repaired."""
        found = [
            record
            for path in self.result_files
            for record in read_lines(within(self.folder, path.name), repair=False)
        ]
        return sorted(found, key=lambda record: record.get("index", 0))

    # --- other files ---------------------------------------------------------------------------

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """What made it; empty of a run that was stopped."""
        return read_about(self.folder)

    def make_folder(self, name: str) -> Path:
        """A folder inside, which may be there."""
        files.make_folder(self.folder / name)
        return self.folder / name

    def table(self, name: str) -> list[dict[str, str]]:
        """The rows of a CSV file of the run; none if it is not there.

        Raises:
            ValueError: it cannot be read as one, or leads out of the run.
        """
        path = within(self.folder, name)
        if not path.is_file():
            return []
        try:
            return files.read_csv(path)
        except ValueError as error:
            raise ValueError(
                f"{error}. The command that made the run writes it anew, and computes nothing again"
            ) from error


def _plain(name: str, value: Any) -> Any:
    """A setting as it comes back from JSON."""
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=lambda one: one.tolist()))
    except ValueError as error:
        raise ValueError(f"{name} must be finite to define a run, got {value}") from error


def _read_settings(folder: Path) -> dict[str, Any]:
    """Of a run of this format."""
    path = folder / SETTINGS_NAME
    lost = "without it the run cannot be read or resumed; choose another directory"
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}; {lost}") from error
    if not isinstance(found, dict) or not {"format", "model"} & found.keys():
        raise ValueError(f"{path} is not what a run of sharpjax writes; {lost}")
    check_format(str(folder), found, instead="choose another directory")
    if not isinstance(found.get("run"), str):
        raise ValueError(f"{path} is not what a run of sharpjax writes; {lost}")
    return found


def _check_same(folder: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    if found["run"] != settings["run"]:
        raise ValueError(
            f"{folder} holds another kind of run ({found['run']}, not {settings['run']}); "
            "choose another directory"
        )
    changed = sorted(k for k in settings.keys() | found.keys() if settings.get(k) != found.get(k))
    if changed:
        told = "; ".join(_difference(k, found.get(k), settings.get(k)) for k in changed)
        can_repeat = settings.keys() == found.keys()
        raise ValueError(
            f"{folder} holds a run with other settings ({told}); "
            f"{'repeat those to resume it, or ' if can_repeat else ''}choose another directory"
        )


def _difference(name: str, there: Any, now: Any) -> str:
    """In words; of two digests there is nothing to read."""
    if name == "plugins" or all(isinstance(v, str) and len(v) == 64 for v in (there, now)):
        return f"other {name}"
    return f"{name}: {there} there, {now} now"


def _strangers(folder: Path) -> bool:
    """Whether anything is there but what killed claims leave; by one look, as others are at it."""
    names = (entry.name for entry in folder.iterdir())
    return any(not (n.startswith(SETTINGS_NAME) and n.endswith(PART)) for n in names)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half-written; what a living one writes is locked."""
    for path in folder.rglob(f"*{PART}"):
        if _TEMPORARY.search(path.name) and path.is_file() and not path.is_symlink():
            with suppress(OSError), path.open("r+b") as file:
                files.lock(file, wait=False)
                path.unlink()
