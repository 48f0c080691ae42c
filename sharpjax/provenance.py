"""What made the results of a run: command, versions, devices, time.

``about.json`` stands beside the results, which do not depend on it: it is written when a command
has finished, and a later command on the same directory adds its own time to it.
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

import jax

from sharpjax.rundir import within, write_text

ABOUT_NAME = "about.json"
FORMAT = 1  # of the file; a page refuses what is newer than itself
_FIELDS = {"command": str, "model": str, "versions": dict, "devices": str, "sessions": list}
_PACKAGES = ("sharpjax", "jax", "flax", "diffusers", "numpy")


class Clock:
    """Notes when a command began, and writes what made a run at its end.

    Args:
        model: as the user named it.
    """

    def __init__(self, model: str):
        self._model = model
        self._started = datetime.datetime.now(datetime.UTC)
        self._ticks = time.perf_counter()

    def record(self, folder: Path, **facts: Any) -> Path:
        """Write ``about.json`` into a run directory.

        Args:
            folder: of the run.
            facts: what the results were judged by and no other file of the run says; JSON values.
        """
        path = folder / ABOUT_NAME
        session = {
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._ticks, 1),
        }
        devices = jax.devices()
        document = {
            "format": FORMAT,
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "model": self._model,
            "versions": {name: version(name) for name in _PACKAGES}
            | {"python": platform.python_version()},
            "devices": f"{len(devices)} x {devices[0].device_kind}",
            "sessions": [*read_about(folder).get("sessions", []), session],
            **facts,
        }
        write_text(path, json.dumps(document, indent=2) + "\n")
        return path


def read_about(folder: Path) -> Mapping[str, Any]:
    """What ``about.json`` says; nothing of runs that older versions made.

    Raises:
        ValueError: it is not what this version writes, is of a newer one, or leads out of the run.
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
    if not isinstance(found, dict) or not isinstance(found.get("format"), int):
        raise ValueError(f"{path} is not a record of a run; remove it to go on without")
    if found["format"] > FORMAT:
        raise ValueError(f"{path} was written by a newer version of sharpjax; use that one")
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(found.get(name), kind)]
    sessions = [] if "sessions" in wrong else found["sessions"]
    if wrong or not all(
        isinstance(s, dict) and s.keys() >= {"started", "seconds"} for s in sessions
    ):
        raise ValueError(
            f"{path} is not a record of a run ({', '.join(wrong) or 'sessions'}: not what is "
            "written there); remove it to go on without"
        )
    return found
