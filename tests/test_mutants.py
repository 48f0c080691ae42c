"""What benchmarks/mutants.py draws and how it judges, on the package itself and on a small one."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SOURCE = '''"""1 + 1 in a docstring."""
import functools

OUTSIDE = 3 + 4


@functools.lru_cache(maxsize=8)
def scale(x: "1 + 2", *, factor: int = 2) -> float:
    """Not 5 * 6 either."""
    if x is None:
        raise ValueError("no " + "number")
    check(x)
    first, last = min(x), (
        x[-1]
    )
    text: dict[0, 1] = f"{1 + 1}"
    return (sum(x) *
            factor)


class Box:
    def holds(self, x, é=0.5):
        def inner(y):
            return not y and é < y
        return inner(x) or sorted(x, reverse=True)[0] <= 1
'''


@pytest.fixture
def mutations(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("mutations")


@pytest.fixture
def mutants(mutations):
    return importlib.import_module("mutants")


def test_every_kind_of_change(mutations):
    found = mutations.Finder("a.py", SOURCE).found
    changes = {
        name: [(m.kind, *(" ".join(t.split()) for t in m.change())) for m in each]
        for name, each in found.items()
    }
    assert sorted(changes["scale"]) == sorted([
        ("keyword", "maxsize=8", ""), ("constant", "8", "9"), ("constant", "2", "3"),
        ("condition", "x is None", "not (x is None)"), ("statement", "check(x)", "pass"),
        ("call", "min", "max"), ("sign", "-", "+"), ("constant", "1", "0"),
        ("return", "sum(x) * factor", "-(sum(x) * factor)"),
        ("return", "sum(x) * factor", "(sum(x) )"), ("arithmetic", "*", "/"),
    ])  # fmt: skip
    assert sorted(changes["Box.holds.inner"]) == [
        ("comparison", "<", "<="), ("logic", "and", "or"), ("not", "not", ""),
    ]  # fmt: skip
    assert sorted(changes["Box.holds"]) == [
        ("comparison", "<=", "<"), ("constant", "0", "1"), ("constant", "0.5", "0.25"),
        ("constant", "0.5", "1.0"), ("constant", "1", "0"), ("constant", "True", "False"),
        ("keyword", "reverse=True", ""), ("logic", "or", "and"),
    ]  # fmt: skip
    lines = SOURCE.count("\n")
    for mutant in [m for each in found.values() for m in each]:
        changed = mutant.apply(SOURCE)
        assert mutations.is_change(mutant, SOURCE)
        assert changed.count("\n") == lines
        same = [a == b for a, b in zip(SOURCE.split("\n"), changed.split("\n"), strict=True)]
        assert same.index(False) >= mutant.line - 1
        assert SOURCE.split("\n")[mutant.line - 1 :][0].count(mutant.before.split("\n")[0])
    with pytest.raises(ValueError, match="changed since"):
        mutant.apply(SOURCE.replace("Box", "Case"))


@pytest.mark.slow
def test_the_draw_is_reproducible_and_of_the_package(mutations, mutants):
    drawn = mutations.draw(ROOT, mutants.PACKAGES, 60, 0)
    assert drawn == mutations.draw(ROOT, mutants.PACKAGES, 60, 0)
    assert drawn[:10] != mutations.draw(ROOT, mutants.PACKAGES, 10, 1)
    assert len(set(drawn)) == 60
    assert {m.file.rpartition("/")[0] for m in drawn} == set(mutants.PACKAGES)
    for mutant in drawn:
        source = (ROOT / mutant.file).read_text()
        assert ast.dump(ast.parse(mutant.apply(source))) != ast.dump(ast.parse(source))


@pytest.mark.slow
def test_users_of_a_module(mutations):
    users = importlib.import_module("users").Users(ROOT, "sharpjax")

    def files(file, function, **options):
        mutant = mutations.Mutant(file, function, 1, "", 0, 0, "", "")
        return [path.name for path in users(mutant, **options)]

    assert files("sharpjax/detection/statistics.py", "tiled_l2")[0] == "test_statistics.py"
    # through `sharpjax.curvature`, which exports it
    assert "test_at_points.py" in files("sharpjax/curvature/traces.py", "trace")
    # by a fixture of conftest.py, after those that import it themselves
    found = files("sharpjax/report/detect.py", "write")
    assert found.index("test_page.py") > 0
    # which no test imports, but sharpjax.cli does so through its commands
    assert "test_cli.py" in files("sharpjax/report/convert.py", "conversion_table")
    few, many = (
        files("sharpjax/mitigation/tradeoff.py", "paired", everything=e) for e in (False, True)
    )
    assert few == many[: len(few)] == ["test_tradeoff.py"]
    assert len(many) > 1


@pytest.fixture
def small_package(tmp_path):
    """A function and its test, which sees only one of the two numbers."""
    root = tmp_path / "repository"
    files = {
        "small/__init__.py": "from small.inside import wide\n",
        "small/inside.py": "def wide(x):\n    a, b = x + 1, x + 2\n    while a > 9:\n"
        "        a = a - 1\n    return a, b\n",
        "tests/test_wide.py": "import small\n\n\ndef test_wide():\n"
        "    assert small.wide(1)[0] == 2\n    assert small.wide(12)[0] == 9\n",
        "pyproject.toml": '[tool.pytest.ini_options]\nmarkers = ["slow"]\n',
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.slow
def test_verdicts(mutations, mutants, small_package, tmp_path):
    source = (small_package / "small" / "inside.py").read_text()
    found = mutations.Finder("small/inside.py", source).found["wide"]
    (tmp_path / "work").mkdir()
    judge = mutants.Judge(small_package, tmp_path / "work", tmp_path, package="small")

    def verdict(line, before, after, place=0):
        those = [m for m in found if (m.line, *m.change()) == (line, before, after)]
        return judge(those[place])

    killed = verdict(2, "+", "-", 0)
    assert (killed["verdict"], killed["by"]) == ("killed", "tests/test_wide.py::test_wide")
    survived = verdict(2, "+", "-", 1)
    assert (survived["verdict"], survived["files"]) == ("survived", ["tests/test_wide.py"])
    judge.timeout = 3.0
    for unmutated, expected in ((1.4, "timeout"), (1.6, "not decided")):
        judge.times["tests/test_wide.py"] = unmutated
        assert verdict(4, "-", "+")["verdict"] == expected  # the loop never ends
    assert (small_package / "small" / "inside.py").read_text() == source
    assert (judge.copy / "small" / "inside.py").read_text() == source

    lines = list(mutants.count([{**killed, "number": 0, "mutant": vars(found[0])},
                                {**survived, "number": 1, "mutant": vars(found[1])}]))  # fmt: skip
    assert lines[0].startswith("killed 1 of 2, 50% (95% Wilson interval 9% to 91%); 0 of these")
    assert lines[1].startswith("survived:   1 small/inside.py:2 wide: ")
