"""The drawings: what is shipped, that it renders, and the script that chose it."""

import builtins
import collections
import gzip
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from sharpjax.datasets import drawings as module
from sharpjax.datasets import drawings_subset as script
from sharpjax.datasets.drawings import (
    DRAWING_SIZE,
    PICTURE_SIZE,
    SUBSET_PATH,
    SUBSET_SHA256,
    drawings,
    load_subset,
    rasterize,
)
from sharpjax.similarity import outlines, standardised

LICENSES = SUBSET_PATH.with_name("drawings_licenses")
MARGIN = (PICTURE_SIZE - DRAWING_SIZE) // 2
SQUARE = '<path d="M0 0h8v8H0z"/>'


@pytest.fixture(scope="module")
def subset():
    return load_subset()


@pytest.fixture(scope="module")
def features():
    """Of every drawing, by maker: its pixels and its outlines at 32 x 32, standardised."""
    pictures = drawings().pictures[:, :, 8:-8, 8:-8].astype(np.float32) / 255
    alpha = pictures[..., 3:]
    images = pictures[..., :3] * alpha + (1 - alpha) * 0.78  # on grey
    images = images.reshape(*images.shape[:2], 32, 2, 32, 2, 3).mean((3, 5))
    # of each channel less its mean: the colour of a whole image is no likeness
    images = (images - images.mean((2, 3), keepdims=True)).transpose(1, 0, 4, 2, 3)
    return [(standardised(of), outlines(of)) for of in images]


# --- what is shipped ---------------------------------------------------------------------------


def test_the_file_is_the_one_that_the_script_writes(subset):
    data = SUBSET_PATH.read_bytes()
    assert hashlib.sha256(data).hexdigest() == SUBSET_SHA256
    assert len(data) < 1_500_000
    # not the compressed bytes: those are of one version of zlib
    assert gzip.decompress(script.compress(subset)) == gzip.decompress(data)
    assert [thing["name"] for thing in subset["things"]] == sorted(script.NAMES)
    assert {maker: of["version"] for maker, of in subset["sets"].items()} == script.PACKAGES


def test_names_and_groups(subset):
    names = [thing["name"] for thing in subset["things"]]
    assert len(names) == len(set(names)) == 123
    assert all(re.fullmatch("[a-z]+( [a-z]+){0,2}", name) for name in names)
    sizes = collections.Counter(thing["group"] for thing in subset["things"])
    assert len(sizes) == 12
    assert min(sizes.values()) >= 6
    assert not set(sizes) & set(names), "a group has a thing's name"
    for thing in subset["things"]:
        assert script.GROUPS[tuple(thing["unicode"].values())] == thing["group"]
        assert thing["drawings"].keys() == script.PACKAGES.keys()
    where = {thing["name"]: thing["group"] for thing in subset["things"]}
    assert (where["owl"], where["crab"], where["top hat"]) == ("bird", "sea animal", "clothing")


def test_every_drawing_is_there_within_its_margins():
    found = drawings()
    assert found.pictures.shape == (123, 6, PICTURE_SIZE, PICTURE_SIZE, 4)
    assert found.pictures.dtype == np.uint8
    alpha = found.pictures[..., 3]
    inner = alpha[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
    assert inner.astype(int).sum() == alpha.astype(int).sum()
    assert (inner > 128).mean((2, 3)).min() > 0.1
    # no drawing is a mere silhouette, or pale all over: it is seen on a pale ground
    dark = (found.pictures[..., :3].min(-1) < 205) & (alpha > 128)
    assert (dark.sum((2, 3)) / (alpha > 128).sum((2, 3))).min() > 0.3


def test_makers_differ_and_so_do_things(features):
    def likeness(one, other):
        return (one[0] @ other[0].T + one[1] @ other[1].T) / 2

    for i, of in enumerate(features):
        things = likeness(of, of)
        np.testing.assert_allclose(np.diag(things), 1, rtol=1e-4)
        assert (things - np.eye(len(things))).max() < 0.8
        for other in features[:i]:
            same = np.diag(likeness(of, other))
            assert same.max() < 0.9
            assert same.mean() < 0.6


def test_one_drawing(subset):
    found = drawings()
    thing = next(of for of in subset["things"] if of["name"] == "carrot")
    drawing = thing["drawings"]["noto"]
    np.testing.assert_array_equal(
        found.picture("carrot", "noto"), rasterize(drawing["body"], drawing["box"])
    )
    red, green, blue = found.picture("carrot", "noto")[40, 40, :3]
    assert red > green > blue
    assert {found.names[i] for i in found.of("bird")} == {
        "chick", "duck", "eagle", "owl", "penguin", "turkey"
    }  # fmt: skip
    assert len(found.of("bird", "animal")) == 21
    assert drawings() is found
    with pytest.raises(ValueError, match="read-only"):
        found.pictures[0] = 0
    with pytest.raises(ValueError, match=r"name must be one of `names`, got 'unicorn'"):
        found.picture("unicorn", "noto")
    with pytest.raises(ValueError, match=r"maker must be one of emojione, .*, got 'arno'"):
        found.picture("carrot", "arno")


def test_each_set_has_its_licence(subset):
    for maker, of in subset["sets"].items():
        text = (LICENSES / f"{maker}.txt").read_text()
        assert text.startswith(of["title"])
        for told in ("author", "url", "package", "version"):
            assert of[told] in text, (maker, told)
        assert text.endswith(f"SPDX-License-Identifier: {of['license']}\n")
        assert of["license_url"] in text
        assert "unchanged" in text
        assert maker in (LICENSES / "README.md").read_text()
    assert {of["license"] for of in subset["sets"].values()} == {
        "Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0", "MIT"
    }  # fmt: skip
    settings = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    said = re.search('^license = "(.+)"$', settings, re.MULTILINE)[1].split(" AND ")
    assert {of["license"] for of in subset["sets"].values()} <= set(said)


# --- rendering ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((0, 0, 8, 8), (12, 68), (12, 68)),
        ((0, 0, 8, 4), (26, 54), (12, 68)),  # a longer side of 56 pixels
        ((-8, 0, 16, 8), (26, 54), (40, 68)),  # the right half of its box
        ((4, 4, 8, 8), (12, 40), (12, 40)),  # its last quarter: nothing outside the box is seen
    ],
)
def test_a_box_in_the_middle_of_the_picture(box, rows, columns):
    expected = np.zeros((PICTURE_SIZE, PICTURE_SIZE), np.uint8)
    expected[slice(*rows), slice(*columns)] = 255
    np.testing.assert_array_equal(rasterize(SQUARE, box)[..., 3], expected)


def test_references_inside_a_drawing():
    """As some sets have them: in SVG 1.1's namespace."""
    body = f'<defs><g id="a">{SQUARE}</g></defs><use xlink:href="#a"/>'
    np.testing.assert_array_equal(rasterize(body, (0, 0, 8, 8)), rasterize(SQUARE, (0, 0, 8, 8)))


@pytest.mark.parametrize("body", ["<path d=", "<g></g>"])
def test_a_drawing_that_does_not_render(body, subset, monkeypatch):
    things = [thing for thing in subset["things"] if thing["name"] in {"ant", "apple"}]
    broken = json.loads(json.dumps(subset | {"things": things}))
    broken["things"][1]["drawings"]["noto"]["body"] = body
    monkeypatch.setattr(module, "load_subset", lambda: broken)
    with pytest.raises(
        ValueError, match="every drawing must render, got that of 'apple' by 'noto'"
    ):
        drawings.__wrapped__()


def test_another_file(tmp_path):
    other = tmp_path / "drawings.json.gz"
    other.write_bytes(SUBSET_PATH.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"must be the file.*got another.*install") as told:
        load_subset(other)
    found = hashlib.sha256(other.read_bytes()).hexdigest()
    assert all(word in str(told.value) for word in (str(other), SUBSET_SHA256, found))
    with pytest.raises(FileNotFoundError):
        load_subset(tmp_path / "none")


def test_without_the_package(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "resvg_py":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'resvg-py: pip install "sharpjax\[datasets\]"'):
        drawings.__wrapped__()


# --- the script --------------------------------------------------------------------------------

EMOJI_TEST = """\
# emoji-test.txt
# group: Animals & Nature
# subgroup: animal-mammal
1F98A ; fully-qualified     # 🦊 E3.0 fox
1F43C ; fully-qualified     # 🐼 E0.6 panda
# subgroup: animal-marine
1F433 ; fully-qualified     # 🐳 E0.6 spouting whale
# group: Activities
# subgroup: game
1F3AF ; fully-qualified     # 🎯 E0.6 bullseye
# group: Objects
# subgroup: clothing
1F452 ; fully-qualified     # 👒 E0.6 woman\u2019s hat
26D1 FE0F ; fully-qualified # ⛑️ E0.7 rescue worker\u2019s helmet
26D1  ; unqualified         # ⛑ E0.7 rescue worker\u2019s helmet unqualified
# subgroup: light & video
1F4F7 ; fully-qualified     # 📷 E0.6 camera
# group: Flags
# subgroup: flag
1F3C1 ; fully-qualified     # 🏁 E0.6 chequered flag
"""

SETS = {
    "first": {
        "width": 32,
        "height": 24,
        "icons": {
            "fox-face": {"body": "<g>fox</g>", "height": 32, "top": -1},
            "panda": {"body": "<g>panda</g>"},
            "bullseye": {"body": "<g>target</g>"},
            "womans-hat": {"body": "<g>hat</g>"},
            "camera": {"body": "<g>camera</g>"},
        },
        "aliases": {
            "fox": {"parent": "red-fox", "top": 2},
            "red-fox": {"parent": "fox-face", "top": 1, "left": 3},
            "there": {"parent": "back"},
            "back": {"parent": "there"},
            "left-fox": {"parent": "fox", "hFlip": True},
        },
    },
    "second": {
        "icons": {
            "fox": {"body": "<g>other fox</g>"},
            "panda": {"body": "<g>other panda</g>", "width": 8.5},
            "direct-hit": {"body": "<g>other target</g>"},
            "womans-hat": {"body": "<g>other hat</g>"},
        }
    },
}
VERSIONS = {"second": "2.0", "first": "1.0"}


@pytest.fixture
def packages(tmp_path):
    (tmp_path / "emoji-test.txt").write_text(EMOJI_TEST, encoding="utf-8")
    for maker, icons in SETS.items():
        info = {
            "name": maker.title(),
            "author": {"name": "One", "url": f"https://example.org/{maker}"},
            "license": {"title": "MIT", "spdx": "MIT", "url": "https://example.org/license"},
        }
        package = {"name": f"@icons/{maker}", "version": VERSIONS[maker]}
        (tmp_path / maker).mkdir()
        for name, content in (("icons", icons), ("info", info), ("package", package)):
            (tmp_path / maker / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def make(packages, *names, **options):
    options = {"versions": VERSIONS} | options
    return script.make_subset(packages, packages / "emoji-test.txt", names=names, **options)


def test_a_small_subset(packages):
    found = make(packages, "target", "fox", "sun hat", "panda")
    assert found["sets"]["second"] == {
        "title": "Second", "author": "One", "license": "MIT",
        "license_url": "https://example.org/license", "package": "@icons/second",
        "version": "2.0", "url": "https://example.org/second",
    }  # fmt: skip
    fox, panda, hat, target = found["things"]
    assert [fox["name"], panda["name"], hat["name"]] == ["fox", "panda", "sun hat"]
    assert [of["group"] for of in found["things"]] == ["animal", "animal", "clothing", "sport"]
    assert fox["unicode"] == {"group": "Animals & Nature", "subgroup": "animal-mammal"}
    # through two aliases, of which the outer says most; what none says is the set's
    assert fox["drawings"]["first"] == {"body": "<g>fox</g>", "box": [3, 2, 32, 32]}
    assert panda["drawings"]["first"]["box"] == [0, 0, 32, 24]
    # a set that says nothing of it has the format's own box
    assert fox["drawings"]["second"] == {"body": "<g>other fox</g>", "box": [0, 0, 16, 16]}
    assert panda["drawings"]["second"]["box"] == [0, 0, 8.5, 16]
    # Unicode's own name, and a former one
    assert target["drawings"]["first"]["body"] == "<g>target</g>"
    assert target["drawings"]["second"]["body"] == "<g>other target</g>"
    assert hat["drawings"]["second"]["body"] == "<g>other hat</g>"


def test_the_same_bytes(packages):
    one = script.compress(make(packages, "fox", "panda"))
    other = script.compress(make(packages, "panda", "fox", versions=dict(sorted(VERSIONS.items()))))
    assert one == other
    assert one[3] == 0, "no name in the header"
    assert one[4:8] == bytes(4), "no time in the header"
    assert json.loads(gzip.decompress(one)) == make(packages, "fox", "panda")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("unicorn",), "'unicorn' must have a name in Unicode's file, got 'unicorn'"),
        (("camera",), "'camera' must be in a subgroup of GROUPS, got Objects / light & video"),
        (("spouting whale",), r"must be in every set, got none in first by \['spouting-whale'\]"),
    ],
)
def test_things_that_are_not_there(names, told, packages):
    with pytest.raises(ValueError, match=told):
        make(packages, *names)


def test_other_packages(packages):
    with pytest.raises(ValueError, match=r"@icons/first must be version 3, got 1.0; npm pack"):
        make(packages, "fox", versions=VERSIONS | {"first": "3"})
    with pytest.raises(FileNotFoundError, match="third"):
        make(packages, "fox", versions=VERSIONS | {"third": "1.0"})
    with pytest.raises(ValueError, match="must end at an icon, got there -> back -> there"):
        script.resolve(SETS["first"], "there")
    with pytest.raises(ValueError, match=r"as it is, got 'left-fox' with hFlip"):
        script.resolve(SETS["first"], "left-fox")
    assert script.resolve(SETS["first"], "none") is None


def test_unicode_groups(packages):
    groups = script.unicode_groups(packages / "emoji-test.txt")
    assert groups["spouting whale"] == ("Animals & Nature", "animal-marine")
    assert len(groups) == 8
    (packages / "empty.txt").write_text("# group: Flags\n")
    with pytest.raises(ValueError, match=r"empty.txt must be Unicode's emoji-test.txt"):
        script.unicode_groups(packages / "empty.txt")


def test_command(packages, monkeypatch, capsys):
    small = make(packages, "fox", "panda")
    monkeypatch.setattr(script, "make_subset", lambda packages, emoji_test: small)
    output = packages / "out.gz"
    script.main([str(packages), "--output", str(output)])
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    assert re.fullmatch(rf"2 things, \d+ bytes, sha256 {digest}\n", capsys.readouterr().out)
    with pytest.raises(SystemExit, match="0"):
        script.main(["--help"])
    assert "npm pack @iconify-json/noto@1.2.9" in capsys.readouterr().out


def test_command_says_what_is_wrong(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main([str(tmp_path), "--output", str(tmp_path / "out.gz")])
    assert "package.json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
