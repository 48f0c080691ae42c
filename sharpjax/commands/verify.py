"""`sharpjax verify`: the papers' identities by numbers."""

import dataclasses
import json
from typing import Annotated

import typer

from sharpjax.commands.blocks import with_blocks
from sharpjax.commands.options import JsonOption, SeedOption, wide_console


@with_blocks
def verify(
    dim: Annotated[int, typer.Option(min=2, max=32, help="Dimensions of the densities.")] = 5,
    samples: Annotated[int, typer.Option(min=1000, help="Draws behind each mean.")] = 50_000,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Check the identities that sharpjax stands on by numbers, and the printed forms beside.

    Draws densities from the seed and compares both sides of L1 to L5 (moments of scores), P1 to P4
    (p-Laplacians) and D1 (the denoising loss) by Monte Carlo and automatic differentiation, in
    float64.  Exit status 1 if an identity fails.  Proofs, and the forms as printed:
    docs/identities.md.
    """
    from sharpjax.identities import verify as verify_identities
    from sharpjax.report import verify as report
    from sharpjax.report.terminal import show

    rows = verify_identities(dim=dim, num_samples=samples, seed=seed)
    if as_json:
        values = [dataclasses.asdict(r) | {"z": r.z, "verdict": r.verdict} for r in rows]
        print(json.dumps({"dim": dim, "samples": samples, "seed": seed, "rows": values}))
    else:
        show(wide_console(), report.blocks(rows))
    if any(row.verdict != "holds" for row in rows):
        raise typer.Exit(1)
