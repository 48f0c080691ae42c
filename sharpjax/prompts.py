"""Files of prompts: plain text, JSON Lines or CSV, with labels where they are known."""

import csv
import dataclasses
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_COLUMN = "prompt"
_COLUMNS = (_COLUMN, "label", "source")
LABELS_NAME = "labels.csv"  # what is known of the images of a directory
VERDICTS = ("memorized", "clean", "between")
_LABELS = {name: name for name in VERDICTS} | {
    "1": "memorized", "true": "memorized", "0": "clean", "false": "clean", "": None,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LabelledPrompt:
    """A line of a file of prompts.

    Attributes:
        prompt: the text.
        label: ``memorized``, ``clean``, ``between`` (neither: judged apart), or None if the file
            does not say.
        source: where it comes from; prompts of a source are judged apart.
    """

    prompt: str
    label: str | None = None
    source: str = ""


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a file, in order; the same prompt may stand there twice.

    Args:
        path: its ending says what it is. ``.jsonl``: an object with ``"prompt"`` on each line.
            ``.csv``: a table with a column ``prompt``. Anything else: text, a prompt on each
            line, without the blanks around it; empty lines are skipped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no prompts in it, no UTF-8, or a line that gives no prompt.
    """
    return [row[_COLUMN] for _, row in _rows(Path(path))]


def read_labelled(path: str | Path) -> list[LabelledPrompt]:
    """Prompts with what a ``.jsonl`` or ``.csv`` file says of them in ``label`` and ``source``.

    A label is ``memorized``, ``clean`` or ``between``; ``1`` and ``true`` mean memorized, ``0`` and
    ``false`` clean; nothing, that it is not known.  Other columns are ignored with a warning.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_prompts`; or another label.
    """
    path = Path(path)
    prompts, ignored = [], dict[str, None]()
    for where, row in _rows(path):
        label = row.get("label")
        given = "" if label is None else str(label).strip().lower()
        if given not in _LABELS:
            raise ValueError(
                f"{where}: unknown label {str(label)!r:.40}; choose one of {', '.join(VERDICTS)}, "
                "or 1 and 0"
            )
        source = row.get("source")
        prompts.append(
            LabelledPrompt(row[_COLUMN], _LABELS[given], "" if source is None else str(source))
        )
        ignored |= dict.fromkeys(str(name) for name in row if name not in _COLUMNS)
    if ignored:
        warnings.warn(
            f"{path}: ignored {', '.join(map(repr, ignored))}; columns that are read: "
            f"{', '.join(_COLUMNS)}",
            stacklevel=2,
        )
    return prompts


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Where each stands, for messages, and its columns."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no file of prompts {path}: it {'is a directory' if path.is_dir() else 'is missing'}"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}: {error.reason}); save it as UTF-8"
        ) from error
    # not splitlines: it also splits at characters that a prompt may hold
    lines = text.replace("\r\n", "\n").split("\n")
    kind = path.suffix.lower()
    if kind == ".csv":
        rows = list(_from_csv(lines, path))
    elif kind == ".jsonl":
        rows = list(_from_json(lines, path))
    else:
        rows = [(str(path), {_COLUMN: line.strip()}) for line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{path} holds no prompt")
    return rows


def _from_csv(lines: list[str], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(line + "\n" for line in lines)
    try:
        columns = reader.fieldnames or []
        if columns and columns.count(_COLUMN) != 1:
            raise ValueError(
                f"{path} must have one column {_COLUMN!r}; its columns are "
                f"{', '.join(map(repr, columns))}"
            )
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if not isinstance(row[_COLUMN], str):
                raise ValueError(f"{where}: no value for {_COLUMN!r}")
            row.pop(None, None)  # cells beyond the columns
            yield where, row
    except csv.Error as error:
        line = reader.reader.line_num  # its own: DictReader counts finished rows
        raise ValueError(f"{path}, line {line} is not valid CSV: {error}") from error


def _from_json(lines: list[str], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not valid JSON: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get(_COLUMN), str):
            raise ValueError(f"{where} must be an object with a text {_COLUMN!r}, got {line[:80]}")
        yield where, entry
