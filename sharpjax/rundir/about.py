"""What made the results of a run: command, versions, devices, time.

`about.json` stands beside the results, which do not depend on it: it is written when a command
has finished, and a later command on the same directory writes it anew and adds its own time to
those before.  Until then a run notes in `sessions.jsonl` how long it has been at work, so that the
time of one that was stopped is added too, but for its last ten seconds and what came before work.
"""

import datetime
import json
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sharpjax.rundir.files import append_lines, read_lines, within, write_text

ABOUT_NAME, SESSIONS_NAME = "about.json", "sessions.jsonl"
EVERY = 10.0  # seconds between notes
_FIELDS = {"command": str, "model": str, "versions": dict, "devices": str, "sessions": list}
_PACKAGES = ("sharpjax", "jax", "flax", "diffusers", "numpy")


class Session:
    """Notes in a run's directory, now and then, how long this process has been at work there."""

    def __init__(self, folder: Path):
        self._path, self._started, self._ticks = folder / SESSIONS_NAME, _now(), time.perf_counter()
        self._next = 0.0

    def note(self) -> None:
        """To be called after each finished unit of work."""
        seconds = time.perf_counter() - self._ticks
        if seconds >= self._next:
            append_lines(self._path, [{"started": self._started, "seconds": round(seconds, 1)}])
            self._next = seconds + EVERY


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _interrupted(folder: Path, before: str) -> list[dict[str, Any]]:
    """Sessions that began before and noted their time, in a run or in runs inside of it."""
    longest = {
        (path, line["started"]): line
        for path in folder.rglob(SESSIONS_NAME)
        for line in read_lines(path, {"started", "seconds"})
    }
    return [line for (_, started), line in sorted(longest.items()) if started < before]


class Clock:
    """Notes when a command on a model, as the user named it, began; and writes that at its end."""

    def __init__(self, model: str):
        self._model = model
        self._started = _now()
        self._ticks = time.perf_counter()

    def record(self, folder: Path, **facts: Any) -> Path:
        """Write `about.json` into a run directory, with facts that no other file of it says."""
        import jax  # loaded by now, and not before a command has looked at its options

        path = folder / ABOUT_NAME
        session = {
            "started": self._started,
            "seconds": round(time.perf_counter() - self._ticks, 1),
        }
        program = Path(sys.argv[0]).name
        if program == "__main__.py":  # python -m sharpjax
            program = __package__.partition(".")[0]
        devices, versions = jax.devices(), {name: version(name) for name in _PACKAGES}
        document = {
            "command": shlex.join([program, *sys.argv[1:]]),
            "model": self._model,
            "versions": versions | {"python": platform.python_version()},
            "devices": f"{len(devices)} x {devices[0].device_kind}",
            "sessions": [
                *read_about(folder).get("sessions", []),
                *_interrupted(folder, self._started),
                session,
            ],
            **facts,
        }
        write_text(path, json.dumps(document, indent=2) + "\n")
        for noted in folder.rglob(SESSIONS_NAME):
            noted.unlink()
        return path


def read_about(folder: Path) -> Mapping[str, Any]:
    """What `about.json` says; nothing of runs that older versions made.

    Raises:
        ValueError: it is not what this version writes, or leads out of the run.
    """
    path = within(folder, ABOUT_NAME)
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON: {error}; remove it to go on without"
        ) from error
    known = found if isinstance(found, dict) else {}
    if wrong := [name for name, kind in _FIELDS.items() if not isinstance(known.get(name), kind)]:
        raise ValueError(
            f"{path} is not a record of a run ({', '.join(wrong)}: not what is written there); "
            "remove it to go on without"
        )
    return found
