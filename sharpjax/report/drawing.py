"""Plots as inline SVG in the page's colours, and images as data URIs."""

import base64
import functools
import io
import itertools
import re
from pathlib import Path

from PIL import Image

from sharpjax.pictures import read_picture
from sharpjax.report import plots
from sharpjax.report.blocks import Figures, Picture
from sharpjax.rundir.files import within

_COLOURS = {colour: name for name, colour in plots.COLOURS.items()} | {
    "#000000": "text",
    "#ffffff": "page",
}
MOST = 24  # plots of a kind on a page
_THUMBNAIL = 128  # pixels, of images in rows
_WIDEST = 1600  # of a grid of images
_LOSSLESS = 96  # images of at most so many pixels are kept as they are


def drawn(block: Figures) -> list[tuple[str, str]]:
    """Labels and SVG of the first `MOST` plots, in the page's colours and of the width it gives."""
    found = []
    for place, (label, _) in enumerate(block.figures[:MOST]):
        svg = plots.svg(block, place, salt=str(next(_numbers)))
        svg = svg[svg.index("<svg") :]  # without the XML head, which HTML does not know
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        for side in ("width", "height"):
            svg = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", svg, count=1)
        found.append((label, re.sub(r"#[0-9a-fA-F]{6}\b", _themed, svg)))
    return found


_numbers = itertools.count()


def _themed(found: re.Match[str]) -> str:
    name = _COLOURS.get(found.group().lower())
    return found.group() if name is None else f"var(--{name})"


def picture(
    folder: Path, name: str, label: str, *, copied: bool = False, wide: bool = False
) -> Picture | None:
    """An image of a run, made smaller where it need not be large; `wide` ones fill the page.

    None if it cannot be read, or leads out of the run: its name may have been read from a file.
    """
    try:
        source = _data_uri(within(folder, name), _WIDEST if wide else _THUMBNAIL)
    except ValueError:
        return None
    return Picture(source, label, copied, wide)


@functools.lru_cache(maxsize=512)  # images without mitigation stand beside every method
def _data_uri(path: Path, most: int) -> str:
    image = read_picture(path)
    kind = "png" if max(image.size) <= _LOSSLESS or most == _WIDEST else "jpeg"
    if max(image.size) > most:
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, kind, optimize=kind == "png", quality=85)  # PNG knows no quality
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
