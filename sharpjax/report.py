"""What a finished run shows: tables on the terminal, CSV files, pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from sharpjax import plots
from sharpjax.detection.oracle import TrainingSet
from sharpjax.detection.truth import Truth, load_strip
from sharpjax.identities import Row
from sharpjax.models.convert import ConvertedPart
from sharpjax.similarity import pixel_correlation


def truth_table(truths: Sequence[Truth]) -> Table:
    """Copy rates by condition."""
    table = Table(title="Copies among samples, 95% Wilson intervals")
    for column in ("condition", "images", "copies", "rate", "similarity", "threshold", "verdict"):
        table.add_column(column, justify="left" if column in ("condition", "verdict") else "right")
    for truth in truths:
        table.add_row(
            truth.condition,
            str(truth.set_size),
            f"{truth.num_copies} of {truth.num_samples}",
            f"{truth.copy_rate:.2f} [{truth.low:.2f}, {truth.high:.2f}]",
            f"{truth.mean_similarity:.3f}",
            f"{truth.threshold:.3f}",
            truth.verdict,
        )
    return table


def write_sample_grid(
    folder: Path, truths: Sequence[Truth], training_set: TrainingSet, *, count: int = 10
) -> Path:
    """``samples.png``: all sets of two digits, samples over their nearest training images."""
    groups = [truth.condition.split()[0] for truth in truths]
    chosen = {"2", "7"} & set(groups) or set(sorted(set(groups))[:2])
    shown = [index for index, group in enumerate(groups) if group in chosen]
    rows = []
    for index in shown:
        truth, references = truths[index], training_set.of(index)
        samples = load_strip(folder / "samples" / f"{index:03d}.png")[:count]
        between = pixel_correlation(samples, references)
        rows.append(
            (
                f"{truth.condition}\n{truth.copy_rate:.0%} copies",
                samples[:, 0],
                references[between.argmax(axis=1), 0],
                between.max(axis=1) > truth.threshold,
            )
        )
    return plots.sample_grid(
        rows, folder / "samples.png",
        title="samples (red frame: copy) above the nearest training image",
    )  # fmt: skip


_SOURCES = {
    "network": "network",
    "lanczos": "  Lanczos",
    "arnoldi": "  Arnoldi",
    "oracle": "exact",
}


def spectrum_table(rows: Sequence[dict[str, Any]], *, tolerance: float) -> Table:
    """Number and size of the eigenvalues of every spectrum, the exact score's below."""
    table = Table(
        title="Eigenvalues of σ²H along the sampling path",
        caption=f"< 0: below -{tolerance:g}; ≈ 0: within; > 0: above.  "
        "tr K: effective dimension, the sum of 1 + eigenvalue.",
    )
    table.add_column("condition", no_wrap=True)
    table.add_column("t", justify="right")
    table.add_column("score", no_wrap=True)
    for name in ("< 0", "≈ 0", "> 0", "smallest", "largest", "tr K"):
        table.add_column(name, justify="right", no_wrap=True)
    here: tuple[Any, ...] = ()
    for row in rows:
        repeated = here == (row["condition"], row["noise"], row["t"])
        if here and not repeated:
            table.add_section()
        here = row["condition"], row["noise"], row["t"]
        noise = f" #{row['noise']}" if row["noise"] else ""
        dimension = row["effective_dimension"]
        table.add_row(
            "" if repeated else row["condition"] + noise,
            "" if repeated else str(row["t"]),
            _SOURCES[row["source"]],
            *(str(row[name]) for name in ("negative", "near_zero", "positive")),
            *(f"{row[name]:.4f}" for name in ("smallest", "largest")),
            "" if dimension == "" else f"{dimension:.1f}",
        )
    return table


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
            _with_error(row.estimate, row.standard_error),
            ("≤ " if row.kind == "bound" else "") + f"{row.closed_form:.4g}",
            deviations[row.kind].format(row.deviation),
            row.verdict if row.verdict == "holds" else f"[bold red]{row.verdict}[/bold red]",
            " to ".join(values),
            "" if row.printed_z is None else f"{row.printed_z:+.0f}",
            row.printed_verdict or "",
        )
        previous = row.name
    return table


def _with_error(value: float, error: float) -> str:
    """Both to the second digit of the error; without an error, to four digits."""
    if not 0 < error < np.inf:
        return f"{value:.4g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


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
        largest = max(abs(row.z) for row in sampled)
        lines.append(
            f"Largest |z| of {len(sampled)} means: {largest:.1f}; allowed {sampled[0].limit:.1f}."
        )
    return lines


def conversion_table(parts: Sequence[ConvertedPart]) -> Table:
    """What was written of each part of a model; of files beside weights, their number."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("part", "class", "parameters", "bytes", "type", "files"):
        right = name in ("parameters", "bytes")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "files")
    for part in parts:
        weights = [name for name in part.files if name.endswith(".safetensors")]
        others = len(part.files) - len(weights)
        table.add_row(
            part.name or "(one part)",
            part.class_name,
            "" if part.num_parameters is None else f"{part.num_parameters:,}",
            f"{part.num_bytes:,}",
            part.dtype or "",
            escape(", ".join([*weights, f"{others} of settings"])),
        )
    return table
