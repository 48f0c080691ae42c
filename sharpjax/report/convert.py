"""What was written of a model that was converted."""

from collections.abc import Sequence

from sharpjax.models.convert import ConvertedPart
from sharpjax.report.blocks import Column, Table, number


def conversion_table(parts: Sequence[ConvertedPart]) -> Table:
    """What was written of each part of a model; of files beside weights, their number."""

    def files(part: ConvertedPart) -> str:
        weights = [name for name in part.files if name.endswith(".safetensors")]
        return ", ".join([*weights, f"{len(part.files) - len(weights)} of settings"])

    return Table(
        "",
        [
            Column("part", lambda part: part.name or "(one part)"),
            Column("class", lambda part: part.class_name),
            number("parameters", lambda part: part.num_parameters, "{:,}"),
            number("bytes", lambda part: part.num_bytes, "{:,}"),
            Column("type", lambda part: part.dtype),
            Column("files", files),
        ],
        parts,
    )
