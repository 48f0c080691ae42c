"""``sharpjax convert``: a model directory checked and written anew."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import typer
from rich.markup import escape

from sharpjax.commands.options import (
    ANY_MODEL,
    FollowLinksOption,
    JsonOption,
    RevisionOption,
    VariantOption,
    wide_console,
)
from sharpjax.models.convert import convert as convert_model
from sharpjax.models.convert import parse_size
from sharpjax.report.conversion import conversion_table


def convert(
    source: Annotated[str, typer.Argument(help=f"{ANY_MODEL} Or the directory of a single part.")],
    destination: Annotated[Path, typer.Argument(help="Directory to make.")],
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        typer.Option(help="Type of the written weights, whatever that of the source."),
    ] = "float32",
    max_shard_size: Annotated[
        str | None,
        typer.Option(help="Split parts that are larger, such as 2GB, into several files."),
    ] = None,
    as_json: JsonOption = False,
    variant: VariantOption = None,
    revision: RevisionOption = None,
    follow_links: FollowLinksOption = False,
) -> None:
    """Check a model directory and write it anew: safetensors of one type, with digests.

    PyTorch's libraries read the result.  What was written is read again and compared bit by bit.
    The directory appears when all of it is there; memory is needed for one part at a time.
    """
    done = convert_model(
        source,
        destination,
        dtype=getattr(jnp, dtype),
        variant=variant,
        revision=revision,
        follow_links=follow_links,
        max_shard_size=None if max_shard_size is None else parse_size(max_shard_size),
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(done) | {"directory": str(done.directory)}))
        return
    wide = wide_console()
    wide.print(conversion_table(done.parts))
    if done.left_out:
        wide.print(f"Left out, not part of the model: {escape(', '.join(done.left_out))}")
    wide.print(f"Written to [bold]{escape(str(done.directory))}[/bold], read again, the same")
