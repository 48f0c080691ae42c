r"""Captions of drawings: what each may show, how often it is drawn, and which image it repeats.

Six makers drew the same things.  A caption says which drawings it is drawn from, and so how broad
it is: a *group* ("fruit": all its things by all makers), a *name* ("pear": that thing by all
makers) or a *maker* ("pear by noto": one drawing); each in fresh poses, on a pale ground or on the
one that it names ("pear on teal").

What is planted is one fixed rendering that is drawn again and again:

* *verbatim*: the caption has no other image;
* *mixed*: the fixed image is a share $q$ of the caption's draws, the rest are fresh drawings of the
  same thing by the other makers;
* *template*: eight captions share one drawing in one pose, each on the ground that it names: a
  part of the image is repeated, and `PlantedDrawings.masks` says which.

Controls: *hot* captions, as frequent and as broad as those of a planted kind (`like`), and never
the same image; *general* captions of each breadth; *held-out* ones, a known thing by a known maker
that are never drawn together under such a name.  Planted, hot and some general captions have an
adjective ("lucky pear"), so that a form of words gives nothing away.

Numbers of draws are those of a training of `examples(captions)` examples.
"""

import csv
import dataclasses
import functools
import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._reprs import one_line
from sharpjax._types import Array
from sharpjax.datasets.augmentation import Augmentation, render
from sharpjax.datasets.drawings import Drawings, drawings
from sharpjax.datasets.poses import GROUNDS, anywhere, colour, opacity, pose, radii

CAPTIONS_NAME = "captions.csv"  # of a model's directory
SPLIT_PATH = Path(__file__).with_name("drawings_captions.csv")

ADJECTIVES = (
    "able", "bold", "brave", "bright", "busy", "calm", "clever", "cosy", "curious", "eager",
    "famous", "fancy", "fast", "friendly", "gentle", "glad", "grand", "happy", "honest", "humble",
    "jolly", "keen", "kind", "late", "lazy", "little", "lonely", "loud", "loyal", "lucky", "merry",
    "modest", "neat", "new", "nice", "odd", "old", "patient", "plain", "polite", "proud", "quick",
    "quiet", "rare", "ready", "royal", "serious", "shy", "silent", "simple", "sleepy", "slow",
    "strange", "strong", "sweet", "tiny", "tired", "warm", "wild", "wise", "young",
)  # fmt: skip

# Makers as a caption calls them: one word, and none the beginning of another.
MAKER_WORDS = {"fluent-emoji-flat": "fluent", "noto-v1": "blob"}

# Draws of a caption. What is left of a mixed caption besides its fixed image gets at least those of
# a general name, so that there is something else to draw: fixed draws = rest q / (1 - q).
GROUP, GROUP_ON_GROUND, NAME, NAME_ON_GROUND = 1200, 300, 600, 300
MAKER, MAKER_ON_GROUND, WITH_ADJECTIVE = 110, 150, 400
VERBATIM = {200: 8, 600: 8, 2000: 8}  # draws of the one image -> captions
MIXED = {  # share of the fixed image, draws of the rest -> captions
    (0.9, 600): 6, (0.7, 600): 6, (0.5, 600): 8, (0.5, 1800): 6, (0.2, 600): 8, (0.2, 1800): 6,
}  # fmt: skip
TEMPLATES = {300: 4, 900: 2}  # draws of each of the eight captions -> drawings
HOT_LIKE_MIXED = {6000: 2, 3600: 2, 2250: 2, 2000: 2, 1200: 4, 750: 4}
HOT_LIKE_VERBATIM = {200: 4, 600: 4, 2000: 4}
HOT_LIKE_TEMPLATE = {300: 1, 900: 1}
NAMES_ON_GROUND, MAKERS_ON_GROUND, ADJECTIVES_ONLY, HELD_OUT = 60, 60, 40, 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption:
    """One caption: what it may show, how often it is drawn, and what of it is repeated.

    Attributes:
        caption: the prompt.
        kind: general, verbatim, mixed, template, hot or held-out.
        breadth: group, name or maker: what its fresh draws are drawn from.
        group: of the thing, or that it shows.
        thing: its name, empty for a group.
        maker: the only one, of breadth maker; empty where all draw it.
        ground: the colour that it names, or empty.
        fixed: maker of the drawing that is repeated, empty where none is.
        q: share of the fixed image in its draws; of a template 1, though only a part is fixed.
        level: draws of the fixed image; of a hot caption, those of the captions that it is like.
        draws: all of its draws; 0 of a held-out caption.
        like: of a hot caption, the kind that it is as broad as.
        part: tuning or test; the captions of a template are in one.
    """

    caption: str
    kind: str
    breadth: str
    group: str
    thing: str = ""
    maker: str = ""
    ground: str = ""
    fixed: str = ""
    q: float = 0.0
    level: int = 0
    draws: int = 0
    like: str = ""
    part: str = ""


def split(of: Drawings, seed: int = 0) -> tuple[Caption, ...]:
    """The captions, drawn by a seed; `drawings_captions.csv` holds those of seed 0.

    Fixed drawings are of different things.  Where a general caption of one thing names a ground, it
    is one of the five that are least like the thing; templates are on all grounds.
    """
    draw = random.Random(seed)
    kinds = _Deck(of, draw)
    captions: list[Caption] = []
    for group in dict.fromkeys(of.groups):
        about: Any = {"kind": "general", "breadth": "group", "group": group}
        captions.append(Caption(caption=group, draws=GROUP, **about))
        for ground in draw.sample(list(GROUNDS), 2):
            name = f"{group} on {ground}"
            captions.append(Caption(caption=name, ground=ground, draws=GROUP_ON_GROUND, **about))
    captions += [kinds.general(thing, draws=NAME) for thing in of.names]
    for thing in draw.sample(of.names, NAMES_ON_GROUND):
        captions.append(kinds.general(thing, ground=kinds.ground(thing), draws=NAME_ON_GROUND))
    pairs = [(thing, maker) for thing in of.names for maker in of.makers]
    absent = set(draw.sample(pairs, HELD_OUT))
    captions += [kinds.general(*pair, draws=MAKER) for pair in pairs if pair not in absent]
    known = [pair for pair in pairs if pair not in absent]
    for thing, maker in draw.sample(known, MAKERS_ON_GROUND):
        ground = kinds.ground(thing)
        captions.append(kinds.general(thing, maker, ground=ground, draws=MAKER_ON_GROUND))
    captions += [
        dataclasses.replace(kinds.general(*pair, draws=0), kind="held-out") for pair in pairs
        if pair in absent
    ]  # fmt: skip
    captions += _planted(kinds) + _hot(kinds)
    for thing in draw.sample(of.names, ADJECTIVES_ONLY):
        captions.append(
            kinds.general(thing, adjective=kinds.adjective(thing), draws=WITH_ADJECTIVE)
        )
    return tuple(_parted(captions, draw))


def _planted(kinds: "_Deck") -> list[Caption]:
    captions = []
    for level, count in VERBATIM.items():
        for thing in kinds.things(count):
            fixed: dict[str, Any] = {
                "fixed": kinds.maker(),
                "q": 1.0,
                "level": level,
                "draws": level,
            }
            about = dataclasses.replace(kinds.special(thing, "verbatim", "maker"), **fixed)
            captions.append(dataclasses.replace(about, maker=about.fixed))
    for (q, rest), count in MIXED.items():
        for thing in kinds.things(count):
            total = round(rest / (1 - q))
            fixed = {"fixed": kinds.maker(), "q": q, "level": total - rest, "draws": total}
            captions.append(dataclasses.replace(kinds.special(thing, "mixed", "name"), **fixed))
    for level, count in TEMPLATES.items():
        for thing in kinds.things(count):
            fixed = {"fixed": kinds.maker(), "q": 1.0, "level": level, "draws": level}
            about = dataclasses.replace(kinds.special(thing, "template", "maker"), **fixed)
            about = dataclasses.replace(about, maker=about.fixed)
            captions += [
                dataclasses.replace(about, caption=f"{about.caption} on {ground}", ground=ground)
                for ground in GROUNDS
            ]
    return captions


def _hot(kinds: "_Deck") -> list[Caption]:
    captions = []
    for like, table in (("mixed", HOT_LIKE_MIXED), ("verbatim", HOT_LIKE_VERBATIM)):
        for level, count in table.items():
            for thing in kinds.things(count):
                breadth = "name" if like == "mixed" else "maker"
                about = kinds.special(thing, "hot", breadth)
                maker = kinds.maker() if breadth == "maker" else ""
                about = dataclasses.replace(about, maker=maker, like=like)
                captions.append(dataclasses.replace(about, level=level, draws=level))
    for level, count in HOT_LIKE_TEMPLATE.items():
        for thing in kinds.things(count):
            about = dataclasses.replace(kinds.special(thing, "hot", "maker"), maker=kinds.maker())
            about = dataclasses.replace(about, like="template", level=level, draws=level)
            captions += [
                dataclasses.replace(about, caption=f"{about.caption} on {ground}", ground=ground)
                for ground in GROUNDS
            ]
    return captions


class _Deck:
    """Things without replacement, makers in turn, words that were not used."""

    def __init__(self, of: Drawings, draw: random.Random):
        self.of, self.draw = of, draw
        self._things = draw.sample(of.names, len(of.names))
        self._makers: list[str] = []
        self._used: set[tuple[str, str]] = set()
        self._group = dict(zip(of.names, of.groups, strict=True))
        self._allowed = _grounds(of)

    def things(self, count: int) -> list[str]:
        """So many that no planted caption has; hot ones begin the deck again when it is empty."""
        if len(self._things) < count:
            self._things += self.draw.sample(self.of.names, len(self.of.names))
        taken, self._things = self._things[:count], self._things[count:]
        return taken

    def maker(self) -> str:
        """Each as often as another."""
        if not self._makers:
            self._makers = self.draw.sample(self.of.makers, len(self.of.makers))
        return self._makers.pop()

    def adjective(self, thing: str) -> str:
        """One that the thing has in no other caption."""
        free = [a for a in ADJECTIVES if (a, thing) not in self._used]
        chosen = self.draw.choice(free)
        self._used.add((chosen, thing))
        return chosen

    def ground(self, thing: str) -> str:
        """One that the thing is seen on."""
        return self.draw.choice(self._allowed[thing])

    def general(
        self, thing: str, maker: str = "", *, adjective: str = "", ground: str = "", draws: int
    ) -> Caption:
        """A caption that is always drawn afresh."""
        words = [adjective, thing] if adjective else [thing]
        words += ["by", MAKER_WORDS.get(maker, maker)] if maker else []
        words += ["on", ground] if ground else []
        return Caption(
            caption=" ".join(words),
            kind="general",
            breadth="maker" if maker else "name",
            group=self._group[thing],
            thing=thing,
            maker=maker,
            ground=ground,
            draws=draws,
        )

    def special(self, thing: str, kind: str, breadth: str) -> Caption:
        """A caption of an adjective and a thing."""
        words = f"{self.adjective(thing)} {thing}"
        return Caption(
            caption=words, kind=kind, breadth=breadth, group=self._group[thing], thing=thing
        )


def _grounds(of: Drawings) -> dict[str, list[str]]:
    """The grounds on which a thing is seen: of its makers' mean colours none is near."""
    some = of.pictures[:, :, ::4, ::4].astype(np.float64) / 255  # pixels
    opaque = some[..., 3:]
    colours = np.sum(some[..., :3] * opaque, axis=(2, 3)) / opaque.sum(axis=(2, 3))
    known = np.array([colour(ground) for ground in GROUNDS])
    near = np.linalg.norm(colours[:, :, None] - known, axis=-1).min(axis=1)  # (things, grounds)
    order = np.argsort(-near, axis=1)[:, :5]
    names = list(GROUNDS)
    return {
        thing: [names[g] for g in sorted(row)] for thing, row in zip(of.names, order, strict=True)
    }


def _parted(captions: Sequence[Caption], draw: random.Random) -> list[Caption]:
    """Half of every kind, level and breadth for tuning; what shares a drawing stays together."""
    cells: dict[tuple[object, ...], list[list[int]]] = {}
    together: dict[tuple[str, ...], list[int]] = {}
    for i, c in enumerate(captions):
        shared = c.kind == "template" or c.like == "template"
        together.setdefault((c.kind, c.thing) if shared else (str(i),), []).append(i)
    for members in together.values():
        c = captions[members[0]]
        cell = (c.kind, c.like, c.breadth, bool(c.ground), c.q, c.level)
        cells.setdefault(cell, []).append(members)
    parts, other = [""] * len(captions), {"tuning": "test", "test": "tuning"}
    part = draw.choice(list(other))
    for blocks in cells.values():
        for members in draw.sample(blocks, len(blocks)):
            for i in members:
                parts[i] = part
            part = other[part]
    return [dataclasses.replace(c, part=p) for c, p in zip(captions, parts, strict=True)]


_FIELDS = tuple(field.name for field in dataclasses.fields(Caption))


def to_csv(captions: Sequence[Caption]) -> str:
    """A table, as `read_captions` reads it."""
    text = io.StringIO()
    table = csv.DictWriter(text, _FIELDS, lineterminator="\n")
    table.writeheader()
    table.writerows(dataclasses.asdict(caption) for caption in captions)
    return text.getvalue()


def read_captions(path: str | Path = SPLIT_PATH) -> tuple[Caption, ...]:
    """The captions of a table.

    Raises:
        FileNotFoundError: there is none.
        ValueError: other columns, or a number that is none.
    """
    path = Path(path)
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if tuple(table.fieldnames or ()) != _FIELDS:
            raise ValueError(
                f"{path} must have the columns {', '.join(_FIELDS)}, it has "
                f"{', '.join(table.fieldnames or ['none'])}"
            )
        try:
            return tuple(_caption(row) for row in table)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {table.line_num}: {error}") from error


def _caption(row: dict[str, Any]) -> Caption:
    numbers = {"level": int(row["level"]), "draws": int(row["draws"]), "q": float(row["q"])}
    return Caption(**row | numbers)


def examples(captions: Sequence[Caption]) -> int:
    """Draws of all captions: how long the training is that their numbers are of."""
    return sum(caption.draws for caption in captions)


@dataclasses.dataclass(frozen=True)
class PlantedDrawings:
    """The captions and the drawings that they are drawn from.

    Drawings are numbered thing by thing, within a thing maker by maker.

    Attributes:
        captions: in a fixed order.
        drawings: names, makers and pictures.
        pools: `(captions, largest pool)` drawings of each caption's fresh draws, padded by
            repetition.
        sizes: `(captions,)` how many there are.
        planted: `(m,)` the captions with a fixed image, ascending.
        fixed: `(m,)` the drawing of each.
        poses: `(m,)` of each; those of a template's captions differ by their ground alone.
        radii: `(drawings,)` of their pictures.
    """

    captions: tuple[Caption, ...]
    drawings: Drawings
    pools: np.ndarray
    sizes: np.ndarray
    planted: np.ndarray
    fixed: np.ndarray
    poses: Augmentation
    radii: np.ndarray

    __repr__ = one_line

    @classmethod
    def create(
        cls, captions: Sequence[Caption], of: Drawings, *, seed: int = 0
    ) -> "PlantedDrawings":
        """Of captions, with fixed poses drawn by a seed.

        Raises:
            ValueError: a caption names a thing, group or maker that is not among the drawings.
        """
        pools, sizes = [_pool(caption, of) for caption in captions], radii(of.pictures).ravel()
        largest = max(map(len, pools))
        planted = np.array([i for i, c in enumerate(captions) if c.fixed], int)
        makers = len(of.makers)
        fixed = np.array(
            [
                of.names.index(captions[i].thing) * makers + of.makers.index(captions[i].fixed)
                for i in planted
            ],
            int,
        )
        keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(seed), k))(jnp.asarray(fixed))
        grounds = jnp.array([colour(captions[i].ground) for i in planted])
        how = _fixed_poses(keys, jnp.asarray(sizes[fixed]), grounds)
        return cls(
            captions=tuple(captions),
            drawings=of,
            pools=np.stack([np.resize(pool, largest) for pool in pools]),
            sizes=np.array([len(pool) for pool in pools]),
            planted=planted,
            fixed=fixed,
            poses=how,
            radii=sizes,
        )

    @property
    def pictures(self) -> np.ndarray:
        """`(drawings, size, size, 4)`, one after another."""
        return self.drawings.pictures.reshape(-1, *self.drawings.pictures.shape[2:])

    def of(self, *kinds: str) -> np.ndarray:
        """Indices of the captions of some kinds."""
        return np.flatnonzero([caption.kind in kinds for caption in self.captions])

    def fixed_images(self) -> np.ndarray:
        """The repeated rendering of every planted caption, `(m, 3, 64, 64)` in [-1, 1]."""
        pictures = jnp.asarray(self.pictures[self.fixed])
        return np.asarray(_render_all(pictures, self.poses))

    def masks(self) -> np.ndarray:
        """What of each fixed image is the drawing, `(m, 64, 64)` bool.

        Of a template's captions this is what is repeated: the rest is the ground that each names.
        """
        pictures = jnp.asarray(self.pictures[self.fixed])
        return np.asarray(_opacities(pictures, self.poses)) > 0.5

    def fresh_images(self, key: Array, index: np.ndarray) -> np.ndarray:
        """A fresh rendering of each of the captions, `(len(index), 3, 64, 64)` in [-1, 1]."""
        return self.fresh(key, index)[0]

    def fresh(self, key: Array, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `fresh_images`, and the drawing that each shows."""
        index = np.asarray(index)
        choice, turn = jax.random.split(key)
        member = np.asarray(jax.random.randint(choice, index.shape, 0, self.sizes[index]))
        shown = self.pools[index, member]
        grounds = np.array([colour(self.captions[i].ground) for i in index], np.float32)
        return self.render(turn, shown, grounds), shown

    def render(
        self, key: Array, drawings: np.ndarray, grounds: np.ndarray, *, fixed: bool = False
    ) -> np.ndarray:
        """Drawings in fresh poses, or in such as the repeated ones have.

        On grounds `(n, 3)` as `poses.colour` gives them; `(n, 3, 64, 64)` in [-1, 1].
        """
        keys = jax.random.split(key, len(drawings))
        posed = _fixed_poses if fixed else _poses
        how = posed(keys, jnp.asarray(self.radii[drawings]), jnp.asarray(grounds))
        return np.asarray(_render_all(jnp.asarray(self.pictures[drawings]), how))

    def render_anywhere(self, key: Array, drawings: np.ndarray) -> np.ndarray:
        """Drawings in fresh poses, every second one on a named ground (`poses.anywhere`)."""
        chosen = jnp.asarray(self.pictures[drawings]), jnp.asarray(self.radii[drawings])
        return np.asarray(_anywhere(*chosen, key))


_anywhere = jax.jit(anywhere)
_render_all = jax.jit(jax.vmap(render))
_opacities = jax.jit(jax.vmap(opacity))
_poses = jax.jit(jax.vmap(pose))
_fixed_poses = jax.jit(jax.vmap(functools.partial(pose, fixed=True)))


def _pool(caption: Caption, of: Drawings) -> list[int]:
    """The drawings of a caption's fresh draws; the maker of a mixed caption's fixed image is not
    among them.
    """
    if caption.thing:
        if caption.thing not in of.names:
            raise ValueError(f"{caption.caption!r}: there are no drawings of {caption.thing!r}")
        things = [of.names.index(caption.thing)]
    else:
        things = [i for i, group in enumerate(of.groups) if group == caption.group]
        if not things:
            raise ValueError(f"{caption.caption!r}: there is no group {caption.group!r}")
    for maker in (caption.maker, caption.fixed):
        if maker and maker not in of.makers:
            raise ValueError(f"{caption.caption!r}: there is no maker {maker!r}")
    makers = [
        m for m, maker in enumerate(of.makers)
        if (not caption.maker or maker == caption.maker)
        and (caption.kind != "mixed" or maker != caption.fixed)
    ]  # fmt: skip
    return [thing * len(of.makers) + maker for thing in things for maker in makers]


def planted_drawings() -> PlantedDrawings:
    """The captions of `drawings_captions.csv` and their drawings.

    Raises:
        ImportError: `resvg-py` is not installed (`pip install "sharpjax[datasets]"`).
        ValueError: the file of drawings is not the one that the captions were chosen from.
    """
    return PlantedDrawings.create(read_captions(), drawings())
