"""The recipes of docs/contributing.md, applied to a copy of the package and tried there."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "contributing.md").read_text()
RECIPES = ("A statistic", "An estimator", "A network")
MOST_LINES = 49
BLOCK = re.compile(r"^```(python|diff)\n# (append to )?(\S+\.py)\n(.*?)^```$", re.M | re.S)


def blocks(title):
    """`(kind, is appended, file, code)` of every block of a section."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = [(m[1], bool(m[2]), m[3], m[4]) for m in BLOCK.finditer(section)]
    assert len(found) == section.count("```") // 2, "a block does not say which file it is for"
    return found


def code_lines(code):
    """Lines that hold code: neither empty, nor comments, nor docstrings."""
    tree = ast.parse(code)
    strings = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    left_out = {i for node in strings for i in range(node.lineno, node.end_lineno + 1)}
    lines = enumerate(code.splitlines(), 1)
    return [
        t for i, t in lines if t.strip() and not t.strip().startswith("#") and i not in left_out
    ]


def inserted(text, change):
    """`text` with the lines marked by + after the one that stands before them."""
    context, *rest = change.splitlines()
    assert context.startswith(" ")
    assert all(line.startswith("+") for line in rest)
    lines = text.splitlines()
    assert lines.count(context[1:]) == 1, f"{context!r} should be one line of the file"
    place = lines.index(context[1:]) + 1
    return "\n".join([*lines[:place], *(line[1:] for line in rest), *lines[place:]]) + "\n"


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_is_short(title):
    count = 0
    for kind, _, file, code in blocks(title):
        if not file.startswith("tests/"):
            added = code.count("\n+") if kind == "diff" else len(code_lines(code))
            assert added
            count += added
    assert 0 < count <= MOST_LINES


@pytest.mark.slow  # a copy of the package, which compiles its programs anew
def test_the_recipes_work(tmp_path):
    shutil.copytree(
        ROOT / "sharpjax", tmp_path / "sharpjax",
        ignore=shutil.ignore_patterns("__pycache__", "drawings"),
    )  # fmt: skip
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    for title in RECIPES:
        for kind, is_appended, file, code in blocks(title):
            path = tmp_path / file
            if kind == "diff":
                path.write_text(inserted(path.read_text(), code))
            elif is_appended:
                path.write_text(f"{path.read_text()}\n\n{code}")
            else:
                assert not path.exists()
                path.write_text(code)
    (tmp_path / "tests" / "test_where.py").write_text(
        "from pathlib import Path\n\nimport sharpjax\n\n\ndef test_the_copy_is_tried():\n"
        "    assert Path(sharpjax.__file__).parent.parent.samefile(Path.cwd())\n"
    )

    def run(*command):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("ruff", "check", "--no-cache", ".")
    run("ruff", "format", "--no-cache", "--check", ".")
    assert "5 passed" in run(
        "pytest", "-n0", "-q", "--durations=5", "-p", "no:cacheprovider", "tests"
    )
