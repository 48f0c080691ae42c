"""Memory of this process, in bytes: in use, and at its peak."""

from pathlib import Path


def used(kind: str) -> int:
    """In use ("VmRSS") or at the peak ("VmHWM").

    Not `getrusage`, whose peak includes that of the process this one was started by.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))


def forget_peak() -> None:
    """From here on the peak is that of what comes."""
    Path("/proc/self/clear_refs").write_text("5")
