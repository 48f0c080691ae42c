"""Run directories: settings that may not change, results that survive being killed.

A run is ``settings.json`` and one JSON line per finished unit of work, each fsynced.  Running the
same command again goes on where the file ends; a half-written last line is dropped.  Several
processes may claim one directory at the same time; each appends to a file of its own.
"""

import csv
import json
import logging
import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SETTINGS_NAME = "settings.json"
_PART = ".part"  # ends the names of files being written; a kill leaves one behind


def claim(directory: str | Path, settings: Mapping[str, Any], *, what: str) -> Path:
    """Make the directory for a run, or find that it holds this very run.

    Args:
        directory: made with its parents if missing.
        settings: everything that defines the results, JSON values and NumPy's scalars only.
        what: the kind of run, for messages: ``"training"``, ``"detect"``.

    Raises:
        ValueError: a run of another kind or with other settings is there; the message lists them.
            Or a setting is NaN or infinite: as NaN differs from itself, its run could never go on.
        FileExistsError: the directory holds something else, or the path is a file.
        PermissionError: it cannot be written.
    """
    folder = Path(directory)
    settings = {name: _plain(name, value) for name, value in settings.items()}
    path = folder / SETTINGS_NAME
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; a run needs a directory")
    # Another process of this run may claim it meanwhile: settings are looked for again after the
    # other files, which are then its own.
    if folder.exists() and not path.exists() and _strangers(folder) and not path.exists():
        raise FileExistsError(
            f"{folder} is not empty and holds no {what} run; choose another directory"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        if not path.exists():
            _create(path, json.dumps(settings, indent=2) + "\n")
        elif not os.access(folder, os.W_OK):
            raise PermissionError(f"directory is not writable: {folder}")
    except OSError as error:
        raise PermissionError(f"cannot write to {folder}: {error}") from error
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(found).__name__}")
    if found.get("run") != settings.get("run"):
        raise ValueError(
            f"{folder} holds another kind of run ({found.get('run', 'unknown')}, not {what}); "
            "choose another directory"
        )
    changed = sorted(k for k in settings.keys() | found.keys() if settings.get(k) != found.get(k))
    if changed:
        told = "; ".join(_difference(k, found.get(k), settings.get(k)) for k in changed)
        raise ValueError(
            f"{folder} holds a run with other settings ({told}). "
            f"Repeat those settings to resume it, or choose another directory"
        )
    logger.info("%s: %s", folder, f"a new {what} run" if is_new else f"the {what} run goes on")
    return folder


def _plain(name: str, value: Any) -> Any:
    """A setting as it comes back from JSON."""
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=lambda one: one.tolist()))
    except ValueError as error:
        raise ValueError(f"{name} must be finite to define a run, got {value}") from error


def _difference(name: str, there: Any, now: Any) -> str:
    """In words; of two digests there is nothing to read."""
    if all(isinstance(v, str) and len(v) == 64 for v in (there, now)):
        return f"other {name}"
    return f"{name}: {there} there, {now} now"


def _strangers(folder: Path) -> bool:
    """Whether anything is there but what killed claims leave."""
    names = (entry.name for entry in folder.iterdir())
    return any(not (n.startswith(SETTINGS_NAME) and n.endswith(_PART)) for n in names)


def _create(path: Path, text: str) -> None:
    """Write a whole file unless there is one: of several processes one succeeds."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PART}")
    _write(temporary, text)
    try:
        os.link(temporary, path)  # fails if the name is taken, which a renaming does not
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        temporary.replace(path)
        return
    temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: to a temporary name, fsynced, then renamed."""
    temporary = path.with_name(path.name + _PART)
    _write(temporary, text)
    temporary.replace(path)


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def append_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Append records as JSON lines and fsync; when it returns they are on disk.

    Raises:
        OSError: they cannot be written, the disk is full for instance; it names the file.
    """
    try:
        with path.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
        logger.info("%d more on disk: %s", len(records), path)
    except OSError as error:
        what = f"cannot write, what was there before is kept ({error.strerror})"
        raise OSError(error.errno, what, str(path)) from error


def read_lines(
    path: Path, fields: Collection[str] = (), *, repair: bool = True
) -> list[dict[str, Any]]:
    """All complete records; a torn last line (killed while writing) is dropped.

    Args:
        path: of the file; without one there are no records.
        fields: that every record must have.
        repair: cut the torn line off the file too, so that records can be appended. Not where
            another process may be in the middle of writing it.

    Raises:
        ValueError: a complete line that is not a JSON object in UTF-8, or lacks one of ``fields``.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if repair and len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    records = []
    for number, line in enumerate(whole.splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where} is not UTF-8 text ({error.reason}): another program has changed it. "
                "Bring it back, or choose another directory"
            ) from error
        except ValueError as error:
            raise ValueError(f"{where} is not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where} must be a JSON object, got {record!r:.80}")
        if missing := sorted(set(fields) - record.keys()):
            raise ValueError(f"{where} is not a record of this run: it lacks {', '.join(missing)}")
        records.append(record)
    return records


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of rows that all have the columns of the first."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
