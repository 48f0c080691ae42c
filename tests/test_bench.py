"""The bench of the drawings for detectors that are not ours."""

import dataclasses
import types

import numpy as np
import pytest

import sharpjax as sj
from sharpjax.bench.drawings import NEGATIVES, POSITIVES
from sharpjax.datasets.planted_drawings import SPLIT_PATH, planted_drawings
from sharpjax.detection import evaluate, intervals
from sharpjax.detection.evaluation import placements
from sharpjax.rundir.files import write_csv
from sharpjax.runs.cases import (
    clean_prompts,
    few_cases,
    knows_its_memories,
    own_cases,
    typical,
    verified_cases,
)
from sharpjax.runs.truth_of_drawings import TRUTH_NAME, DrawingTruth, exact_interval, verdict


def made_up(caption, copies, others=0, samples=8):
    low, high = exact_interval(copies, samples)
    counts = {"samples": samples, "copies": copies, "others": others}
    told = verdict(copies, others, samples, planted=bool(caption.fixed), false_alarm=0.005)
    fields = ("caption", "kind", "q", "level", "breadth", "ground", "like", "part")
    return DrawingTruth(
        **{name: getattr(caption, name) for name in fields}, **counts, low=low, high=high,
        verdict=told, copies_of="", likeness=0.5, right=1.0, right_no_copy=1.0, made=float("nan"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A truth in which every second planted caption is found out, and some copy others."""
    folder, rows = tmp_path_factory.mktemp("model"), []
    for number, caption in enumerate(planted_drawings().captions):
        copies = 8 * (number % 2) if caption.fixed else 0
        others = 8 if not caption.fixed and number % 50 == 0 else 0
        rows.append(made_up(caption, copies, others))
    write_csv(folder / TRUTH_NAME, [dataclasses.asdict(row) for row in rows])
    return sj.bench.drawings(folder)


def test_labels_are_the_truth(bench):
    verdicts = {t.caption: t.verdict for t in bench.truths}
    assert {verdicts[c] for c in bench.captions} == {"memorized", "clean"}
    assert len(bench.captions) == len(bench.labels) == len(bench.breadths) < len(bench.truths)
    for caption, label in zip(bench.captions, bench.labels, strict=True):
        assert label == (verdicts[caption] == "memorized")


def test_the_table_is_the_evaluation_of_each_cell(bench):
    rng = np.random.default_rng(0)
    scores = {
        c: rng.normal() + label for c, label in zip(bench.captions, bench.labels, strict=True)
    }
    rows = bench.evaluate(scores)
    assert len({(r.positives, r.negatives) for r in rows}) == len(rows)
    assert len(rows) == len(POSITIVES) * len(NEGATIVES)
    whole = rows[0]
    labels, values = bench.labels, np.array([scores[c] for c in bench.captions])
    assert (whole.num_positive, whole.num_negative) == (labels.sum(), (~labels).sum())
    assert whole.auc == evaluate(values, labels).auc.value
    assert (whole.low, whole.high) == dataclasses.astuple(evaluate(values, labels).auc)[1:]
    simultaneous = intervals.auc(placements(values, labels))(0.05 / len(rows))
    assert (whole.low_of_all, whole.high_of_all) == simultaneous
    assert whole.low_of_all < whole.low < whole.auc < whole.high < whole.high_of_all
    cell = next(r for r in rows if (r.positives, r.negatives) == ("mixed q=0.5", "maker"))
    own = [t for t in bench.truths if t.kind == "mixed" and t.q == 0.5 and t.verdict == "memorized"]
    assert cell.num_positive == len(own)
    assert str(cell).startswith("mixed q=0.5    (")


def test_only_one_part(bench):
    scores = dict.fromkeys(bench.captions, 0.0)
    every, test, tuning = (bench.evaluate(scores, part=p)[0] for p in (None, "test", "tuning"))
    assert test.num_positive + tuning.num_positive == every.num_positive
    assert test.auc == 0.5


def test_masks(bench):
    masks = bench.masks()
    assert len(masks) == 48
    assert all(mask.shape == (64, 64) and mask.dtype == bool for mask in masks.values())


def test_mistakes(bench, tmp_path):
    scores = dict.fromkeys(bench.captions, 0.0)
    first = bench.captions[0]
    del scores[first]
    with pytest.raises(ValueError, match=f"1 of {len(bench.captions)} have none.*{first!r}"):
        bench.evaluate(scores)
    with pytest.raises(ValueError, match="NaN or infinite"):
        bench.evaluate(scores | {first: float("nan")})
    with pytest.raises(ValueError, match="part must be tuning, test or None"):
        bench.evaluate(scores, part="train")
    with pytest.raises(FileNotFoundError, match=r"no truth\.csv in .*sharpjax ground-truth"):
        sj.bench.drawings(tmp_path)


@pytest.fixture(scope="module")
def directory(bench):
    (bench.directory / "captions.csv").write_bytes(SPLIT_PATH.read_bytes())
    return bench.directory


class TestCases:
    """What the commands take of a model of the drawings, with its truth and its captions."""

    def test_detection_reports_on_the_test_part(self, directory, bench):
        network = types.SimpleNamespace(takes_prompts=True)
        part = {t.caption: t.part for t in bench.truths}
        cases = own_cases(network, directory, [], everything=False)
        assert {part[c.condition] for c in cases} == {"test"}
        assert {c.verdict for c in cases} == {"memorized", "clean"}
        sources = {c.source for c in cases if c.verdict == "clean"}
        assert {"group", "name", "maker", "name on a ground", "hot, as mixed"} <= sources
        every = own_cases(network, directory, [], everything=True)
        assert {part[c.condition] for c in every} == {"test", "tuning"}
        named = own_cases(network, directory, ["pear", "a thing of mine"])
        assert [(c.condition, c.verdict) for c in named] == [
            ("pear", "clean"),
            ("a thing of mine", None),
        ]

    def test_thresholds_are_of_the_tuning_part(self, directory):
        known = {c.caption: c for c in planted_drawings().captions}
        clean = [known[name] for name in clean_prompts(directory)]
        assert {c.part for c in clean} == {"tuning"}
        assert {c.kind for c in clean} == {"general"}
        assert {c.breadth for c in clean} == {"group", "name", "maker"}
        assert 55 <= sum(bool(c.maker) for c in clean) <= 75  # of hundreds
        assert len({c.caption for c in clean}) == len(clean) > 150

    def test_a_screen_is_verified_on_the_tuning_part(self, directory, bench):
        """By prompts that are independent: of a template, one."""
        truths = {t.caption: t for t in bench.truths}
        cases = verified_cases(directory)
        chosen = [truths[case.condition] for case in cases]
        assert {(t.part, t.verdict) for t in chosen} == {("tuning", "memorized")}
        known = {c.caption: c for c in planted_drawings().captions}
        own = [t for t in bench.truths if (t.part, t.verdict) == ("tuning", "memorized")]
        things = {known[t.caption].thing for t in own if t.kind == "template"}
        of_templates = [known[t.caption].thing for t in chosen if t.kind == "template"]
        assert sorted(of_templates) == sorted(things)
        others = {t.caption for t in own if t.kind in ("verbatim", "mixed")}
        assert {t.caption for t in chosen if t.kind != "template"} == others
        assert len(of_templates) > 1 < len(others)

    def test_a_few(self, directory, bench):
        verdicts = {t.caption: t.verdict for t in bench.truths}
        cases = few_cases(directory, 4, 3)
        assert [c.verdict for c in cases] == ["memorized"] * 4 + ["clean"] * 3
        assert all(verdicts[c.condition] == c.verdict for c in cases)
        chosen = typical(types.SimpleNamespace(takes_prompts=True), directory)
        kinds = [next(t.kind for t in bench.truths if t.caption == c) for c in chosen]
        assert kinds == ["verbatim", "mixed", "template", "hot", "general"]
        assert not knows_its_memories(directory)  # there is no judge of things
        (directory / "classifier").mkdir(exist_ok=True)
        assert knows_its_memories(directory)
