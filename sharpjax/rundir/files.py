"""Files of runs: written whole or not at all, never through a link; lines, and tables.

A run directory may have come from somebody else.  So nothing is written through a link that stands
in it: a file written whole takes the link's place, appending and folders refuse it.  The directory
itself may be a link: its name was given by the user.
"""

import contextlib
import csv
import io
import json
import logging
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows: there nothing is written
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

PART = ".part"  # ends the names of files being written; a kill leaves one behind
# What a spreadsheet takes for the begin of a formula; the last four are the full-width = + - @.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_CELL = 2**24  # characters that a cell of a table may have; csv's own limit is 128 KiB


def within(folder: Path, name: str | Path) -> Path:
    """The path of a file of a run; names are read from files, and none may lead out of the run.

    Raises:
        ValueError: it does, by `..`, as an absolute path or through a link.
    """
    path = folder / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{path} leads out of the run directory {folder}; remove it")
    return path


def make_folder(path: Path) -> None:
    """A folder inside a run's directory.

    Raises:
        OSError: it cannot be made, or a link is in its place.
    """
    refuse_link(path)
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {path}: {error.strerror}") from error


def refuse_link(path: Path) -> None:
    """A FileExistsError if a link stands there."""
    if path.is_symlink():
        raise FileExistsError(
            f"{path} is a link, and a run writes through none: remove it, or choose another "
            "directory"
        )


def create_text(path: Path, text: str) -> None:
    """Write a whole file unless there is one: of several processes one succeeds."""
    with _written(path, text.encode()) as temporary:
        try:
            os.link(temporary, path)  # fails if the name is taken, which a renaming does not
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            temporary.replace(path)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: to a random temporary name, fsynced, then renamed.

    A link at `path` is replaced, and what it points to left alone.

    Raises:
        OSError: it cannot be written, the disk is full for instance; nothing is left of it.
    """
    with _written(path, data) as temporary:
        temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    r"""Write a whole file or nothing, as `write_bytes`, in UTF-8.

    File names may hold bytes that are not, which Python keeps as lone surrogates: they are written
    as `\udcff`.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """The data under a temporary name beside `path`, which is gone at the end."""
    temporary = None
    try:
        temporary, file = _temporary(path)
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            yield temporary
    except OSError as error:  # the disk is full: what was there before is kept
        raise OSError(error.errno, f"cannot write ({error.strerror})", str(path)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> tuple[Path, BinaryIO]:
    """A new file, locked as long as it is open: it is no leftover."""
    while True:
        # cut, so that the whole fits the 255 bytes of a name
        name = f"{path.name[:50]}.{secrets.token_hex(8)}{PART}"
        temporary = path.with_name(name)
        file = temporary.open("xb")  # exclusive: follows no link
        with contextlib.suppress(OSError):  # a file system without locks: leftovers stay there
            lock(file, wait=True)
        if temporary.exists():  # or it was swept away before it was locked
            return temporary, file
        file.close()


def lock(file: BinaryIO, *, wait: bool) -> None:
    """Hold an open file until it is closed.

    Raises:
        OSError: another process holds it and is not waited for; or a file system without locks.
        ImportError: a system without locks, where an open file cannot be renamed either.
    """
    if fcntl is None:
        raise ImportError(
            "sharpjax writes its files under POSIX locks, which this system does not have; use "
            "Linux, macOS, or WSL on Windows"
        )
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _not_through_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def append_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Append records as JSON lines and fsync; when it returns they are on disk.

    Raises:
        OSError: they cannot be written: the disk is full, or `path` is a link; it names the file.
    """
    refuse_link(path)
    try:
        with open(path, "a", encoding="utf-8", opener=_not_through_links) as file:
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
        ValueError: a complete line that is not a JSON object in UTF-8, or lacks one of `fields`.
        FileExistsError: a link is in its place, and it is to be appended to.
    """
    if repair:
        refuse_link(path)
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if repair and len(whole) < len(data):
        with open(path, "r+b", opener=_not_through_links) as file:
            file.truncate(len(whole))
    records = []
    for number, line in enumerate(whole.splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line.decode())
        except ValueError as error:
            raise ValueError(
                f"{where} is not valid JSON: {error}. Another program has changed it: bring it "
                "back, or choose another directory"
            ) from error
        if not isinstance(record, dict):
            raise ValueError(f"{where} must be a JSON object, got {record!r:.80}")
        if missing := sorted(set(fields) - record.keys()):
            raise ValueError(f"{where} is not a record of this run: it lacks {', '.join(missing)}")
        records.append(record)
    return records


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of rows that all have the columns of the first.

    Spreadsheets compute a text that begins with `=`, `+`, `-`, `@`, a tab or a line break;
    a prompt may be a formula that sends the table away.  Such a text gets an apostrophe before it,
    and so does one that has apostrophes before such a sign, so that `read_csv` gives every
    text back.  Numbers stay numbers.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writerow({name: _inert(name) for name in rows[0]})
    writer.writerows({name: _inert(value) for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows of a table of `write_csv`, with the texts that were given to it.

    Raises:
        ValueError: it cannot be read as a table.
    """
    before = csv.field_size_limit(_CELL)
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    finally:
        csv.field_size_limit(before)
    return [{_as_given(name): _as_given(value) for name, value in row.items()} for row in rows]


def _as_given(value: Any) -> Any:
    is_inert = isinstance(value, str) and value.startswith("'") and _FORMULA.match(value)
    return value[1:] if is_inert else value
