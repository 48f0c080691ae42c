"""What a run shows, as data: tables, texts, plots and images, which `terminal` and `page` render.

A table is rows and columns that say how a row is shown.  Where there is a CSV file of it, the rows
are those of the file, so that terminal, page and file say the same.  Plots are functions that draw,
called when somebody looks: once for a PNG file of all, once each for the page.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sharpjax.detection.evaluation import Interval


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; a `note` stands apart, `code` is to be run, `wrong` is an alarm."""

    text: str
    look: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what is shown.
        key: what it is sorted by; the text if None.
        look: `memorized`, `clean`, `unsure` or `wrong`.
    """

    text: str
    key: float | None = None
    look: str = ""

    @classmethod
    def verdict(cls, told: str | None) -> "Cell":
        """One that says memorized, clean or what else, in its colour."""
        told = told or ""
        return cls(told, look="unsure" if "unsure" in told else told.partition(" ")[0])

    @property
    def sort(self) -> str:
        """The key as the page's script reads it: nothing where there is no number."""
        return "" if self.key is None or math.isnan(self.key) else f"{self.key:.17g}"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its head, and how it shows a row.

    Attributes:
        name: the head.
        value: of a row: the key of a mapping, or a function; the name as a key if empty.
        form: of numbers, or a function that writes one; whole, or to four digits, if empty.
        numeric: to the right.
        filtered: gives the reader of the page a menu of its values.
        detail: only on the page.
        short: how many letters of a text the terminal shows, if not all.
    """

    name: str
    value: str | Callable[[Any], Any] = ""
    form: str | Callable[[float], str] = ""
    numeric: bool = False
    filtered: bool = False
    detail: bool = False
    short: int | None = None

    def cell(self, row: Any) -> Cell:
        """Of a row: of its value, which may be text, a number, an interval, or nothing."""
        value = self.value(row) if callable(self.value) else row.get(self.value or self.name)
        if isinstance(value, Cell):
            return value
        if isinstance(value, str) or value is None:
            return Cell(value or "")
        key = value.value if isinstance(value, Interval) else value
        if math.isnan(key):
            return Cell("", key)
        if callable(self.form):
            return Cell(self.form(value), key)
        whole = isinstance(value, Interval | int)
        return Cell((self.form or ("{}" if whole else "{:.4g}")).format(value), key)


number = partial(Column, numeric=True)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: above it.
        columns: what is shown of a row.
        rows: of whatever the columns take.
        note: below it, or behind the title on the page.
        searchable: on the page it has a search box and can be sorted by every column.
        grouped: so many columns at the left make a group; a terminal shows repeats of one once.
        most: rows that a terminal shows, if not all.
        file: where all rows are.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Any]
    note: str = ""
    searchable: bool = False
    grouped: int = 0
    most: int | None = None
    file: str = ""

    def shown(self, *, details: bool = True) -> tuple[list[Column], list[list[Cell]]]:
        """Columns that say anything, with or without details, and the cells of every row."""
        chosen = [one for one in self.columns if details or not one.detail]
        cells = [[one.cell(row) for row in self.rows] for one in chosen]
        full = [any(cell.text for cell in column) for column in cells]
        return list(itertools.compress(chosen, full)), [
            list(row) for row in zip(*itertools.compress(cells, full), strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class Figures:
    """Plots of one kind, side by side.

    Attributes:
        figures: of each, what it shows in words, for those who do not see it, and what draws it
            on matplotlib's axes.
        caption: what they show.
        x: of all horizontal axes.
        y: of all vertical ones.
        columns: of a picture of all of them.
        size: of each, in inches.
        shared: whether those of a row have one scale there.
        whole: axes that count something: "x", "y" or "xy".
    """

    figures: Sequence[tuple[str, Callable[[Any], None]]]
    caption: str
    x: str = ""
    y: str = ""
    columns: int = 3
    size: tuple[float, float] = (3.4, 3.2)
    shared: bool = False
    whole: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as a data URI; `copied` ones have a red frame and say so."""

    source: str
    label: str
    copied: bool = False
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Rows of images: a label, and groups of images with a title each."""

    rows: Sequence[tuple[str, Sequence[tuple[str, Sequence[Picture]]]]]
    caption: str


@dataclasses.dataclass(frozen=True)
class Terms:
    """Names and what they mean."""

    entries: Sequence[tuple[str, str]]


Block = Text | Table | Figures | Pictures | Terms


@dataclasses.dataclass(frozen=True)
class Section:
    """A part with a heading, and an anchor made of it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """For links to it."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def visible(text: Any) -> str:
    """Text whose control characters are shown as signs: HTML forbids them, terminals obey them."""
    return _CONTROLS.sub(
        lambda m: "␡" if m.group() == "\x7f" else chr(0x2400 + ord(m.group())), str(text)
    )
