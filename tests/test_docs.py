"""The docs: links lead somewhere, quoted commands exist, the site builds and asks no other host."""

import html.parser
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import sharpjax
from sharpjax.cli import app
from sharpjax.detection import STATISTICS

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CARDS = sorted((ROOT / "sharpjax" / "zoo").glob("*/README.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = typer.main.get_command(app)


def prose(text):
    """Without code, in which brackets and parentheses are no links."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def slug(title):
    """The anchor of a heading, as GitHub and MkDocs make it."""
    plain = re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower()
    return re.sub(r"\s", "-", plain)


def anchors(path):
    text = FENCE.sub("", path.read_text())
    return {slug(title) for title in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_images_lead_somewhere(page):
    wrong = []
    for target in LINK.findall(prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        generated = anchor.startswith("sharpjax.")  # of the API reference; the site's build sees it
        if not path.exists() or (anchor and not generated and anchor not in anchors(path)):
            wrong.append(target)
    assert not wrong


def test_every_page_is_in_the_navigation():
    """Only what the strict build would warn of, without building."""
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"[\w/]+\.md", text))
    cards = {f"zoo/{card.parent.name}/README.md" for card in CARDS}
    assert listed == {name.removeprefix("docs/") for name in NAMES[1:]} | cards


def commands(text):
    """What is quoted: lines of code blocks, continued ones joined, and code in sentences."""
    text = re.sub(r" *\\\n\s*", " ", text)
    fenced = [line for block in FENCE.finditer(text) for line in block[0].splitlines()]
    indented = [line for line in text.splitlines() if line.startswith("    ")]
    shown = [part for line in [*fenced, *indented] for part in re.split(r"\s&&\s", line)]
    block = [line.strip() for line in shown if re.match(r" *sharpjax [a-z-]+( |$)", line)]
    inline = re.findall(r"`(sharpjax [^`]+)`", FENCE.sub("", text))
    return dict.fromkeys([*block, *inline])


def complaint(line):
    """Why a quoted command is none, or None."""
    words = shlex.split(line, comments=True)[1:]
    group, path = COMMAND, "sharpjax"
    while isinstance(group, typer.core.TyperGroup):
        if not words:
            return None
        name = words.pop(0)
        if name.startswith("-"):
            return None if name in {*names_of(group), "--help"} else f"{path} has no option {name}"
        if name not in group.commands:
            return f"{path} has no command {name}"
        group, path = group.commands[name], f"{path} {name}"
    options = names_of(group) | {"--help": False}
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            continue
        if word not in options:
            return f"{path} has no option {word}"
        if options[word] and words and not words[0].startswith("--"):
            words.pop(0)
    return None


def names_of(command):
    """Names of options, and whether each takes a value."""
    return {
        name: not getattr(option, "is_flag", False)
        for option in command.params
        for name in (*option.opts, *option.secondary_opts)
        if name.startswith("-")
    }


@pytest.mark.parametrize("page", [*PAGES, *CARDS], ids=[*NAMES, *(c.parent.name for c in CARDS)])
def test_quoted_commands_exist(page):
    wrong = [(line, complaint(line)) for line in commands(page.read_text())]
    assert not [one for one in wrong if one[1]]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_quoted_scripts_and_tests_exist(page):
    quoted = re.findall(r"\b(?:examples|benchmarks|tests)/\w+\.py", page.read_text())
    if page.name == "contributing.md":  # whose recipes make some
        quoted = [name for name in quoted if f"# {name}" not in page.read_text()]
    assert not [name for name in quoted if not (ROOT / name).is_file()]


def test_the_test_of_commands_itself():
    shown = commands("```sh\npip install . && sharpjax detect --model m \\\n  --all  # long\n```\n")
    assert list(shown) == ["sharpjax detect --model m --all  # long"]
    assert list(commands("see `sharpjax verify`.")) == ["sharpjax verify"]
    assert complaint("sharpjax detect --model m --all  # long") is None
    assert complaint("sharpjax train mnist --steps 3") is None
    assert "no option --modle" in complaint("sharpjax detect --modle m")
    assert "no command detekt" in complaint("sharpjax detekt")
    assert complaint("sharpjax train") is None
    assert complaint("sharpjax --version") is None
    assert "no option --versoin" in complaint("sharpjax --versoin")
    assert "no command x" in complaint("sharpjax train x")
    found = sum(len(commands(page.read_text())) for page in PAGES)
    assert found > 50, "hardly any command was found: the test is broken"


def test_every_command_and_statistic_has_its_place():
    """A command in the README's table, a statistic in its section."""
    readme = (ROOT / "README.md").read_text()
    assert all(f"| `sharpjax {name}` |" in readme for name in COMMAND.commands)
    headings = re.findall(r"^### `(\w+)`$", (ROOT / "docs" / "statistics.md").read_text(), re.M)
    assert sorted(headings) == sorted(STATISTICS)


class Requests(html.parser.HTMLParser):
    """Addresses that a browser asks for by itself when it shows a page, and anchors."""

    def __init__(self):
        super().__init__()
        self.asked, self.anchors = [], set()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "embed", "video", "audio"):
            self.asked += [values.get("src")]
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.asked += [values.get("href")]
        self.anchors |= {values.get("id")}


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    pages = {}
    for path in (tmp_path / "site").rglob("*.html"):
        pages[str(path.relative_to(tmp_path / "site"))] = page = Requests()
        text = path.read_text()
        page.feed(text)
        outside = [a for a in page.asked if a and re.match(r"(?:[a-z]+:)?//", a)]
        assert not outside, path
        assert not re.search(r"url\(['\"]?(?:https?:)?//", text), path
        if path.parent.name == "api":
            assert not re.search(":(math|func|class|meth):", text), f"{path}: markup was not read"
    assert {name.removeprefix("docs/").removesuffix(".md") + ".html" for name in NAMES[1:]} <= {
        *pages
    }

    reference = set().union(*(p.anchors for name, p in pages.items() if name.startswith("api/")))
    packages = (
        "checkpoints", "curvature", "detection", "identities", "mitigation", "networks", "runs",
    )  # fmt: skip
    public = {
        f"{name}.{one}" for name in packages for one in getattr(sharpjax, name).__all__
    } | {one for one in sharpjax.__all__ if one not in (*packages, "models")}  # fmt: skip
    # a function that is called as its module stands under the module's name
    shown = {a.removeprefix("sharpjax.") for a in reference if a}
    shown |= {f"{a.rpartition('.')[0]}" for a in shown if a.split(".")[-2:-1] == a.split(".")[-1:]}
    shown |= {a.removeprefix("densities.") for a in shown}
    assert not public - shown


def test_the_changes_name_every_option():
    """Of every command those kept and new are, together, those that there are."""
    rows = {}
    for line in (ROOT / "docs/changes.md").read_text().splitlines():
        cells = line.strip("|").split(" | ")
        if len(cells) == 4 and (name := cells[0].strip(" `")) not in rows:
            rows[name] = set(re.findall(r"`([^`]+)`", cells[1] + cells[3]))
    for name, command in COMMAND.commands.items():
        if hasattr(command, "commands"):
            continue
        there = set()
        for parameter in command.params:
            options = [o for o in (*parameter.opts, *parameter.secondary_opts) if o[:2] == "--"]
            there |= set(options) or {parameter.name}
        assert rows[name] == there - {"--help"}, name
