"""Plots as inline SVG in the page's colours, and images as data URIs."""

import base64
import functools
import io
import itertools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from sharpjax.page.blocks import Figure, Picture
from sharpjax.pictures import read_picture

# The colours of sharpjax.plots by what they mean: the page has a light and a dark one of each.
_COLOURS = {
    "#1f3b73": "--ink",
    "#c26a1a": "--oracle",
    "#d9d9d9": "--grid",
    "#808080": "--grey",
    "#d62728": "--copy",
    "#7a3b73": "--arnoldi",
    "#cfe8cf": "--aim",
    "#5a9a5a": "--aim-edge",
    "#000000": "--text",
    "#ffffff": "--page",
}
_THUMBNAIL = 128  # pixels, of images in rows
_WIDEST = 1600  # of a grid of images
_LOSSLESS = 96  # images of at most so many pixels are kept as they are


def figure(label: str, draw: Callable[..., Path], *args: Any, **options: Any) -> Figure:
    """What a function of :mod:`sharpjax.plots` draws, whose last positional argument is the path.

    Args:
        label: what is shown, in words.
        draw: the function.
        args: its positional arguments but the path.
        options: its options.
    """
    with tempfile.TemporaryDirectory() as folder:
        # the name salts the ids inside: no two plots of a page may share one
        path = Path(folder) / f"{next(_numbers)}.svg"
        draw(*args, path, **options)
        svg = path.read_text()
    svg = svg[svg.index("<svg") :]  # without the XML head, which HTML does not know
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"#[0-9a-fA-F]{6}\b", _themed, svg)
    return Figure(svg, label)


_numbers = itertools.count()


def _themed(found: re.Match[str]) -> str:
    name = _COLOURS.get(found.group().lower())
    return found.group() if name is None else f"var({name})"


def picture(path: Path, label: str, *, copied: bool = False, wide: bool = False) -> Picture | None:
    """An image file, made smaller where it need not be large; None if it cannot be read.

    ``wide`` is for grids of images, which fill the page.
    """
    try:
        source = _data_uri(path, _WIDEST if wide else _THUMBNAIL)
    except ValueError:
        return None
    return Picture(source, label, copied, wide)


@functools.lru_cache(maxsize=512)  # images without mitigation stand beside every method
def _data_uri(path: Path, most: int) -> str:
    image = read_picture(path)
    small = max(image.size) <= _LOSSLESS
    if max(image.size) > most:
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    if small or most == _WIDEST:
        image.save(data, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(data, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
