"""Image files: read as diffusers reads them, but for what that reads wrongly; bounded memory."""

import json
import struct
import zlib

import numpy as np
import pytest
from diffusers.utils import load_image
from PIL import Image
from resident import IS_TOLD, child

from sharpjax.pictures import MAX_PIXELS, read_image, read_picture

pytestmark = pytest.mark.quick

LEVELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
COLOUR = Image.fromarray(LEVELS)


def png(width, height, *, depth=8, kind=2, rows=()):
    """A PNG file made by hand: `kind` 0 is grey, 2 RGB."""
    deflate, data = zlib.compressobj(9), b""
    for row in rows:
        data += deflate.compress(b"\0" + row)
    data += deflate.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    chunks += [(b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d))
        for name, d in chunks
    )


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("1", "png"), ("L", "png"), ("LA", "png"), ("P", "png"), ("RGB", "png"), ("RGBA", "png"),
        ("RGB", "jpg"), ("RGB", "JPEG"), ("CMYK", "jpg"), ("L", "bmp"), ("RGB", "webp"),
        ("RGBA", "webp"), ("P", "gif"), ("CMYK", "tiff"), ("YCbCr", "tif"), ("RGB", "TIFF"),
        ("RGB", "avif"), ("RGBA", "avif"),
    ],
)  # fmt: skip
def test_eight_bits_are_read_as_diffusers_reads_them(mode, ending, tmp_path):
    image = COLOUR.convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(LEVELS[..., 0]))  # dropped, as there
    image.save(tmp_path / f"x.{ending}")
    expected = np.asarray(load_image(str(tmp_path / f"x.{ending}")))
    np.testing.assert_array_equal(read_picture(tmp_path / f"x.{ending}"), expected)
    found = read_image(tmp_path / f"x.{ending}")
    assert (found.shape, found.dtype) == ((3, 6, 8), np.float32)
    np.testing.assert_allclose((found + 1) * 127.5, expected.transpose(2, 0, 1), atol=1e-4)


@pytest.mark.filterwarnings("error")  # Pillow warns of palettes whose colours are transparent
def test_a_palette_with_transparency(tmp_path):
    palette = COLOUR.convert("P")
    palette.save(tmp_path / "x.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png"), palette.convert("RGB"))


def test_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    for ending in ("gif", "tiff", "webp", "avif", "png"):
        path = tmp_path / f"x.{ending}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        red, green, blue = np.moveaxis(np.asarray(read_picture(path), int), -1, 0)
        assert min(red.min(), 255 - green.max(), 255 - blue.max()) > 250


TURNED = {  # what EXIF's orientation says of the stored rows and columns
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
def test_orientation(orientation, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    expected = TURNED[orientation](LEVELS)
    for ending in ("png", "tiff", "webp"):
        path = tmp_path / f"x.{ending}"
        COLOUR.save(path, exif=exif, **({"lossless": True} if ending == "webp" else {}))
        np.testing.assert_array_equal(read_picture(path), expected)
        np.testing.assert_array_equal(read_picture(path), load_image(str(path)))
    COLOUR.resize((80, 60), Image.Resampling.NEAREST).save(tmp_path / "x.jpg", exif=exif)
    found = read_picture(tmp_path / "x.jpg")
    np.testing.assert_array_equal(found, load_image(str(tmp_path / "x.jpg")))
    assert found.size == ((80, 60) if orientation < 5 else (60, 80))


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_grey_of_16_bits_is_scaled(ending, tmp_path):
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / f"x.{ending}")
    found = np.asarray(read_picture(tmp_path / f"x.{ending}", "L"))
    np.testing.assert_array_equal(found, np.round(values / 257).astype(np.uint8))
    assert read_picture(tmp_path / f"x.{ending}").mode == "RGB"
    middle = Image.fromarray(np.full((8, 8), 127 * 257, np.uint16))
    middle.save(tmp_path / f"x.{ending}")
    assert np.unique(read_picture(tmp_path / f"x.{ending}")).tolist() == [127]  # 255 once


def test_colour_of_16_bits(tmp_path):
    values = np.random.default_rng(1).integers(0, 2**16, (6, 8, 3)).astype(">u2")
    (tmp_path / "x.png").write_bytes(png(8, 6, depth=16, rows=[row.tobytes() for row in values]))
    found = np.asarray(read_picture(tmp_path / "x.png"), float)
    assert np.abs(found - values.astype(float) / 257).max() < 1  # Pillow takes the high byte


@pytest.mark.parametrize(("mode", "kind"), [("I", "integers"), ("F", "floats")])
def test_pixels_without_a_white_are_refused(mode, kind, tmp_path):
    COLOUR.convert("L").convert(mode).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match=rf"x.tiff cannot be .* its pixels are 32-bit {kind}; sav"):
        read_picture(tmp_path / "x.tiff")


@pytest.mark.skipif(not IS_TOLD, reason="needs Linux")
def test_a_small_file_of_many_pixels_takes_no_memory(tmp_path):
    """81 million pixels in a quarter of a megabyte: 650 MB when decoded and copied once."""
    width, height = 10000, 8100
    assert MAX_PIXELS < width * height < Image.MAX_IMAGE_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, height, rows=[bytes(3 * width)] * height))
    assert path.stat().st_size < 5e5
    code = (
        "import json, sys\nfrom resident import growth\nfrom sharpjax.pictures import read_image\n"
        "grown, told = growth(), ''\n"
        "try:\n    read_image(sys.argv[1], (3, 64, 64))\n"
        "except ValueError as error:\n    told = str(error)\n"
        "print(json.dumps([grown(), told]))"
    )
    megabytes, told = json.loads(child(code, path).stdout)
    assert megabytes < 30
    assert "bomb.png cannot be read as an image: it is too large (10000 x 8100 pixels)" in told
    assert "an image may have 67,108,864 pixels (8192 x 8192): make it smaller" in told


@pytest.mark.parametrize("side", [9000, 10000, 20000])
def test_too_large_is_told_from_the_header(side, tmp_path):
    """Below the size that Pillow warns of, beyond it, and beyond the one that it refuses."""
    (tmp_path / "x.png").write_bytes(png(side, side))  # without a pixel
    size = f"{side**2} pixels" if side == 20000 else f"{side} x {side} pixels"
    told = rf"x.png cannot be read as an image: it is too large \({size}\); an image may have 67"
    with pytest.raises(ValueError, match=told):
        read_picture(tmp_path / "x.png")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"RIFF\0\0\0\0WEBP",
        png(8, 6, rows=[row.tobytes() for row in LEVELS])[:100],
    ],
)  # fmt: skip
def test_files_that_are_none(data, tmp_path):
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"x.png cannot be read as an image: "):
        read_image(tmp_path / "x.png", (3, 8, 8))
    with pytest.raises(ValueError, match="there is no such file"):
        read_image(tmp_path / "y.png")
