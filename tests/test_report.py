"""The tables that people read: every cell against numbers worked out here."""

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import ClassVar
from unittest import mock

import numpy as np
import pytest
import scipy.stats
from PIL import Image
from rich.console import Console

from sharpjax.detection.calibration import Calibration, Threshold, _digest
from sharpjax.detection.evaluation import Comparison, Evaluation, Interval
from sharpjax.detection.summary import Judged, Summary
from sharpjax.mitigation import comparison as mitigation
from sharpjax.prompts import Case
from sharpjax.report import (
    comparison,
    detect,
    detection,
    ground_truth,
    mitigate,
    spectrum,
    terminal,
)
from sharpjax.report.blocks import Column, Figures, Table, Text, number
from sharpjax.report.numbers import interval, with_error
from sharpjax.rundir.run import Run
from sharpjax.runs.detect import SECONDS_NAME
from sharpjax.runs.truth_of_conditions import Truth

pytestmark = pytest.mark.quick

NAME, OTHER = "score_difference@981", "effective_dimension@800"


def cells(table):
    """Header and cells of every column."""
    columns, rows = table.shown()
    return {c.name: [row[i].text for row in rows] for i, c in enumerate(columns)}


def found(judged, summaries=None, **options):
    """A detection, whose summaries are these if they are given."""
    one = detection.Detection(judged, **options)
    if summaries is not None:
        vars(one)["summaries"] = summaries
    return one


def shown(*blocks, width=200):
    """What a terminal shows of blocks."""
    console = Console(width=width, record=True, file=io.StringIO())
    terminal.show(console, blocks)
    return console.export_text()


def judged():
    """Six conditions of two noises whose means are 1 to 6, and of one more nothing is known."""
    cases = [
        Case(f"c{i}", ("clean", "memorized")[i % 2], "here", 1 + i % 2, i / 10) for i in range(6)
    ] + [Case("[unknown]")]
    records = [
        {
            "condition": case.condition,
            "network": {NAME: [i + 0.5, i + 1.5], OTHER: [-i, -i]},
            "oracle": {NAME: [10.0 * i]},
        }
        for i, case in enumerate(cases)
    ]
    failed = {"condition": "[lost]", "failed": f"{NAME} not finite"}
    return Judged.of([*records, failed], [*cases, Case("[lost]")])


LIMIT = Threshold(4.5, 3.5, 5.25, 1, 0.95, 80)
OPEN = Threshold(-2.0, -math.inf, -1.0, -1, 0.9, 20)


def evaluation(auc, num_positive=20, num_negative=150, **options):
    ends = Interval(auc, auc - 0.1, auc + 0.1)
    return Evaluation(
        ends, Interval(0.25, 0.125, 0.5), 0.75, num_positive,
        num_negative, **options,
    )  # fmt: skip


SUMMARIES = [
    Summary(
        NAME, evaluation(0.8), evaluation(0.7),
        by_source={"hot": evaluation(0.6, num_negative=40), "": evaluation(0.5, num_negative=30)},
        by_level={1: evaluation(0.55, num_positive=7), 4: evaluation(0.65, num_positive=13)},
        rank_correlation=(0.5, 0.04),
    ),
    Summary(
        OTHER, evaluation(0.9), by_source={"hot": evaluation(0.4)},
        comparison=Comparison(Interval(0.1, -0.05, 0.25), 0.0625),
        rank_correlation=(-0.25, 0.4),
    ),
]  # fmt: skip


class TestNumbers:
    def test_no_more_digits_than_the_error_leaves(self):
        assert with_error(1.70535, 0.28187) == "1.71 ± 0.28"
        assert with_error(0.0123456, 0.00012) == "0.01235 ± 0.00012"
        assert with_error(981.2, 31.4) == "981 ± 31"
        for unknown in (0.0, math.inf, math.nan):
            assert with_error(2 / 3, unknown) == "0.6667"

    def test_open_ends(self):
        assert interval(1.34567, 2.0) == "1.346 to 2"
        assert interval(-math.inf, 2.0) == "open to 2"
        assert interval(-1.0, math.inf) == "-1 to open"


class TestDetection:
    def test_summary(self):
        table = cells(detect.summary_table(found(judged(), SUMMARIES)))
        assert table == {
            "statistic @ t": [NAME, OTHER],
            "means memorized": ["large", "small"],
            "AUC": ["0.800 [0.700, 0.900]", "0.900 [0.800, 1.000]"],
            "TPR at FPR ≤ 1%": ["0.250 [0.125, 0.500]"] * 2,
            "average precision": ["0.750"] * 2,
            "AUC, one noise": ["0.700 [0.600, 0.800]", ""],
            "Spearman with level": ["+0.50 (p = 0.04)", "-0.25 (p = 0.4)"],
        }

    def test_summary_with_the_exact_score(self):
        figures = {"network": evaluation(0.8), "oracle": evaluation(0.6)}
        one = dataclasses.replace(SUMMARIES[1], **figures, oracle_rank_correlation=(0.1, 1))
        both = [one, Summary(NAME, rank_correlation=(math.nan, 1))]
        table = cells(detect.summary_table(found(judged(), both)))
        assert table["AUC of the exact score"] == ["0.600 [0.500, 0.700]", ""]
        assert table["exact score's"] == ["+0.10 (p = 1)", ""]
        assert table["Spearman with level"] == ["-0.25 (p = 0.4)", ""]
        assert table["AUC"] == ["0.800 [0.700, 0.900]", ""]

    @pytest.mark.parametrize(
        ("p", "text"), [(0.0009, "< 0.001"), (0.001, "0.001"), (0.0625, "0.062")]
    )
    def test_comparison(self, p, text):
        """With the reference on the same conditions, whatever else is known."""
        one = dataclasses.replace(
            SUMMARIES[1], comparison=dataclasses.replace(SUMMARIES[1].comparison, p_value=p),
            oracle=evaluation(0.6),
        )  # fmt: skip
        (row,) = detection.comparison_rows(found(judged(), [SUMMARIES[0], one]))
        assert row == {
            "statistic": OTHER, "reference": NAME, "difference": 0.1, "low": -0.05, "high": 0.25,
            "p_value": p, "p_corrected": p, "num_memorized": 20, "num_clean": 150,
        }  # fmt: skip
        twice = detection.comparison_rows(found(judged(), [SUMMARIES[0], one, one]))
        assert [row["p_corrected"] for row in twice] == [2 * p, 2 * p]
        table = detect.comparison_table([row])
        assert NAME in table.title
        assert cells(table) == {
            "statistic": [OTHER], "AUC less the reference's": ["0.100 [-0.050, 0.250]"],
            "p": [text], "corrected": [text], "memorized": ["20"], "clean": ["150"],
        }  # fmt: skip

    def test_apart(self):
        assert cells(detect.apart_table(SUMMARIES, "by_source", "")) == {
            "statistic @ t": [NAME, OTHER],
            "hot (150)": ["0.600 [0.500, 0.700]", "0.400 [0.300, 0.500]"],
            "(no source) (30)": ["0.500 [0.400, 0.600]", ""],
        }
        assert cells(detect.apart_table(SUMMARIES[:1], "by_level", "")) == {
            "statistic @ t": [NAME],
            "1 (7)": ["0.550 [0.450, 0.650]"],
            "4 (13)": ["0.650 [0.550, 0.750]"],
        }
        assert detect.apart_table([Summary(NAME)], "by_source", "") is None

    def test_costs(self, tmp_path):
        """Of the batches after the first, a condition; the median of all that were run."""
        lines = [
            {"batch_size": 2, "seconds": {"first": [90.0, 4.0, 6.0], "noise": [8.0]}},
            {"batch_size": 4, "seconds": {"first": [70.0, 4.0]}},
        ]
        (tmp_path / SECONDS_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
        asked = {"a": ("first", 4, 2), "b": ("noise", 16, 0), "c": ("paths", 0.5, 1)}
        costs = detection.costs(tmp_path, asked)
        assert costs["a"] == {"forwards": 4, "tangents": 2, "seconds": 2.0}  # of 2, 3 and 1
        assert costs["b"]["seconds"] is costs["c"]["seconds"] is None
        assert cells(detect.cost_table(found(judged(), costs=costs))) == {
            "statistic": ["a", "b", "c"],
            "forward evaluations": ["4", "16", "0.5"],
            "tangents": ["2", "0", "1"],
            "seconds": ["2", "", ""],
        }

    def test_verdicts(self):
        calibration = Calibration("abc", {}, {}, {NAME: LIMIT, OTHER: OPEN})
        one = found(judged(), thresholds=calibration, decide_by=NAME)
        table = cells(detect.condition_table(one))
        assert table["condition"] == ["[unknown]", "c5", "c4", "c3", "c2", "c1", "c0", "[lost]"]
        assert table["margin"][:4] == ["+2.5", "+1.5", "+0.5", "-0.5"]
        assert table["verdict"][:4] == [
            "memorized", "memorized", "memorized (unsure)", "clean (unsure)",
        ]  # fmt: skip
        assert table["known"][:4] == ["", "memorized", "clean", "memorized"]
        assert table[NAME][:2] == ["7.00 ± 0.50", "6.00 ± 0.50"]
        assert table[f"exact score: {NAME}"][:2] == ["60", "50"]
        assert table["failed"][-1] == f"{NAME} not finite"
        assert table[NAME][-1] == table["verdict"][-1] == table["margin"][-1] == ""
        text = detect.sections(one)[0].blocks[0].text
        assert f"3 of 7 are called memorized: {NAME} above 4.5, set on 80 clean ones" in text
        assert "95% of new ones are not beyond it (95% interval: 3.5 to 5.25)" in text
        assert "2 lie within" in text
        assert "set the thresholds" not in shown(*detect.sections(one)[0].blocks)
        told = dataclasses.replace(calibration, prompts=(_digest("c4"), _digest("c0")))
        same = dataclasses.replace(one, thresholds=told)
        told = shown(*detect.sections(same)[0].blocks)
        assert "2 of these prompts set the thresholds, 'c0' the first." in told
        other = found(judged(), thresholds=calibration, decide_by=OTHER)
        text = detect.sections(other)[0].blocks[0].text
        assert f"4 of 7 are called memorized: {OTHER} below -2" in text
        assert cells(detect.condition_table(other))["margin"][-3:] == ["-1", "-2", ""]

    def test_verdicts_are_scored_against_what_is_known(self, tmp_path):
        """Means 2, 4, 6 are memorized and 1, 3, 5 clean; those above 4.5 are called so."""
        calibration = Calibration("abc", {}, {}, {NAME: LIMIT})
        one = found(judged(), thresholds=calibration, decide_by=NAME)
        ends = scipy.stats.binomtest(1, 3).proportion_ci(method="wilson")
        rates = detection.rate_rows(one)
        assert [(r["rate"], r["source"], r["called"], r["of"]) for r in rates] == [
            ("TPR", "all", 1, 3), ("FPR", "all", 1, 3),
        ]  # fmt: skip
        for row in rates:
            assert row["share"] == 1 / 3
            assert [row["share_low"], row["share_high"]] == pytest.approx(list(ends))
        # by source, where the clean ones have several
        cases = [dataclasses.replace(c, source="ab"[i > 2]) for i, c in enumerate(one.judged.cases)]
        one = dataclasses.replace(one, judged=dataclasses.replace(one.judged, cases=cases))
        told = cells(detect.rate_table(detection.rate_rows(one)))
        assert told["source"] == ["all", "a", "b"] * 2
        assert told["called memorized"] == ["1", "0", "1", "1", "0", "1"]
        assert told["of"] == ["3", "1", "2", "3", "2", "1"]
        # on screen, in the files, in what --json prints
        assert "Verdicts against what is known" in shown(*detect.sections(one)[0].blocks)
        detect.write(tmp_path, one)
        assert len((tmp_path / detection.RATES_TABLE).read_text().splitlines()) == 7
        first, second = json.loads((tmp_path / "summary.json").read_text())
        assert (len(first["verdicts"]), second["verdicts"]) == (6, None)
        answer = json.loads(json.dumps(detection.answer(one)))
        assert answer["decided_by"] == NAME
        assert answer["thresholds"][NAME]["value"] == 4.5
        assert [r.get("verdict") for r in answer["results"]][5:] == ["memorized", "memorized", ""]
        # nothing is claimed without verdicts, or without labels
        assert detection.rate_rows(found(judged())) == []
        bare = [dataclasses.replace(c, verdict=None) for c in cases]
        bare = dataclasses.replace(one.judged, cases=bare)
        assert detection.rate_rows(dataclasses.replace(one, judged=bare)) == []

    @pytest.mark.parametrize("width", [60, 80, 120, 160])
    def test_no_terminal_is_too_narrow(self, width):
        """Whole columns or none, and a word on those that are not there."""
        calibration = Calibration("abc", {}, {}, {NAME: LIMIT})
        one = found(judged(), SUMMARIES, thresholds=calibration, decide_by=NAME)
        blocks = [block for section in detect.sections(one) for block in section.blocks]
        text = shown(*blocks, width=width)
        assert max(map(len, text.splitlines())) <= width
        told = " ".join(text.split())
        # an interval stands on one line, or its column is named as left out
        assert "0.800 [0.700, 0.900]" in text
        assert ("0.250 [0.125, 0.500]" in text) != ("too narrow for TPR at FPR ≤ 1%" in told)
        assert ("too narrow" in told) == (width < 160)
        if width == 60:
            assert f"too narrow for {NAME}: widen the terminal, all in results.csv" in told

    def test_a_terminal_shows_twenty_conditions_and_the_deciding_statistic(self):
        some = judged()
        many = Judged(some.cases * 3, some.records * 3, some.failed * 6)
        calibration = Calibration("abc", {}, {}, {NAME: LIMIT})
        one = found(many, thresholds=calibration, decide_by=NAME)
        text = shown(detect.condition_table(one))
        assert "20 of 27 shown, all in results.csv" in text
        assert NAME in text
        assert OTHER not in text
        assert "exact score" not in text
        text = shown(detect.condition_table(found(many, [])))
        assert text.count("c0") == 3
        assert OTHER in text

    def test_five_failures_are_shown(self):
        some = judged()
        (line,) = detect.failures(dataclasses.replace(some, failed=some.failed * 6))
        assert line.text.startswith("Failed: 6 (")
        assert line.look == "wrong"
        assert line.text.count("not finite") == 5
        assert ", and 1 more)" in line.text
        five = detect.failures(dataclasses.replace(some, failed=some.failed * 5))
        assert "more" not in five[0].text

    def test_thresholds(self):
        table = detect.threshold_table(Calibration("abc", {}, {}, {NAME: LIMIT}))
        assert cells(table) == {
            "statistic @ t": [NAME],
            "memorized is": ["above"],
            "threshold": ["4.5"],
            "95% interval": ["3.5 to 5.25"],
        }
        assert table.note == "set on 80 clean ones so that 95% of new ones are on the other side"
        table = detect.threshold_table(Calibration("abc", {}, {}, {OTHER: OPEN}))
        assert cells(table)["memorized is"] == ["below"]
        assert cells(table)["95% interval"] == ["open to -1"]
        assert "90% of new ones are on the other side; too few" in table.note

    def test_dose(self):
        """Levels 1 and 2 hold c0, c2, c4 and c1, c3, c5; what has no level is left out."""
        table, _ = detect.dose(found(judged(), level="repetitions"))
        error = 2 / math.sqrt(3)  # of three numbers two apart
        assert cells(table) == {
            "level": [NAME, OTHER, "copy rate"],
            "1 (3)": [f"3 ± {error:.1g} | 20", f"-2 ± {error:.1g}", f"0.2 ± {error / 10:.1g}"],
            "2 (3)": [f"4 ± {error:.1g} | 30", f"-3 ± {error:.1g}", f"0.3 ± {error / 10:.1g}"],
        }
        assert table.note == "level: repetitions"
        every = judged()
        few = Judged(
            [dataclasses.replace(c, copy_rate=None) for c in every.cases[:3]],
            [{"network": {NAME: r["network"][NAME]}} for r in every.records[:3]], [],
        )  # fmt: skip
        assert cells(detect.dose(found(few))[0]) == {
            "level": [NAME], "1 (2)": ["2 ± 1"], "2 (1)": ["2"],
        }  # fmt: skip
        alone = found(Judged(few.cases[:1], few.records[:1], []))
        assert detect.dose(alone) is None
        assert "Dose and response" not in [one.title for one in detect.sections(alone)]

    def test_the_axis_of_levels_says_what_they_are(self):
        _, block = detect.dose(found(judged(), level="repetitions of the image"))
        assert block.x == "repetitions of the image"
        assert [label for label, _ in block.figures] == [
            f"{NAME} against the level", f"{OTHER} against the level",
            "copy rate against the level",
        ]  # fmt: skip

    def test_remarks(self):
        known, rates, few = detect.remarks(
            found(judged(), [Summary(NAME, evaluation(0.5, num_positive=3))])
        )
        assert known == (
            "Known of the conditions: 3 memorized, 3 clean, 0 between (left out), 1 without a "
            "label (left out)."
        )
        cases = [Case("copier", "another", "here"), *judged().cases]
        of_another = found(dataclasses.replace(judged(), cases=cases), [])
        assert (
            "0 between (left out), 1 that copy another's image (left out), 1 without a "
            in detect.remarks(of_another)[0]
        )
        assert "Clean conditions: 150; " in rates
        assert "in steps of 0.7%" in rates
        assert "allows 1 false positives" in rates
        assert few.startswith("No intervals: a class has only 3")
        enough = evaluation(0.5, num_negative=368)
        assert len(detect.remarks(found(judged(), [Summary(NAME, enough)]))) == 1
        alone = dataclasses.replace(judged(), failed=[])
        one_kind = found(Judged(alone.cases[1:2], alone.records[1:2], []), [])
        assert "all labelled conditions are memorized" in detect.remarks(one_kind)[1]
        unknown = found(Judged(alone.cases[6:], alone.records[6:], []), [], what="image")
        told = detect.remarks(unknown)[0]
        assert told.startswith("No ROC: the ground truth of both classes is not known for these im")


def image_rows(copied, fidelity, *, strengths=(0.5, 1.0)):
    """Images, two a prompt, of no method and of two others: copies and fidelity by prompt."""
    rows = []
    for method in ("none", "sail", "perturb"):
        for strength in (0.0,) if method == "none" else strengths:
            for index in range(6):
                for image in (1, 0):
                    rows.append(
                        {
                            "method": method, "strength": strength, "index": index, "image": image,
                            "copied": copied(method, strength, index, image), "turned": image == 1,
                            "fidelity": fidelity(method, strength, index),
                            "evaluations": 100 + image, "seconds": 2.0 + image,
                            "file": "x.png", "maker": None, "diversity": 0.25,
                        }
                    )  # fmt: skip
    return rows


class TestTruth:
    def test_copies_of_conditions(self):
        rows = [Truth("0 x1", 1, 0.9, 32, 30, 0.8, 0.99, 0.97),
                Truth("0 x3", 3, 0.85, 32, 8, 0.13, 0.42, 0.5)]  # fmt: skip
        assert cells(ground_truth.truth_table(rows)) == {
            "condition": ["0 x1", "0 x3"], "images": ["1", "3"],
            "copies": ["30 of 32", "8 of 32"], "rate": ["0.94 [0.80, 0.99]", "0.25 [0.13, 0.42]"],
            "similarity": ["0.970", "0.500"], "threshold": ["0.900", "0.850"],
            "verdict": ["memorized", "between"],
        }  # fmt: skip


def test_spectra_one_below_the_other():
    one = {
        "condition": "cat", "noise": 0, "t": 981, "source": "network", "negative": 60,
        "near_zero": 3, "positive": 1, "smallest": -1.00004, "largest": 0.12345,
        "effective_dimension": 4.26,
    }  # fmt: skip
    rows = [one, one | {"source": "oracle", "effective_dimension": ""}, one | {"noise": 1},
            one | {"noise": 1, "t": 1}]  # fmt: skip
    table = spectrum.spectrum_table(rows)
    assert cells(table) == {
        "condition": ["cat", "cat", "cat #1", "cat #1"], "t": ["981", "981", "981", "1"],
        "score": ["network", "exact", "network", "network"], "< 0": ["60"] * 4,
        "≈ 0": ["3"] * 4, "> 0": ["1"] * 4, "smallest": ["-1.0000"] * 4,
        "largest": ["0.1235"] * 4, "tr K": ["4.3", "", "4.3", "4.3"],
    }  # fmt: skip
    assert "below -0.05" in table.note
    printed = shown(table)
    assert printed.count("cat") == printed.count("cat #1") + 1 == 3  # a repeat is left out


class TestComparison:
    """Prompts 0 and 1 to tune on, 2 to 4 to judge by, 5 clean."""

    @pytest.fixture
    def rows(self):
        def copied(method, strength, index, image):
            if method == "none":
                return index != 5
            return index != 5 and image == 0 and (strength == 0.5 or index == 2)

        def fidelity(method, strength, index):
            if method == "none" or index == 5:
                return 0.8
            return {("sail", 0.5): 0.75, ("sail", 1.0): 0.74, ("perturb", 0.5): 0.72}.get(
                (method, strength), 0.1
            )

        return image_rows(copied, fidelity)

    def compare(self, rows):
        kinds = {"all": mitigation.Kind((0, 1), (2, 3, 4))}
        return mitigation.compare(rows, kinds=kinds, clean=(5,))

    def test_outcomes(self, rows):
        rows = [r for r in rows if (r["method"], r["strength"], r["index"]) != ("sail", 0.5, 3)]
        found = {(o.method, o.strength): o for o in mitigation.outcomes(rows[::-1], (2, 3, 4))}
        assert set(found) == {
            ("none", 0.0), ("sail", 1.0), ("perturb", 0.5), ("perturb", 1.0),
        }  # fmt: skip
        one = found["perturb", 1.0]
        np.testing.assert_array_equal(one.copied, [[True, False], [False] * 2, [False] * 2])
        np.testing.assert_array_equal(one.other, [[False, True]] * 3)
        np.testing.assert_array_equal(one.fidelity, np.full((3, 2), 0.1))
        np.testing.assert_array_equal(one.refused, np.zeros((3, 2)))
        np.testing.assert_array_equal(one.diversity, np.full(3, 0.25))
        assert np.isnan(one.maker).all()
        assert (one.evaluations, one.seconds) == (100.5, 2.5)

    def test_standings(self, rows):
        """0.9 of 0.8 must be kept: of perturb only 0.5 does, of sail both, and 1.0 copies less."""
        found = self.compare(rows)
        assert found.reference == pytest.approx(0.8)
        of = found.kinds["all"]
        assert list(of.standings) == ["sail", "perturb"]
        assert of.rival == "sail"
        assert of.baseline.copy_rate.value == 1
        sail, perturb = of.standings.values()
        # of the tuning prompts no strength of 1 copies any image
        assert [one.few.outcomes.strength for one in (sail, perturb)] == [1.0, 1.0]
        assert [one.faithful.outcomes.strength for one in (sail, perturb)] == [1.0, 0.5]
        assert [one.best.outcomes.strength for one in (sail, perturb)] == [1.0, 0.5]
        assert sail.against is sail.p_value is None
        difference = (0.72 * 3 - 0.74 * 5) / 6
        assert perturb.against.difference.value == pytest.approx(difference)
        assert perturb.p_value == perturb.against.p_value  # the only comparison

    def test_tables(self, rows):
        found = self.compare(rows)
        table = cells(comparison.curve_table(comparison.curve_rows(found)))
        assert table["kind"] == ["all"] * 5
        assert table["method"] == ["none", "sail", "sail", "perturb", "perturb"]
        assert table["strength"] == ["0", "0.5", "1", "0.5", "1"]
        copies = [text.split(" ")[0] for text in table["copies"]]
        assert copies == ["1.000", "0.500", "0.167", "0.500", "0.167"]
        assert table["other"] == ["0.500"] * 5
        assert [t.split(" ")[0] for t in table["fidelity"]] == [
            "0.800", "0.750", "0.740", "0.720", "0.100",
        ]  # fmt: skip
        assert [t.split(" ")[0] for t in table["success"]] == [
            "0.000", "0.375", "0.617", "0.360", "0.083",
        ]  # fmt: skip
        volumes = [text.split(" ")[0] for text in table["hypervolume"]]
        volume = 0.5 * 0.75 + (5 / 6 - 0.5) * 0.74
        assert volumes[:3] == ["0.000", f"{volume:.3f}", f"{volume:.3f}"]
        assert (table["evaluations"], table["seconds"]) == (["100"] * 5, ["2.50"] * 5)
        assert (table["diversity"], table["refused"]) == (["0.25"] * 5, ["0.00"] * 5)
        assert "maker" not in table  # of none it is known

        table = cells(comparison.standing_table(comparison.standing_rows(found)))
        assert table["method"] == ["sail", "perturb"]
        assert [t.split(" ")[0] for t in table["success, best"]] == ["0.617", "0.360"]
        assert [t.split(" ")[0] for t in table["fidelity, few"]] == ["0.740", "0.100"]
        assert [t.split(" ")[0] for t in table["copies, faithful"]] == ["0.167", "0.500"]
        assert table["against the rival"][0] == table["p"][0] == ""
        assert table["against the rival"][1].startswith("-0.257 [")

    def test_files(self, rows, tmp_path):
        found = self.compare(rows)
        written = comparison.write(tmp_path, found)
        names = ["curves.csv", "standings.csv", "tradeoff.png"]
        assert [p.name for p in written] == names
        assert all(path.is_file() for path in written)
        with (tmp_path / "curves.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        curves = found.kinds["all"].curves
        points = [(n, p) for n, curve in curves.items() for p in curve.points]
        for line, (name, point) in zip(lines, points, strict=True):
            assert line["method"] == name
            volume = curves[name].hypervolume
            for column, value in {
                "strength": point.outcomes.strength, "copies": point.copy_rate.value,
                "copies_low": point.copy_rate.low, "copies_high": point.copy_rate.high,
                "other": 0.5, "fidelity": point.fidelity.value, "success": point.success.value,
                "hypervolume_low": volume.low, "hypervolume_high": volume.high,
                "evaluations": 100.5, "seconds": 2.5,
            }.items():  # fmt: skip
                assert float(line[column]) == pytest.approx(value, rel=1e-5), column
        with (tmp_path / "standings.csv").open(newline="") as file:
            sail, perturb = csv.DictReader(file)
        assert (sail["method"], sail["difference"], sail["p_value"]) == ("sail", "", "")
        against = found.kinds["all"].standings["perturb"].against
        assert float(perturb["difference_low"]) == pytest.approx(against.difference.low, rel=1e-5)
        assert float(perturb["difference"]) == pytest.approx(against.difference.value, rel=1e-5)
        assert float(perturb["p_value"]) == pytest.approx(against.p_value, rel=1e-5)
        # as it is read again, it says the same
        run = Run(tmp_path, "mitigate", {})
        (section, _) = comparison.sections_of(run)
        told = [block.text for block in section.blocks if isinstance(block, Text)]
        assert told == [b.text for b in comparison.blocks_of(found) if isinstance(b, Text)]
        assert "3 judge, 2 others choose strengths" in told[0]
        assert "in 0.80 of their images, two of a prompt's differ by 0.25" in told[0]


class TestPrompts:
    RECORDS = (
        {"method": "none", "index": 0, "images": ["a", "b"]},
        {"method": "sail", "index": 0, "images": ["c", "d"], "details": [
            {"outcome": "budget", "norm": 1.5, "norm_z": 4.5},
            {"outcome": "threshold", "norm": 1.0, "norm_z": 0.5, "kurtosis_z": -4.5}]},
        {"method": "none", "index": 1, "images": ["e", "f"]},
        {"method": "sail", "index": 1, "images": [], "error": "NaN"},
        {"method": "none", "index": 2, "images": ["g", "h"]},
    )  # fmt: skip
    NUMBERED: ClassVar = {0: "a [cat]", 1: "", 2: "dog"}
    FOUND = ([(3.5, "memorized"), (math.nan, "not finite"), (0.5, "clean")], LIMIT)

    def rows(self, fidelity=True):
        return [
            {
                "method": r["method"], "index": r["index"], "file": file,
                "score_difference": 2.0 + j - (r["method"] == "sail"),
                "copied": r["method"] == "none" and j == 0,
                **({"fidelity": 0.25 * (1 + j)} if fidelity else {}),
            }
            for r in self.RECORDS
            for j, file in enumerate(r["images"])
        ]  # fmt: skip

    def test_rows(self):
        first, second, third = mitigate.prompt_rows(
            self.rows(), self.RECORDS, self.NUMBERED, self.FOUND
        )
        assert first == {
            "prompt": "a [cat]", "statistic": 3.5, "verdict": "memorized",
            "score_difference_before": 2.5, "score_difference_after": 1.5,
            "copied_before": 0.5, "copied_after": 0.0,
            "fidelity_before": 0.375, "fidelity_after": 0.375,
            "images_before": ["a", "b"], "images_after": ["c", "d"], "treated": True,
            "details": self.RECORDS[1]["details"], "error": None, "evaluations": 0.0,
            "refused_before": 0, "refused_after": 0,
        }  # fmt: skip
        assert (second["statistic"], second["verdict"]) == (None, "not finite")
        assert (second["treated"], second["error"]) == (False, "NaN")
        assert (third["treated"], third["error"], third["copied_after"]) == (False, None, None)
        alone = mitigate.prompt_rows(self.rows(fidelity=False), self.RECORDS, self.NUMBERED, None)
        assert {row["fidelity_before"] for row in alone} == {None}
        assert {row["verdict"] for row in alone} == {None}

    def test_what_a_screen_refused_is_told(self):
        """Two images of three: 1 + 4 + 16 tries, of which two passed."""
        details = [{"tries": n, "passed": p} for n, p in ((1, True), (4, True), (16, False))]
        common = {"index": 0, "prompt": "cat", "score_difference": [1.0] * 3}
        record = common | {"method": "screened", "strength": 0.1, "images": ["a", "b", None]}
        record |= {"evaluations": [90.0, 120.0, 300.0], "details": details, "seconds": 1.0}
        rows = mitigate.judged_rows(Path(), [record], None)
        assert [row["file"] for row in rows] == ["a", "b", None]
        (row,) = mitigate.prompt_rows(rows, [record], {0: "cat"}, None)
        assert (row["images_after"], row["refused_after"]) == (["a", "b"], 1)
        assert (row["tries"], row["pass_rate"], row["evaluations"]) == (21, 2 / 21, 510)
        low, high = row["pass_rate_interval"]
        assert low < 2 / 21 < high
        assert mitigate.pairs([record])[0][1] == {"with screened at 0.1": ["a", "b"]}
        told = [block.text for block in mitigate.remarks([row], [record], "screened at 0.1")]
        assert "1 images were refused: none of their noises passed the screen." in told

    @pytest.mark.parametrize("judge", [True, False])
    def test_side_by_side_promises_frames_only_where_somebody_judged(self, judge, tmp_path):
        files = [f"{name}.png" for name in ("none", "sail", "other")]
        for name in files:
            Image.new("RGB", (8, 8)).save(tmp_path / name)
        records = [
            {"method": method, "strength": 0.5, "index": i, "prompt": "cat", "images": [name]}
            for method, i, name in zip(("none", "sail", "none"), (1, 1, 0), files, strict=True)
        ]
        pairs = mitigate.pairs(records)
        assert (
            pairs
            == [  # the treated first
                ("cat", {"without": files[:1], "with sail at 0.5": files[1:2]}),
                ("cat", {"without": files[2:]}),
            ]
        )
        rows = [{"file": f} | ({"copied": f == "none.png"} if judge else {}) for f in files]
        with mock.patch("sharpjax.report.plots.mosaic") as drawn:
            mitigate.side_by_side(tmp_path, pairs, rows, "left and right")
        (lines, _), title = drawn.call_args.args, drawn.call_args.kwargs["title"]
        assert len(lines) == 1
        assert [bool(marks.any()) for _, marks in lines[0][1]] == [judge, False]
        end = "red frame: copy" if judge else "whether they copy was not judged"
        assert title == f"left and right; {end}"

    def table(self, found, fidelity=True):
        return mitigate.prompt_rows(self.rows(fidelity), self.RECORDS, self.NUMBERED, found)

    def test_table(self):
        table = mitigate.prompt_table(self.table(self.FOUND), "sail", LIMIT.value)
        assert cells(table) == {
            "prompt": ["a [cat]", "(empty prompt)", "dog"],
            "detection": ["memorized", "not finite", "clean"],
            "value": ["3.5", "", "0.5"],
            "‖s_D‖": ["2.50 → 1.50", "2.50", "2.50"],
            "copies": ["0.50 → 0.00", "0.50", "0.50"],
            "fidelity": ["0.38 → 0.38", "0.38", "0.38"],
            "failed": ["", "NaN", ""],
        }
        assert "memorized above 4.500" in table.note
        blind = cells(mitigate.prompt_table(self.table(None, fidelity=False), "sail"))
        assert blind.keys() == {"prompt", "‖s_D‖", "copies", "failed"}  # those that say anything

    def test_remarks(self):
        told = [one.text for one in mitigate.remarks(self.table(self.FOUND), self.RECORDS, "sail")]
        assert told[0].startswith(
            "1 of 3 prompts are called memorized. 1 of 3 prompts are treated by sail; the others'"
        )
        assert told[1].startswith("1 of 2 descents spent their steps")
        assert told[2].startswith("2 noises no longer look like draws of N(0, I) (a z-score beyond")
        assert told[2].endswith("the longest has 1.50 times the usual length.")
        assert told[3].startswith("1 failed")
        assert len(told) == 4
        quiet = [row | {"details": [], "treated": False} for row in self.table(None)]
        (told,) = mitigate.remarks(quiet, self.RECORDS[:1], "sail")
        assert told.text == "0 of 3 prompts are treated by sail (--all-prompts: none was judged)."
        quiet[0]["details"] = [{"transition": 3}, {"transition": None}]
        told = mitigate.remarks(quiet, self.RECORDS[:1], "sail")[1].text
        assert told.startswith("1 of 2 images had no local minimum on their way")


class TestTerminal:
    def test_nothing_of_a_text_is_markup(self):
        texts = "[bold]a[/bold]", "b\x1b[31m"
        table = Table("[red]", [Column("[i]", lambda text: text)], texts)
        text = shown(Text("[/nonsense] \x07"), table)
        assert "[/nonsense] ␇" in text
        for one in ("[red]", "[i]", "[bold]a[/bold]", "b␛[31m"):
            assert one in text

    def test_names_are_whole_and_heads_are_no_wider_than_cells(self):
        names = ["hessian_score_difference@981", "effective_dimension@600"]
        columns = [Column("statistic @ t", lambda name: name)]
        columns += [number(f"a head of many words {i}", len, "{:.3f}") for i in range(8)]
        text = shown(Table("", columns, names), width=110)
        assert all(name in text for name in names)
        assert "many" in text
        assert "of many words" not in text

    def test_plots_and_images_are_of_the_page(self):
        assert not shown(Figures([], "a plot")).strip()


def test_images_of_a_record_are_those_on_disk(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / f"{i}.png")
    found = mitigate._images(tmp_path, ["1.png", "0.png"])
    np.testing.assert_allclose(found, pixels[::-1].transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)
