"""Run directories: settings that may not change, results that survive being killed.

A run is ``settings.json`` and one JSON line per finished unit of work, each fsynced.  Running the
same command again goes on where the file ends; a half-written last line is dropped.
"""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

SETTINGS_NAME = "settings.json"
_PART = SETTINGS_NAME + ".part"  # left by a kill between writing and renaming


def claim(directory: str | Path, settings: Mapping[str, Any], *, what: str) -> Path:
    """Make the directory for a run, or find that it holds this very run.

    Args:
        directory: made with its parents if missing.
        settings: everything that defines the results, JSON values only.
        what: the kind of run, for messages: ``"training"``, ``"detect"``.

    Raises:
        ValueError: a run of another kind or with other settings is there; the message lists them.
        FileExistsError: the directory holds something else, or the path is a file.
        PermissionError: it cannot be written.
    """
    folder = Path(directory)
    settings = json.loads(json.dumps(settings))
    path = folder / SETTINGS_NAME
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; a run needs a directory")
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path} must hold a JSON object, got {type(found).__name__}")
        if found.get("run") != settings.get("run"):
            raise ValueError(
                f"{folder} holds another kind of run ({found.get('run', 'unknown')}, not {what}); "
                "choose another directory"
            )
        changed = sorted(
            k for k in settings.keys() | found.keys() if settings.get(k) != found.get(k)
        )
        if changed:
            told = "; ".join(f"{k}: {found.get(k)} there, {settings.get(k)} now" for k in changed)
            raise ValueError(
                f"{folder} holds a run with other settings ({told}). "
                f"Repeat those settings to resume it, or choose another directory"
            )
    elif folder.exists() and {entry.name for entry in folder.iterdir()} - {_PART}:
        raise FileExistsError(
            f"{folder} is not empty and holds no {what} run; choose another directory"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_text(path, json.dumps(settings, indent=2) + "\n")
        elif not os.access(folder, os.W_OK):
            raise PermissionError(f"directory is not writable: {folder}")
    except OSError as error:
        raise PermissionError(f"cannot write to {folder}: {error}") from error
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: to a temporary name, fsynced, then renamed."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def append_lines(path: Path, records: list[Mapping[str, Any]]) -> None:
    """Append records as JSON lines and fsync; when it returns they are on disk."""
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, fields: Collection[str] = ()) -> list[dict[str, Any]]:
    """All complete records; a torn last line (killed while writing) is cut off the file.

    Raises:
        ValueError: a complete line that is not a JSON object, or lacks one of ``fields``.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    records = []
    for number, line in enumerate(whole.decode().splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number} must be a JSON object, got {line[:80]}")
        if missing := sorted(set(fields) - record.keys()):
            raise ValueError(
                f"{path}, line {number} is not a record of this run: it lacks {', '.join(missing)}"
            )
        records.append(record)
    return records
