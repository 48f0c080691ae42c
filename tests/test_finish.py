"""Runs on models in memory, from thresholds to pages, in Python alone."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import sharpjax as sj
from sharpjax.conditional import digest
from sharpjax.detection.calibration import threshold
from sharpjax.rundir.files import append_lines
from sharpjax.rundir.run import Run

SETTINGS = sj.detection.DetectSettings(statistics=("score_difference",), num_noises=2)


def detect(model, names, folder, settings=SETTINGS):
    return sj.runs.detect(model, names, folder, settings, batch_size=2)


def test_all_the_way(tiny_model, tmp_path):
    """Thresholds, verdicts and a page of each are what the parts say by themselves."""
    names = list(tiny_model.conditions)
    records = detect(tiny_model, names[:2], tmp_path / "clean")
    thresholds = sj.report.finish_calibration(tmp_path / "clean", quantile=0.5)
    limit = thresholds.thresholds["score_difference@981"]
    means = [np.mean(r["network"]["score_difference@981"]) for r in records]
    assert limit.value == max(means)  # of two the rank is 2
    saved = sj.detection.Calibration.load(tmp_path / "clean" / "calibration.json")
    assert saved.thresholds == thresholds.thresholds

    detect(tiny_model, names, tmp_path / "d")
    case = sj.detection.Case(names[0], "clean")
    found = sj.report.finish_detection(tmp_path / "d", [case], thresholds=thresholds)
    assert [row["condition"] for row in found.rows] == names
    assert [row["known"] for row in found.rows] == ["clean"] + [None] * (len(names) - 1)
    for row in found.rows:
        beyond = row["network score_difference@981"] > limit.value
        assert row["verdict"].startswith("memorized" if beyond else "clean")
    about = json.loads((tmp_path / "d" / "about.json").read_text())
    assert len(about["sessions"]) == 2  # computing, and this
    assert ">Verdicts</h2>" in (tmp_path / "d" / "report.html").read_text()
    assert (tmp_path / "d" / "verdicts.csv").is_file()
    plain = sj.report.finish_detection(tmp_path / "d")
    assert not any("verdict" in row for row in plain.rows)
    for left in ("thresholds.json", "verdicts.csv"):
        assert not (tmp_path / "d" / left).exists()
    page = (tmp_path / "d" / "report.html").read_text()
    assert "No verdicts: no thresholds were given." in page


def mitigated(folder, methods):
    """A run of two prompts, their images on disk; `methods` of the second."""
    run = Run.claim(folder, "mitigate", {"model": "abc", "num_images": 1})
    run.make_folder("images")
    for index, prompt, chosen in ((0, "dog", ["none"]), (1, "cat", ["none", *methods])):
        for method in chosen:
            name = f"images/{method}-{index}.png"
            Image.new("RGB", (8, 8), (40 * index, 90, 20)).save(folder / name)
            record = {
                "method": method, "strength": 2.0 * (method != "none"), "index": index,
                "prompt": prompt, "images": [name], "evaluations": [4], "seconds": 1.0,
                "score_difference": [1.0], "details": [],
            }  # fmt: skip
            append_lines(folder / "results.jsonl", [record])


def test_a_page_of_mitigation(tmp_path):
    mitigated(tmp_path / "m", ["lower_guidance"])
    column = "score_difference@981"
    limit = threshold(np.arange(100.0), direction=1)
    thresholds = sj.detection.Calibration("abc", {}, {}, {column: limit})
    records = [
        {"condition": name, "network": {column: [v]}} for name, v in (("cat", 500.0), ("a", 1.0))
    ]
    cases = [sj.detection.Case(record["condition"]) for record in records]
    found = sj.report.Detection.of(records, cases, thresholds=thresholds, decide_by=column)
    first, second = sj.report.finish_mitigation(tmp_path / "m", detection=found)
    assert [one["prompt"] for one in (first, second)] == ["dog", "cat"]
    assert [one["verdict"] for one in (first, second)] == ["not known: not detected", "memorized"]
    assert [one["treated"] for one in (first, second)] == [False, True]
    assert second["images_after"] == ["images/lower_guidance-1.png"]
    page = (tmp_path / "m" / "report.html").read_text()
    assert "Mitigation by lower_guidance at 2" in page
    assert "1 of 2 prompts are called memorized" in page
    with pytest.raises(ValueError, match="holds a run of kind 'mitigate', not 'detect'"):
        sj.report.finish_detection(tmp_path / "m")
    for number, methods in enumerate(([], ["sail", "perturb"])):
        mitigated(tmp_path / f"{number}", methods)
        with pytest.raises(ValueError, match="of one method at one strength"):
            sj.report.finish_mitigation(tmp_path / f"{number}")


def test_what_cannot_be_finished(tiny_model, tmp_path):
    names = list(tiny_model.conditions)[:2]
    detect(tiny_model, names, tmp_path / "d")
    with pytest.raises(ValueError, match=r"promises that 0\.95 of new ones"):
        sj.report.finish_calibration(tmp_path / "d")
    thresholds = sj.report.finish_calibration(tmp_path / "d", quantile=0.5)
    with pytest.raises(ValueError, match="verdicts cannot go by hessian_score"):
        sj.report.finish_detection(tmp_path / "d", thresholds=thresholds, decide_by="hessian_score")
    with pytest.raises(ValueError, match="decide_by='tiled_l2' needs thresholds"):
        sj.report.finish_detection(tmp_path / "d", decide_by="tiled_l2")
    path = tmp_path / "d" / "results.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match=r"has 1 of 2 conditions: call sharpjax\.runs\.detect"):
        sj.report.finish_detection(tmp_path / "d")
    other = jax.tree.map(lambda leaf: leaf, tiny_model)
    assert digest(other) == digest(tiny_model)
    other = jax.tree.map(lambda leaf: leaf + 1 if leaf.ndim == 4 else leaf, tiny_model)
    with pytest.raises(ValueError, match="holds a run with other settings"):
        detect(other, names, tmp_path / "d")
    with pytest.raises(ValueError, match="object is no pytree of arrays: pass fingerprint="):
        digest(object())
