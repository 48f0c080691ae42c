"""`sharpjax convert`: a model directory checked and written anew."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from sharpjax.commands.blocks import with_blocks
from sharpjax.commands.options import (
    ANY_MODEL,
    FileChoice,
    JsonOption,
    tell_written,
    wide_console,
)


@with_blocks
def convert(
    source: Annotated[str, typer.Argument(help=f"{ANY_MODEL} Or the directory of a single part.")],
    destination: Annotated[Path, typer.Argument(help="Directory to make.")],
    *,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        typer.Option(help="Type of the written weights, whatever that of the source."),
    ] = "float32",
    as_json: JsonOption = False,
    files: FileChoice,
) -> None:
    """Check a model directory and write it anew: safetensors of one type, with digests.

    PyTorch's libraries read the result.  What was written is read again and compared bit by bit.
    The directory appears when all of it is there; memory is needed for one part at a time.
    """
    import jax.numpy as jnp

    from sharpjax.models.convert import convert as convert_model
    from sharpjax.report.convert import conversion_table
    from sharpjax.report.terminal import show

    done = convert_model(source, destination, dtype=getattr(jnp, dtype), **files.files)
    if as_json:
        print(json.dumps(dataclasses.asdict(done) | {"directory": str(done.directory)}))
        return
    wide = wide_console()
    show(wide, [conversion_table(done.parts)])
    if done.left_out:
        wide.print(f"Left out, not part of the model: {escape(', '.join(done.left_out))}")
    tell_written(done.directory, then=", read again, the same")
