"""What was found of the identities: statements, numbers, verdicts."""

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from sharpjax.identities import Row
from sharpjax.report.numbers import with_error


def identities_table(rows: Sequence[Row]) -> Table:
    """What was found of every identity in every setting, the printed form beside."""
    table = Table(
        title="Identities by numbers",
        caption="off by: standard errors of a mean; relative difference of exact values; "
        "share of a bound (≤)",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    align: Literal["left", "right"]
    for name in ("", "setting", "left side", "closed form", "off by", "verdict"):
        align = "left" if name in ("", "setting", "verdict") else "right"
        table.add_column(name, justify=align, no_wrap=True)
    for name in ("printed form", "off by"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    deviations = {"mean": "{:+.1f}", "exact": "{:.0e}", "bound": "{:.2f}"}
    previous = ""
    for row in rows:
        if previous and row.name != previous:
            table.add_section()
        values = dict.fromkeys(f"{value:.4g}" for value in row.printed or ())
        table.add_row(
            "" if row.name == previous else row.name,
            row.setting,
            with_error(row.estimate, row.standard_error),
            ("≤ " if row.kind == "bound" else "") + f"{row.closed_form:.4g}",
            deviations[row.kind].format(row.deviation),
            row.verdict if row.verdict == "holds" else f"[bold red]{row.verdict}[/bold red]",
            " to ".join(values),
            "" if row.printed_z is None else f"{row.printed_z:+.0f}",
            row.printed_verdict or "",
        )
        previous = row.name
    return table


def statements_table(rows: Sequence[Row]) -> Table:
    """The identities themselves, and what is printed in their place."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("", "identity", "as printed"):
        table.add_column(name, no_wrap=name == "identity")
    previous = ""
    statements = ((row.name, row.statement, row.printed_statement) for row in rows)
    for name, statement, printed in dict.fromkeys(statements):
        table.add_row("" if name == previous else name, escape(statement), escape(printed))
        previous = name
    return table


def identities_remarks(rows: Sequence[Row]) -> list[str]:
    """How many identities hold, and how many printed forms are wrong."""
    names = {row.name for row in rows}
    failing = [row for row in rows if row.verdict != "holds"]
    lines = [
        f"{len(names - {row.name for row in failing})} of {len(names)} identities hold, in "
        f"{len(rows) - len(failing)} of {len(rows)} settings."
    ]
    if failing:
        where = "; ".join(f"{row.name}, {row.setting}" for row in failing)
        lines.append(f"[bold red]Failing:[/bold red] {where}.")
    printed = []
    for verdict in ("wrong", "right", "not separable"):
        found = [row.name for row in rows if row.printed_verdict == verdict]
        which = f" ({', '.join(dict.fromkeys(found))})" if found else ""
        printed.append(f"{verdict} in {len(found)}{which}")
    lines.append(f"Printed forms, by setting: {', '.join(printed)}.")
    sampled = [row for row in rows if row.z is not None]
    if sampled:
        largest = max(abs(row.deviation) for row in sampled)
        lines.append(
            f"Largest |z| of {len(sampled)} means: {largest:.1f}; allowed {sampled[0].limit:.1f}."
        )
    return lines
