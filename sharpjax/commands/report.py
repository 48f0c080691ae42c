"""``sharpjax report``: runs as one self-contained HTML page."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sharpjax.commands.options import JsonOption, console
from sharpjax.page import write_page
from sharpjax.page.assemble import REPORT_NAME


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR...",
            help="Run directory of detect, calibrate, mitigate, spectrum, ground-truth or sample; "
            "more of the same model are joined to it, in this order.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help=f"The page. Default: {REPORT_NAME} in the first directory."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show runs as one HTML page that needs nothing else: verdicts, curves, images, costs.

    The page can be searched, sorted, printed and sent; it asks nothing of the network.  detect and
    mitigate write theirs at the end; a run that was stopped has a page of what is there.

    Example: sharpjax report runs/detect-openmoji runs/spectrum-openmoji runs/mitigate-openmoji
    """
    path = write_page(runs, output)
    if as_json:
        print(json.dumps({"report": str(path), "bytes": path.stat().st_size}))
        return
    console.print(
        f"Written to [bold]{escape(str(path))}[/bold] ({path.stat().st_size / 1e6:.1f} MB)"
    )
