"""Files of prompts: plain text, JSON Lines or CSV."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

_COLUMN = "prompt"


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
    path = Path(path)
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
        prompts = list(_from_csv(lines, path))
    elif kind == ".jsonl":
        prompts = list(_from_json(lines, path))
    else:
        prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path} holds no prompt")
    return prompts


def _from_csv(lines: list[str], path: Path) -> Iterator[str]:
    reader = csv.DictReader(line + "\n" for line in lines)
    try:
        columns = reader.fieldnames or []
        if columns and columns.count(_COLUMN) != 1:
            raise ValueError(
                f"{path} must have one column {_COLUMN!r}; its columns are "
                f"{', '.join(map(repr, columns))}"
            )
        for row in reader:
            if not isinstance(row[_COLUMN], str):
                raise ValueError(f"{path}, line {reader.line_num}: no value for {_COLUMN!r}")
            yield row[_COLUMN]
    except csv.Error as error:
        line = reader.reader.line_num  # its own: DictReader counts finished rows
        raise ValueError(f"{path}, line {line} is not valid CSV: {error}") from error


def _from_json(lines: list[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not valid JSON: {error}") from error
        prompt = entry.get(_COLUMN) if isinstance(entry, dict) else None
        if not isinstance(prompt, str):
            raise ValueError(
                f"{path}, line {number} must be an object with a text {_COLUMN!r}, got {line[:80]}"
            )
        yield prompt
