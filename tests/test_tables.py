"""docs/tables.md names every column of every table, and no other."""

import csv
import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sharpjax.detection.calibration import Calibration, Threshold
from sharpjax.detection.summary import Judged
from sharpjax.mitigation import comparison as mitigation
from sharpjax.prompts import Case
from sharpjax.report import audit, comparison, detect, detection, dimension, mitigate
from sharpjax.runs.spectrum import write_table
from sharpjax.runs.truth_of_conditions import Truth, write_truths
from sharpjax.runs.truth_of_drawings import DrawingTruth
from sharpjax.runs.truth_of_prompts import PromptTruth

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tables.md").read_text()
NAME, OTHER = "score_difference@981", "hessian_score@981"
NOT_WRITTEN = {  # what is read: of users, of the package, of a ground truth elsewhere
    "labels.csv", "metadata.csv", "captions.csv", "drawings_captions.csv",
}  # fmt: skip


def documented(title):
    """The columns under a heading of the page, in order."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.M)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def columns(path):
    with open(path, newline="") as file:
        return next(csv.reader(file))


@pytest.mark.quick
def test_every_table_has_a_section():
    written = set()
    for path in (ROOT / "sharpjax").rglob("*.py"):
        written |= set(re.findall(r"[\"/`]([a-z_]+\.csv)\b", path.read_text()))
    titles = {title.split("`")[1] for title in re.findall(r"^## (`.*)$", PAGE, re.M)}
    assert titles == written - NOT_WRITTEN


@pytest.mark.quick
def test_detection(tmp_path):
    limits = {name: Threshold(4.5, 3.5, 5.25, 1, 0.95, 80) for name in (NAME, OTHER)}
    values = {name: [1.0, 2.0] for name in limits}
    record = {"condition": "c", "network": values, "oracle": values}
    cases = [Case(f"c{i}", ("clean", "memorized")[i % 2], "x", i + 1, 0.5) for i in range(12)]
    lost = Case("lost")
    records = [record | {"condition": case.condition} for case in cases]
    records += [{"condition": "lost", "failed": "not finite"}]
    known = Calibration("abc", {}, {}, limits)
    one = Judged.of(records, [*cases, lost], known)
    rule = {"column": NAME, "threshold": 4.5, "noise": 1.0, "most": 4, "error": 0.01}
    found = detection.Detection(one, thresholds=known, decide_by=NAME, until_sure=rule)
    detect.write(tmp_path, found)
    general = {
        re.sub(r"[a-z_]+@\d+", "NAME", name): None for name in columns(tmp_path / "results.csv")
    }
    assert sorted(general) == sorted(documented("`results.csv`"))
    for name in ("summary.csv", "comparisons.csv", "verdicts.csv"):
        assert sorted(columns(tmp_path / name)) == sorted(documented(f"`{name}`"))


@pytest.mark.quick
def test_truths(tmp_path):
    for title, truth in (
        ("`truth.csv` of prompts", PromptTruth), ("`truth.csv` of the drawings", DrawingTruth),
    ):  # fmt: skip
        assert sorted(documented(title)) == sorted(f.name for f in dataclasses.fields(truth))
    path = write_truths(tmp_path, [Truth("0 x1", 1, 0.9, 32, 30, 0.8, 0.99, 0.97)])
    assert sorted(columns(path)) == sorted(documented(f"`{path.name}`"))


@pytest.mark.quick
def test_mitigation(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def judge(images, prompts):
        one = np.ones(len(images))
        return SimpleNamespace(
            own=one, other=one, nearest=["cat"], copied=one > 0, turned=one > 1, fidelity=one,
            maker=None,
        )  # fmt: skip

    record = {
        "method": "none", "strength": 0.0, "index": 0, "prompt": "cat", "images": ["a.png", None],
        "evaluations": [1.0, 1.0], "seconds": 1.0, "score_difference": [1.0, 1.0],
    }  # fmt: skip
    shown, refused = mitigate.judged_rows(tmp_path, [record], judge)
    assert shown.keys() == refused.keys()
    # kind and part are of a comparison
    assert sorted([*shown, "kind", "part"]) == sorted(documented("`images.csv`"))
    rows = [
        shown | {"method": method, "strength": strength, "index": index, "image": image}
        for method, strength in (("none", 0.0), ("sail", 0.5), ("sail", 1.0), ("perturb", 0.5))
        for index in range(6)
        for image in range(2)
    ]
    kinds = {"all": mitigation.Kind((0, 1), (2, 3, 4))}
    compared = mitigation.compare(rows, kinds=kinds, clean=(5,))
    comparison.write(tmp_path, compared)
    for name in ("curves.csv", "standings.csv"):
        assert sorted(columns(tmp_path / name)) == sorted(documented(f"`{name}`"))


@pytest.mark.quick
def test_spectra_dimensions_audits(tmp_path):
    ends = {"values": [-1.0, 0.5]}
    record = {
        "condition": "cat", "noise": 0, "t": 981, "sigma": 1.0, "exact": [-1.0, 0.5],
        "asymmetry": 0.0, "lanczos": ends, "arnoldi": ends, "oracle": None,
    }  # fmt: skip
    write_table(tmp_path / "spectrum.csv", [record])
    assert sorted(columns(tmp_path / "spectrum.csv")) == sorted(documented("`spectrum.csv`"))
    image = {"condition": "a.png", "coordinates": 64, "times": [10], "chosen": 10}
    for name in ("lhsd", "flipd", "transition_mass"):
        image |= {name: [1.0], f"{name}_error": [0.1]}
    (row,) = dimension.rows_of([image])
    assert sorted(row) == sorted(documented("`dimension.csv`"))
    rng = np.random.default_rng(0)
    records = [
        {"checkpoint": 0, "part": part, "index": i, "losses": rng.random(3), "ratio": rng.random()}
        for part in ("suspected", "held-out", "samples")
        for i in range(12)
    ]
    (row,) = audit.rows_of(records, ["a"], [10])
    assert sorted(row) == sorted(documented("`audit.csv`"))
