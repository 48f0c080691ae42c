"""What races sharpjax computes the same: PyTorch's ways against a closed form."""

import importlib
import json
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def twin(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    yield importlib.import_module("torch_twin")
    torch.set_num_threads(threads)


def test_opponents_compute_the_statistic(twin):
    """Of s = -c x^3 against c = e: |H_D s_D| = 3 (c - e)^2 |x^5|."""

    def score(x, c):
        return -c[:, None] * x**3

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    e, c = torch.tensor(0.5).double(), torch.tensor([1.0, 2.0, 4.0]).double()
    exact = 3 * (c - e)[:, None] ** 2 * (x**5).norm(dim=1)
    torch.testing.assert_close(twin.published(score, x, e, c), exact)
    torch.testing.assert_close(twin.by_tangents_in_batches(score, x, e, c, size=4), exact)
    passes = twin.in_passes(score, 4)
    # the step is the root mean square of an entry's move: errors of its square, and of itself
    for sides, rtol in ((2, 1e-4), (1, 2e-2)):
        found = twin.by_difference(passes, x, e, c, step=1e-3, sides=sides)
        torch.testing.assert_close(found, exact, rtol=rtol, atol=0)
        assert not torch.equal(found, exact)


@pytest.mark.slow
def test_the_race_of_prompts(tmp_path):
    """On one core: threads of PyTorch spin, and two busy cores would take minutes."""
    path = tmp_path / "prompts.json"
    command = [
        sys.executable, "prompts.py", "--prompts", "2", "--noises", "1", "--rounds", "1",
        "--no-compile", "--json", str(path),
    ]  # fmt: skip
    run = subprocess.run(
        ["taskset", "-c", "0", *command], capture_output=True, text=True, cwd=BENCHMARKS,
        timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    ways = json.loads(path.read_text())["ways"]
    off = {name: way["largest_error"] for name, way in ways.items()}
    exact = ("PyTorch, the public code's way", "PyTorch, best tangents")
    assert all(off[name] < 1e-4 for name in exact)
    assert all(1e-6 < off[f"{who}, central difference"] < 1e-2 for who in ("sharpjax", "PyTorch"))
    assert all(f"\n{name} " in run.stdout for name in ways)


def test_the_best_of_five_by_hand(monkeypatch):
    """Over all choices of five of a caption's images, one by one."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    screen = importlib.import_module("drawings_screen")
    rng = np.random.default_rng(0)
    values, outcome = rng.normal(size=8), rng.random(8) < 0.5
    naive = [outcome[max(five, key=lambda i: values[i])] for five in combinations(range(8), 5)]
    assert screen.ranked(values, outcome) == pytest.approx(np.mean(naive))
    positive = rng.random(8) < 0.5
    pairs = [(a > b) for a in values[positive] for b in values[~positive]]
    assert screen.auc(values, positive) == pytest.approx(np.mean(pairs))
    assert screen.auc(values, np.ones(8, bool)) is None


def test_a_row_of_noises_is_what_calibrate_and_detect_give(monkeypatch):
    """Threshold and values of the first noises alone, and a rule that stops where it is sure."""
    from sharpjax.detection.calibration import threshold
    from sharpjax.detection.sequential import UntilSure

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    noises = importlib.import_module("noises")
    rng = np.random.default_rng(0)
    column = "score_difference@981"
    records = [
        {"condition": f"{i}", "network": {column: rng.normal(i / 40, 0.3, 16).tolist()}}
        for i in range(120)
    ]
    known, judged = records[:80], records[80:]
    limit, values = noises.fitted(known, judged, column, range(4))
    first = np.array([r["network"][column][:4] for r in records])
    assert limit.value == threshold(first[:80].mean(axis=1), direction=1).value
    assert np.array_equal(values, first[80:])
    rule = UntilSure.of(column, limit, most=4)
    means, taken = noises.stopped(rule, values)
    assert 1 < taken.mean() < 4
    for row, mean, count in zip(values, means, taken, strict=True):
        assert mean == row[:count].mean()
        assert rule.sure(row[:count])
        assert not any(rule.sure(row[:n]) for n in range(1, count))
    called = [noises.beyond(*(noises.fitted(known, judged, column, range(s, s + 8))[0],
              np.array([np.mean(r["network"][column][s : s + 8]) for r in judged])))
              for s in (0, 8)]  # fmt: skip
    assert noises.again(known, judged, column, 8) == f"{np.mean(called[0] == called[1]):.3f}"


def test_the_table_of_the_docs_is_that_of_the_published_rows(monkeypatch, capsys):
    """Copies, right thing, and right thing without a copy, of every method and kind."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["mitigation_table.py"])
    importlib.import_module("mitigation_table").main()
    found, kind = {}, ""
    for line in capsys.readouterr().out.splitlines():
        if match := re.match(r"(\S.*): (\d+) prompts judge", line):
            kind = f"{match[1]} ({match[2]})"
        elif match := re.match(r"(\w+) +([\d.]+)((?:  [\d.]+ \[[\d., ]+\] *){3})", line):
            three = [f"{float(x):.3f}" for x in re.findall(r"([\d.]+) \[", match[3])]
            found[match[1], kind] = match[2], three
    text = (BENCHMARKS.parent / "docs/mitigation.md").read_text()
    head, _, *rows = re.search(r"(\| method \| mixed q = \.5.*?)\n\n", text, re.DOTALL)[1].split(
        "\n"
    )
    kinds = [re.sub(r"(mixed )?q = \.", "mixed q=0.", name) for name in head.split(" | ")[1:]]
    seen = 0
    for row in rows:
        method, *cells = row.strip("| ").split(" | ")
        for name, cell in zip(kinds, cells, strict=True):
            strength, _, told = cell.strip(" |").rpartition(": ")
            own, exact = found[method.strip("`"), name.strip(" |")]
            assert strength in ("", own)
            for shown, value in zip(told.split(", "), exact, strict=True):
                assert abs(float(shown) - float(value)) <= 0.0051, (row, name)
            seen += 1
    assert seen == len(found) == 13 * 6
