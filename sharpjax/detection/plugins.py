"""A user's own statistics, from Python files."""

import dataclasses
import hashlib
import sys
import types
from collections.abc import Iterable
from pathlib import Path

from sharpjax.detection.registry import STATISTICS


def load_plugins(paths: Iterable[str | Path]) -> list[str]:
    """Run Python files and take what they `register`; the names of it.

    What the files held goes by its SHA-256 into the settings of every run that computes a statistic
    of theirs: a file that says something else makes another run.  Loaded again, a file replaces
    what it had registered.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that does not run, or registers nothing.
    """
    names: list[str] = []
    for path in map(Path, paths):
        names += [name for name in _load(path) if name not in names]
    return names


def _load(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"no file of statistics {path}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if known := [name for name, entry in STATISTICS.items() if entry.digest == digest]:
        return known
    before = dict(STATISTICS)
    where = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    module_name = f"plugin_{where[:16]}"
    for name, entry in before.items():
        if entry.function.__module__ == module_name:
            del STATISTICS[name]
    module = types.ModuleType(module_name)
    module.__file__ = str(path)
    sys.modules[module_name] = module
    try:
        exec(compile(content, path, "exec"), module.__dict__)
        found = [name for name, entry in STATISTICS.items() if before.get(name) is not entry]
        if not found:
            raise ValueError("it must register one by @sharpjax.detection.register, got none")
    except (Exception, SystemExit) as error:  # a script ends with sys.exit
        STATISTICS.clear()
        STATISTICS.update(before)
        del sys.modules[module_name]
        told = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"{path} is not a file of statistics: {type(error).__name__}: {told}"
        ) from error
    for name in found:
        STATISTICS[name] = dataclasses.replace(STATISTICS[name], digest=digest)
    return found


def check_plugins(files: Iterable[tuple[str, str]]) -> None:
    """Refuse statistics that are not loaded, or not those of a run: its `settings.plugins`."""
    for name, digest in files:
        if name not in STATISTICS:
            raise ValueError(f"{name} is a statistic of a plugin; give its file by --plugin")
        if STATISTICS[name].digest != digest:
            raise ValueError(f"the file of {name} must be that of the run; give it as it was")
