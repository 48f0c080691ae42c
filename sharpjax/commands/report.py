"""`sharpjax report`: runs as one self-contained HTML page."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sharpjax.commands.blocks import with_blocks
from sharpjax.commands.options import JsonOption, PluginOption, tell_written
from sharpjax.rundir.run import Run


@with_blocks
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR...",
            help="Run directory of detect, images, calibrate, mitigate, spectrum, ground-truth or "
            "sample; more of the same model are joined to it, in this order.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="The page. Default: report.html in the first directory.")
    ] = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show runs as one HTML page that needs nothing else: verdicts, curves, images, costs.

    The page can be searched, sorted, printed and sent; it asks nothing of the network.  detect,
    images and mitigate write theirs at the end; a run that was stopped has a page of what is there.

    Example: sharpjax report runs/detect-drawings runs/spectrum-drawings runs/mitigate-drawings
    """
    for folder in runs:
        Run.open(folder)  # is it one? before JAX is loaded
    from sharpjax.detection.plugins import load_plugins
    from sharpjax.report.page import write_page

    load_plugins(plugin or ())
    path = write_page(runs, output)
    if as_json:
        print(json.dumps({"report": str(path), "bytes": path.stat().st_size}))
        return
    tell_written(path, then=f" ({path.stat().st_size / 1e6:.1f} MB)")
