r"""The same things drawn by six makers: pictures of which there are many of one thing.

"Elephant" is six drawings, "animal" ninety, and "elephant" by one maker a single one: how broad a
caption is can be chosen.

Source: six sets of icons (Noto, Noto v1, Fluent, Twemoji, Emojione, OpenMoji), from which
`drawings_subset.py` takes the things that all of them have; each drawing is under its maker's
licence, `drawings_licenses/` beside this file.  Unicode's subgroups, a few joined, are the groups.
"""

import dataclasses
import functools
import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sharpjax._reprs import one_line

SUBSET_PATH = Path(__file__).with_name("drawings.json.gz")
SUBSET_SHA256 = "b19e244d7f4a75e56bc0dd6aa69a456f3d3952fb689f29fe55b9d5d89fb10931"
PICTURE_SIZE = 80  # pixels a side of a picture, margins included
DRAWING_SIZE = 56  # of which the longer side of the drawing's own box has


@dataclasses.dataclass(frozen=True)
class Drawings:
    """Things, their makers, and a picture of each thing by each maker.

    Attributes:
        names: of the things, one to three plain words, sorted.
        groups: of each thing its group, one or two plain words.
        makers: sorted.
        pictures: `(things, makers, PICTURE_SIZE, PICTURE_SIZE, 4)` uint8 RGBA, not to be written
            to: the drawing in the middle, around it nothing.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    makers: tuple[str, ...]
    pictures: np.ndarray

    __repr__ = one_line

    def picture(self, name: str, maker: str) -> np.ndarray:
        """One drawing, `(PICTURE_SIZE, PICTURE_SIZE, 4)` uint8.

        Raises:
            ValueError: there is no thing, or no maker, of this name.
        """
        if name not in self.names:
            raise ValueError(f"name must be one of `names`, got {name!r}")
        if maker not in self.makers:
            raise ValueError(f"maker must be one of {', '.join(self.makers)}, got {maker!r}")
        return self.pictures[self.names.index(name), self.makers.index(maker)]

    def of(self, *groups: str) -> np.ndarray:
        """Indices of the things of some groups."""
        return np.flatnonzero([group in groups for group in self.groups])


@functools.cache
def drawings() -> Drawings:
    """All drawings, rendered; in one process only once (about a second).

    Raises:
        ImportError: `resvg-py` is not installed (`pip install "sharpjax[datasets]"`).
        ValueError: `drawings.json.gz` is not the shipped file, or a drawing does not render.
    """
    subset = load_subset()
    makers, things = tuple(sorted(subset["sets"])), subset["things"]
    pictures = np.empty((len(things), len(makers), PICTURE_SIZE, PICTURE_SIZE, 4), np.uint8)
    for i, thing in enumerate(things):
        for j, maker in enumerate(makers):
            drawing = thing["drawings"][maker]
            try:
                pictures[i, j] = rasterize(drawing["body"], drawing["box"])
            except ValueError as error:
                raise ValueError(
                    f"every drawing must render, got that of {thing['name']!r} by {maker!r}, "
                    f"which does not ({error}); install another version of resvg-py"
                ) from error
    pictures.flags.writeable = False  # it is the cache's
    return Drawings(
        names=tuple(thing["name"] for thing in things),
        groups=tuple(thing["group"] for thing in things),
        makers=makers,
        pictures=pictures,
    )


def load_subset(path: str | Path = SUBSET_PATH) -> dict[str, Any]:
    """The content of `drawings.json.gz`: `sets` with title, author and licence, and `things`.

    Raises:
        ValueError: the file is not the shipped one.
        FileNotFoundError: there is none.
    """
    data = Path(path).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SUBSET_SHA256:
        raise ValueError(
            f"{path} must be the file that sharpjax ships (sha256 {SUBSET_SHA256}), got another "
            f"(sha256 {found}); install sharpjax again"
        )
    return json.loads(gzip.decompress(data))


def rasterize(body: str, box: Sequence[float]) -> np.ndarray:
    """An SVG's body in the middle of a transparent square, `(PICTURE_SIZE, PICTURE_SIZE, 4)` uint8.

    Args:
        body: what stands between `<svg>` and `</svg>`.
        box: left, top, width and height of what is shown of it.  The longer side gets
            `DRAWING_SIZE` pixels; what is drawn outside is cut off, as it is in the icon.

    Raises:
        ImportError: `resvg-py` is not installed.
        ValueError: it is not an SVG, or nothing of it is to be seen.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError(
            'the drawings are rendered by resvg-py: pip install "sharpjax[datasets]"'
        ) from error
    left, top, width, height = box
    side = max(width, height) * PICTURE_SIZE / DRAWING_SIZE
    outer = f"{left + (width - side) / 2} {top + (height - side) / 2} {side} {side}"
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = (
        f'<svg {namespaces} width="{PICTURE_SIZE}" height="{PICTURE_SIZE}" viewBox="{outer}">'
        f'<svg x="{left}" y="{top}" width="{width}" height="{height}" '
        f'viewBox="{left} {top} {width} {height}">{body}</svg></svg>'
    )
    # no drawing has letters; to look for the system's fonts would take longer than all the rest
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    picture = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    if not picture[..., 3].any():
        raise ValueError("nothing is to be seen")
    return picture
