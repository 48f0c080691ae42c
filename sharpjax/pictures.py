"""Image files: one reader for all that is judged, compared or shown, and one writer.

Images are read as `diffusers.utils.load_image` reads them, which is how PyTorch pipelines see
them: turned as their EXIF data say, the first frame of several, to RGB.  Of transparent images that
takes the colours under the transparency (often black) and drops the alpha channel.  There are two
differences.  Grey levels of 16 bits are scaled to 8 (`v / 257`), where Pillow cuts them off at
255.  And pixels of 32 bits, integer or float, are refused: their files do not say what is white.
"""

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sharpjax.rundir.files import write_bytes

ENDINGS = tuple(
    f".{end}" for end in ["png", "jpg", "jpeg", "jfif", "webp", "bmp", "tif", "tiff", "gif", "avif"]
)
# By content and not by name: of other formats some are programs (PostScript is run).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
MAX_PIXELS = 2**26  # 8192 x 8192: 256 MiB at four bytes each, decoded


def read_picture(path: str | Path, mode: str = "RGB") -> Image.Image:
    """An image file as `"RGB"` or `"L"` (grey), 8 bits a channel.

    Raises:
        ValueError: it cannot be read; it has more than `MAX_PIXELS` pixels, which is found before
            any is decoded: half a megabyte of PNG may hold gigabytes; or pixels of 32 bits.
    """
    path = Path(path)
    if not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path} cannot be read as an image: there is no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
            with Image.open(path, formats=_FORMATS) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{file.width} x {file.height} pixels")
                image = _eight_bits(file)
                return image if image.mode == mode else image.convert(mode)
    except Image.DecompressionBombError as error:  # Pillow's tells a limit of its own
        size = re.search(r"\d[\d x]* pixels", str(error))
        raise ValueError(
            f"{path} cannot be read as an image: it is too large{f' ({size[0]})' if size else ''}; "
            f"an image may have {MAX_PIXELS:,} pixels (8192 x 8192): make it smaller"
        ) from None
    except Exception as error:  # of damaged files Pillow raises almost anything
        reason = str(error).removesuffix(f" {str(path)!r}") or type(error).__name__
        raise ValueError(f"{path} cannot be read as an image: {reason}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)  # a copy would be another 256 MiB
    image.load()
    if image.mode.startswith("I;16"):
        levels = (np.asarray(image).astype(np.uint32) + 128) // 257  # rounded
        return Image.fromarray(levels.astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "integer" if image.mode == "I" else "float"
        raise ValueError(f"its pixels are 32-bit {kind}s; save it with 8 or 16 bits a channel")
    if image.mode == "P" and "transparency" in image.info:  # Pillow warns of the direct way
        return image.convert("RGBA")
    return image


def read_image(path: str | Path, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """An image as models take it, `(channels, height, width)` float32 from -1 to 1.

    Args:
        path: of the file; see `read_picture`.
        shape: 1 (grey) or 3 channels, height and width: the image's middle part of that form is
            resized to it.  The image as it is, in colour, if None.

    Raises:
        ValueError: it cannot be read.
    """
    return to_array(read_picture(path, "L" if shape and shape[0] == 1 else "RGB"), shape)


def read_images(paths: Sequence[Path]) -> np.ndarray:
    """Images of one size, in colour, `(n, 3, h, w)` float32 from -1 to 1."""
    return np.stack([read_image(path) for path in paths])


def to_array(picture: Image.Image, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """What `read_picture` gave as `read_image` gives it."""
    if shape is not None and picture.size != shape[:0:-1]:
        height, width = shape[1:]
        scale = min(picture.width / width, picture.height / height)
        left, top = (picture.width - scale * width) / 2, (picture.height - scale * height) / 2
        box = (left, top, left + scale * width, top + scale * height)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, box=box)
    pixels = np.asarray(picture, np.float32).reshape(picture.height, picture.width, -1)
    return pixels.transpose(2, 0, 1) / 127.5 - 1


def write_png(path: Path, picture: Image.Image) -> None:
    """Whole or not at all, as `sharpjax.rundir.files.write_bytes`."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    write_bytes(path, data.getvalue())
