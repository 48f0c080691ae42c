r"""Makes `drawings.json.gz`, the things that six makers drew, from the makers' own icon sets.

Usage, in an empty directory, once for every set and version of `PACKAGES`:

    npm pack @iconify-json/noto@1.2.9
    mkdir noto && tar xzf iconify-json-noto-1.2.9.tgz -C noto --strip-components=1

and then

    python -m sharpjax.datasets.drawings_subset .

which writes the file beside this script and says its SHA-256, for `drawings.py`.  The same
packages give the same JSON everywhere, and the same bytes by the same zlib.  Unicode's own groups
come from `emoji-test.txt`, of Emoji 15.0 for the shipped file (Debian's package `unicode-data`
15.0.0; another place of it by `--emoji-test`).

How the things were chosen.  Of the characters of one code point that all six sets have, in
Unicode's groups of animals, food, places, activities and objects, those were kept that are a
concrete thing, that are not mostly white (grounds are pale), whose drawings at 48 pixels have more
than lines, and that were drawn as one and the same thing by all (of "cricket", two drew the game).
Of things that a maker drew nearly alike, one stayed: no two are left whose mean of pixel and
outline correlation at 32 x 32 pixels reaches .8 by any maker, and no thing of which two makers'
drawings reach .9.  `tests/test_drawings.py` measures both.
"""

import argparse
import gzip
import hashlib
import io
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Drawings of the other two sets of the kind, fxemoji and emojione-v1, are as different; they end
# with Unicode 7, and so have no carrot, fox or butterfly.
PACKAGES = {
    "emojione": "1.2.3",
    "fluent-emoji-flat": "1.2.6",
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "openmoji": "1.2.29",
    "twemoji": "1.2.5",
}

# Unicode's (group, subgroup) -> ours; what stands in another subgroup is not taken.
GROUPS = {
    ("Animals & Nature", "animal-mammal"): "animal",
    ("Animals & Nature", "animal-amphibian"): "animal",
    ("Animals & Nature", "animal-reptile"): "animal",
    ("Animals & Nature", "animal-bird"): "bird",
    ("Animals & Nature", "animal-bug"): "bug",
    ("Animals & Nature", "animal-marine"): "sea animal",
    ("Food & Drink", "food-marine"): "sea animal",
    ("Animals & Nature", "plant-flower"): "plant",
    ("Animals & Nature", "plant-other"): "plant",
    ("Food & Drink", "food-fruit"): "fruit",
    ("Food & Drink", "food-vegetable"): "vegetable",
    ("Food & Drink", "food-prepared"): "food",
    ("Food & Drink", "food-asian"): "food",
    ("Food & Drink", "food-sweet"): "food",
    ("Travel & Places", "place-building"): "building",
    ("Travel & Places", "place-religious"): "building",
    ("Travel & Places", "place-other"): "building",
    ("Travel & Places", "transport-ground"): "vehicle",
    ("Travel & Places", "transport-water"): "vehicle",
    ("Travel & Places", "transport-air"): "vehicle",
    ("Activities", "sport"): "sport",
    ("Activities", "game"): "sport",
    ("Objects", "clothing"): "clothing",
}

NAMES = tuple(
    re.split(
        r",\s+",
        """\
monkey, cat, fox, lion, tiger, horse, camel, elephant, bear, panda, bat, frog, crocodile, turtle,
snake, turkey, chick, penguin, eagle, duck, owl, whale, dolphin, octopus, tropical fish, blowfish,
crab, shrimp, squid, snail, butterfly, caterpillar, ant, bee, spider, scorpion, bouquet, rose,
hibiscus, sunflower, tulip, evergreen tree, deciduous tree, palm tree, cactus, clover, maple leaf,
mushroom, grapes, watermelon, lemon, banana, pineapple, apple, pear, peach, cherries, strawberry,
kiwi, avocado, eggplant, potato, carrot, corn, hot pepper, cucumber, bread, croissant, pancakes,
cheese, bacon, hamburger, french fries, pizza, taco, sushi, doughnut, cookie, birthday cake,
chocolate bar, lollipop, honey pot, locomotive, tram, bus, fire engine, police car, tractor,
motorcycle, motor scooter, sailboat, ship, airplane, helicopter, rocket, house, castle, factory,
hospital, stadium, mosque, school, circus tent, soccer ball, american football, bowling, ping pong,
fishing pole, skis, target, shirt, jeans, dress, kimono, handbag, backpack, shoe, high heel, boot,
crown, sun hat, top hat, graduation cap""",
    )
)

# Unicode's name, where ours is plainer.
UNICODE_NAMES = {
    "apple": "red apple",
    "bee": "honeybee",
    "boot": "woman’s boot",  # noqa: RUF001 (Unicode's own apostrophe)
    "caterpillar": "bug",
    "cheese": "cheese wedge",
    "chick": "baby chick",
    "clover": "four leaf clover",
    "corn": "ear of corn",
    "high heel": "high-heeled shoe",
    "kiwi": "kiwi fruit",
    "shirt": "t-shirt",
    "shoe": "man’s shoe",  # noqa: RUF001
    "sun hat": "woman’s hat",  # noqa: RUF001
    "target": "bullseye",
}

# Icons are called by Unicode's name, and in some sets by a former one of it.
FORMER_NAMES = {"bullseye": "direct hit"}

SUBSET_PATH = Path(__file__).with_name("drawings.json.gz")
_EMOJI_TEST = Path("/usr/share/unicode/emoji/emoji-test.txt")
_SIZE = 16  # of an icon where neither it nor its set says one, by the format's definition


def unicode_groups(path: Path) -> dict[str, tuple[str, str]]:
    """Group and subgroup of every name, in lower case, in `emoji-test.txt`.

    Raises:
        ValueError: it has no line of the kind.
        FileNotFoundError: there is none.
    """
    groups: dict[str, tuple[str, str]] = {}
    group = subgroup = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ").strip()
        elif found := re.fullmatch(r"[0-9A-F ]+; fully-qualified +# \S+ E\d+\.\d+ (.+)", line):
            groups[found[1].lower()] = group, subgroup
    if not groups:
        raise ValueError(f"{path} must be Unicode's emoji-test.txt, got one without a character")
    return groups


def resolve(icons: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Body and box of an icon of an `icons.json`, through aliases of aliases; None: there is none.

    Returns:
        `{"body": ..., "box": [left, top, width, height]}`; what an icon does not say of its box,
        its set says for all, or the format does: 0, 0, 16, 16.

    Raises:
        ValueError: an alias turns or flips its icon, or aliases go round in a circle.
    """
    said: dict[str, Any] = {}
    passed: list[str] = []
    while name not in icons["icons"]:
        if name in passed:
            raise ValueError(f"aliases must end at an icon, got {' -> '.join([*passed, name])}")
        passed.append(name)
        alias = icons.get("aliases", {}).get(name)
        if alias is None:
            return None
        if changes := {"hFlip", "vFlip", "rotate"} & alias.keys():
            raise ValueError(
                f"aliases must leave their icon as it is, got {name!r} with {sorted(changes)[0]}"
            )
        said = alias | said
        name = alias["parent"]
    said = icons["icons"][name] | said
    default = {"left": 0, "top": 0, "width": _SIZE, "height": _SIZE}
    box = [said.get(side, icons.get(side, default[side])) for side in default]
    return {"body": said["body"], "box": box}


def make_subset(
    packages: Path,
    emoji_test: Path,
    *,
    names: tuple[str, ...] = NAMES,
    versions: Mapping[str, str] = PACKAGES,
) -> dict[str, Any]:
    """The content of the file: what the sets are, and the things by name, each with its drawings.

    Args:
        packages: a directory with the unpacked package of each set, under the set's name.
        emoji_test: Unicode's file.
        names: of the things, ours.
        versions: of the packages, by set.

    Raises:
        ValueError: a package of another version; a thing that a set, or Unicode, does not have.
        FileNotFoundError: a package is not there.
    """
    sets, icons = {}, {}
    for maker in sorted(versions):
        package, info, icons[maker] = (
            json.loads((packages / maker / f"{file}.json").read_text(encoding="utf-8"))
            for file in ("package", "info", "icons")
        )
        if package["version"] != versions[maker]:
            raise ValueError(
                f"{package['name']} must be version {versions[maker]}, got {package['version']}; "
                f"npm pack {package['name']}@{versions[maker]}"
            )
        sets[maker] = {
            "title": info["name"],
            "author": info["author"]["name"],
            "license": info["license"]["spdx"],
            "license_url": info["license"]["url"],
            "package": package["name"],
            "version": package["version"],
            "url": info["author"]["url"],
        }
    groups = unicode_groups(emoji_test)
    things = [_thing(name, groups, icons) for name in sorted(names)]
    return {"sets": sets, "things": things}


def _thing(
    name: str, groups: Mapping[str, tuple[str, str]], icons: Mapping[str, Any]
) -> dict[str, Any]:
    called = UNICODE_NAMES.get(name, name)
    if called not in groups:
        raise ValueError(f"{name!r} must have a name in Unicode's file, got {called!r}")
    group, subgroup = groups[called]
    if (group, subgroup) not in GROUPS:
        raise ValueError(f"{name!r} must be in a subgroup of GROUPS, got {group} / {subgroup}")
    drawings = {}
    for maker in sorted(icons):
        tried = [_slug(of) for of in (called, FORMER_NAMES.get(called)) if of]
        found = [icon for icon in (resolve(icons[maker], of) for of in tried) if icon]
        if not found:
            raise ValueError(f"{name!r} must be in every set, got none in {maker} by {tried}")
        drawings[maker] = found[0]
    return {
        "name": name,
        "group": GROUPS[group, subgroup],
        "unicode": {"group": group, "subgroup": subgroup},
        "drawings": drawings,
    }


def _slug(name: str) -> str:
    """How the sets write a name of Unicode: `woman's hat` is `womans-hat`."""
    letters = re.sub("['’]", "", name.lower())  # noqa: RUF001
    return re.sub("[^a-z0-9]+", "-", letters).strip("-")


def compress(subset: Mapping[str, Any]) -> bytes:
    """The bytes of the file: one line a thing, keys sorted, no time and no name in the header."""
    head = json.dumps(subset["sets"], sort_keys=True, ensure_ascii=False)
    lines = [json.dumps(of, sort_keys=True, ensure_ascii=False) for of in subset["things"]]
    text = '{"sets": ' + head + ',\n"things": [\n' + ",\n".join(lines) + "\n]}\n"
    buffer = io.BytesIO()
    with gzip.GzipFile("", "wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(text.encode())
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sharpjax.datasets.drawings_subset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("packages", type=Path, help="directory of the unpacked packages")
    parser.add_argument(
        "--emoji-test", type=Path, default=_EMOJI_TEST, help="Unicode's file (%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=SUBSET_PATH, help="what to write")
    options = parser.parse_args(arguments)
    try:
        subset = make_subset(options.packages, options.emoji_test)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    data = compress(subset)
    options.output.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    sys.stdout.write(f"{len(subset['things'])} things, {len(data):,} bytes, sha256 {digest}\n")


if __name__ == "__main__":
    main()
