"""What a run shows, on a terminal: texts and tables; of plots and images, the files are named."""

import textwrap
from collections.abc import Iterable
from typing import Literal

from rich import box
from rich import table as rich
from rich.console import Console
from rich.text import Text as RichText

from sharpjax.report.blocks import Block, Cell, Column, Section, Table, Text, visible

_READABLE = 24  # letters of a text or an interval that a line holds at least
_STYLES = {"wrong": "bold red", "code": "bold"}


def show(console: Console, blocks: Iterable[Block | Section]) -> None:
    """Print texts and tables, in their order."""
    for block in blocks:
        if isinstance(block, Section):
            show(console, block.blocks)
        elif isinstance(block, Text):
            console.print(RichText(visible(block.text), _STYLES.get(block.look, "")))
        elif isinstance(block, Table) and block.most != 0:
            console.print(rich_table(block, console.width), "")


def rich_table(table: Table, width: int | None = None) -> rich.Table:
    """A table as Rich prints it: numbers to the right, nothing of it read as markup.

    Of one that does not fit into `width`, columns at the right are left out, and a note says which.
    """
    columns, rows = table.shown(details=False)
    rows = rows[: table.most]
    notes = [table.note] if table.note else []
    where = f", all in {table.file}" if table.file else ""
    if len(rows) < len(table.rows):
        notes.append(f"{len(rows)} of {len(table.rows)} shown{where}")
    kept = len(columns)
    while True:
        left_out = ", ".join(" ".join(column.name.split()) for column in columns[kept:])
        lacking = [f"too narrow for {left_out}: widen the terminal{where}"] if left_out else []
        shown = _build(table, columns[:kept], [row[:kept] for row in rows], [*notes, *lacking])
        if width is None or kept <= max(table.grouped, 1) or _least(shown) <= width:
            return shown
        kept -= 1


def _least(shown: rich.Table) -> int:
    """Columns of a terminal that it takes without a cut in a word."""
    endless = Console(width=10_000)
    return endless.measure(shown).minimum


def _build(
    table: Table, columns: list[Column], rows: list[list[Cell]], notes: list[str]
) -> rich.Table:
    shown = rich.Table(
        title=RichText(visible(table.title), "bold") if table.title else None,
        caption=RichText(visible("; ".join(notes)), "dim italic") if notes else None,
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title_justify="left",
        caption_justify="left",
    )  # fmt: skip
    for place, column in enumerate(columns):
        texts = [row[place].text[: column.short] for row in rows]
        longest = max([0, *map(len, texts)])
        words = textwrap.wrap(visible(column.name), max(8, longest), break_long_words=False)
        whole = not any(" " in text for text in texts)  # as folding cuts such texts in a word
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        shown.add_column(
            RichText("\n".join(words)), justify=justify, no_wrap=whole, overflow="fold",
            min_width=max([min(longest, _READABLE), *map(len, words)]),
        )  # fmt: skip
    before: list[Cell] = []
    for row in rows:
        repeated = bool(table.grouped) and row[: table.grouped] == before[: table.grouped]
        if table.grouped and before and not repeated:
            shown.add_section()
        cells = [
            RichText(visible(cell.text)[: column.short], _STYLES.get(cell.look, ""))
            for column, cell in zip(columns, row, strict=True)
        ]
        if repeated:
            cells[: table.grouped] = [RichText("")] * table.grouped
        shown.add_row(*cells)
        before = row
    return shown
