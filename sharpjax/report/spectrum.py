"""What spectra along a sampling path show: a table of their eigenvalues."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

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
