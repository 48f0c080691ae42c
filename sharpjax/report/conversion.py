"""What was written of a model that was converted."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from sharpjax.models.convert import ConvertedPart


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
