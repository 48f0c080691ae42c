"""What made the results of a run: command, versions, devices, time.

`about.json` stands beside the results, which do not depend on it: it is written when a command
has finished, and a later command on the same directory writes it anew and adds its own time to
those before.
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

from sharpjax.rundir.files import within, write_text

ABOUT_NAME = "about.json"
_FIELDS = {"command": str, "model": str, "versions": dict, "devices": str, "sessions": list}
_PACKAGES = ("sharpjax", "jax", "flax", "diffusers", "numpy")


class Clock:
    """Notes when a command on a model, as the user named it, began; and writes that at its end."""

    def __init__(self, model: str):
        self._model = model
        self._started = datetime.datetime.now(datetime.UTC)
        self._ticks = time.perf_counter()

    def record(self, folder: Path, **facts: Any) -> Path:
        """Write `about.json` into a run directory, with facts that no other file of it says."""
        import jax  # loaded by now, and not before a command has looked at its options

        path = folder / ABOUT_NAME
        session = {
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._ticks, 1),
        }
        devices, versions = jax.devices(), {name: version(name) for name in _PACKAGES}
        document = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "model": self._model,
            "versions": versions | {"python": platform.python_version()},
            "devices": f"{len(devices)} x {devices[0].device_kind}",
            "sessions": [*read_about(folder).get("sessions", []), session],
            **facts,
        }
        write_text(path, json.dumps(document, indent=2) + "\n")
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
