"""What a section of the page is made of: data only, which the template shows.

All text is escaped by the template, whatever it holds.  Only :class:`Figure` carries markup, which
matplotlib wrote.
"""

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; as a ``note`` it stands apart, as what to run it is ``code``."""

    text: str
    look: str = ""
    kind: str = dataclasses.field(default="text", init=False)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what is shown.
        key: what it is sorted by; the text if None.
        look: a class of the page's style: ``memorized``, ``clean``, ``unsure``.
    """

    text: str
    key: float | None = None
    look: str = ""

    @property
    def sort(self) -> str:
        """The key as the page's script reads it: nothing where there is no number."""
        return "" if self.key is None or math.isnan(self.key) else f"{self.key:.17g}"


@dataclasses.dataclass(frozen=True)
class Column:
    """The head of a column; ``filtered`` gives the reader a menu of its values."""

    name: str
    numeric: bool = False
    filtered: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; a ``searchable`` one has a search box and can be sorted by every column."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    searchable: bool = False
    kind: str = dataclasses.field(default="table", init=False)

    def values(self, column: int) -> list[str]:
        """The distinct texts of a column, for its menu."""
        return sorted({row[column].text for row in self.rows})


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot as inline SVG, with what it shows in words for those who do not see it."""

    svg: str
    label: str


@dataclasses.dataclass(frozen=True)
class Figures:
    """Plots side by side, as many as the page is wide."""

    figures: Sequence[Figure]
    caption: str
    kind: str = dataclasses.field(default="figures", init=False)


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as a data URI; ``copied`` ones have a red frame and say so."""

    source: str
    label: str
    copied: bool = False
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Rows of images: a label, and groups of images with a title each."""

    rows: Sequence[tuple[str, Sequence[tuple[str, Sequence[Picture]]]]]
    caption: str
    kind: str = dataclasses.field(default="pictures", init=False)


@dataclasses.dataclass(frozen=True)
class Terms:
    """Names and what they mean."""

    entries: Sequence[tuple[str, str]]
    kind: str = dataclasses.field(default="terms", init=False)


Block = Text | Table | Figures | Pictures | Terms


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with a heading, and an anchor made of it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """For links to it."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())
