"""What was found of the identities: statements, numbers, verdicts."""

from collections.abc import Iterable, Sequence
from operator import itemgetter

from sharpjax.identities import Row
from sharpjax.report.blocks import Block, Cell, Column, Table, Text, number
from sharpjax.report.numbers import with_error

VERDICTS = ("wrong", "right", "not separable", "not claimed", "not seen")  # of a printed form


def blocks(rows: Sequence[Row]) -> list[Block]:
    """The identities, what is printed in their place, and what was found of both."""
    printed = ((r.name, r.printed_statement, r.printed_source) for r in rows if r.printed_source)
    return [
        _by_name(("", "identity"), ((row.name, row.statement) for row in rows)),
        _by_name(("", "as printed", "where"), printed),
        identities_table(rows),
        *remarks(rows),
    ]


def _by_name(heads: Sequence[str], lines: Iterable[tuple[str, ...]]) -> Table:
    """Different lines, each under the name of its identity."""
    columns = [Column(head, itemgetter(place)) for place, head in enumerate(heads)]
    return Table("", columns, list(dict.fromkeys(lines)), grouped=1)


def identities_table(rows: Sequence[Row]) -> Table:
    """What was found of every identity in every setting, the printed form beside."""
    deviations = {"mean": "{:+.1f}", "exact": "{:.0e}", "bound": "{:.2f}"}

    def printed(row: Row) -> str:
        return " to ".join(dict.fromkeys(f"{value:.4g}" for value in row.printed or ()))

    def closed_form(row: Row) -> str:
        return ("≤ " if row.kind == "bound" else "") + f"{row.closed_form:.4g}"

    def verdict(row: Row) -> Cell:
        return Cell(row.verdict, look="" if row.verdict == "holds" else "wrong")

    return Table(
        "Identities by numbers",
        [
            Column("", lambda row: row.name), Column("setting", lambda row: row.setting),
            number("left side", lambda row: with_error(row.estimate, row.standard_error)),
            number("closed form", closed_form),
            number("off by", lambda row: deviations[row.kind].format(row.deviation)),
            Column("verdict", verdict), number("printed form", printed),
            number("off by", lambda row: row.printed_z, "{:+.0f}"),
            Column("verdict", lambda row: row.printed_verdict),
        ],
        rows,
        note="±: standard error; off by: in standard errors; relative, of exact values; share of a "
        "bound (≤)",
        grouped=1,
    )  # fmt: skip


def remarks(rows: Sequence[Row]) -> list[Block]:
    """How many identities hold, and how many printed forms are wrong."""
    known = {row.name for row in rows}
    failing = [row for row in rows if row.verdict != "holds"]
    holding = len(known - {row.name for row in failing})
    told = f"{holding} of {len(known)} identities hold, in {len(rows) - len(failing)} of"
    lines: list[Block] = [Text(f"{told} {len(rows)} settings.")]
    if failing:
        where = "; ".join(f"{row.name}, {row.setting}" for row in failing)
        lines.append(Text(f"Failing: {where}.", "wrong"))
    printed: dict[str, list[str]] = {}
    for row in rows:
        if row.printed_verdict:
            printed.setdefault(row.printed_verdict, []).append(row.name)
    found = ", ".join(
        f"{len(names)} {verdict} ({', '.join(dict.fromkeys(names))})"
        for verdict, names in sorted(printed.items(), key=lambda item: VERDICTS.index(item[0]))
    )
    lines.append(Text(f"Printed forms, by setting: {found or 'none'}."))
    sampled = [row for row in rows if row.z is not None]
    if sampled:
        largest = max(abs(row.deviation) for row in sampled)
        told = f"Largest |z| of {len(sampled)} means: {largest:.1f}; allowed"
        lines.append(Text(f"{told} {sampled[0].limit:.1f}."))
    return lines
