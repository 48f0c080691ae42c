"""Memory of a process, in megabytes.

Not by `getrusage`: its peak begins at that of the process that this one was started by, or, in the
process of the tests, at whatever an earlier test took. What lies below that cannot be seen to grow.
"""

import os
import subprocess
import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
IS_TOLD = CLEAR.exists()  # by Linux


def resident(kind):
    """Now ("VmRSS") or at the peak ("VmHWM")."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def growth():
    """A function that says how much the peak from here on is above what is in use now."""
    CLEAR.write_text("5")  # the peak is forgotten
    before = resident("VmRSS")
    return lambda: resident("VmHWM") - before


def child(code, *arguments):
    """Runs Python code that may import this module; its process, which ended well."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done
