"""Rows of tables that have a CSV file: numbers, and intervals as three columns."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sharpjax.detection.evaluation import Interval
from sharpjax.rundir.files import write_csv
from sharpjax.rundir.run import Run

Rows = Sequence[Mapping[str, Any]]


def flat(name: str, interval: Interval | None) -> dict[str, float | None]:
    """An interval as columns of a row, or that there is none."""
    ends = (None,) * 3 if interval is None else (interval.value, interval.low, interval.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def interval_of(name: str) -> Callable[[Mapping[str, Any]], Interval | None]:
    """The way back, of a row; None where there is none."""

    def read(row: Mapping[str, Any]) -> Interval | None:
        ends = [row[f"{name}{end}"] for end in ("", "_low", "_high")]
        return None if ends[0] is None else Interval(*ends)

    return read


def read_rows(run: Run, name: str, *, texts: Collection[str]) -> list[dict[str, Any]]:
    """The rows of a CSV file of a run as they were written: all but `texts` are numbers.

    Raises:
        ValueError: it holds something else, or leads out of the run.
    """
    return [{k: v if k in texts else _number(v) for k, v in row.items()} for row in run.table(name)]


def plain(value: Any) -> Any:
    """As JSON values, which have neither NaN nor infinity: null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tables(folder: Path, tables: Mapping[str, Rows]) -> list[Path]:
    """CSV files of those that have rows; their paths."""
    written = [folder / name for name, rows in tables.items() if rows]
    for path in written:
        write_csv(path, tables[path.name])
    return written


def _number(text: str) -> float | None:
    return None if not text else int(text) if text.isdecimal() else float(text)
