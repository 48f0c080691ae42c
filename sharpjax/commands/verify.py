"""``sharpjax verify``: the papers' identities by numbers."""

import dataclasses
import json
from typing import Annotated

import typer

from sharpjax.commands.options import JsonOption, SeedOption, wide_console
from sharpjax.identities import verify as verify_identities
from sharpjax.report import identities as report


def verify(
    dim: Annotated[int, typer.Option(help="Dimensions of the densities, 2 to 32.")] = 5,
    samples: Annotated[int, typer.Option(help="Draws behind each mean, at least 1,000.")] = 50_000,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Check the identities that sharpjax stands on by numbers, and the printed forms beside.

    Draws densities from the seed and compares both sides of L1 to L5 (moments of scores) and P1 to
    P4 (p-Laplacians) by Monte Carlo and automatic differentiation, in float64.  Exit status 1 if
    an identity fails.  Proofs and the forms as printed: docs/identities.md.
    """
    rows = verify_identities(dim=dim, num_samples=samples, seed=seed)
    if as_json:
        values = [dataclasses.asdict(r) | {"z": r.z, "verdict": r.verdict} for r in rows]
        print(json.dumps({"dim": dim, "samples": samples, "seed": seed, "rows": values}))
    else:
        wide = wide_console()
        wide.print(report.statements_table(rows))
        wide.print()
        wide.print(report.identities_table(rows))
        for line in report.identities_remarks(rows):
            wide.print(line)
    if any(row.verdict != "holds" for row in rows):
        raise typer.Exit(1)
