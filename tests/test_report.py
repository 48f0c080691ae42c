"""The tables that people read: every cell against numbers worked out here."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image

from sharpjax.detection.calibration import Calibration, Threshold
from sharpjax.detection.cases import Case
from sharpjax.detection.evaluation import Comparison, Evaluation, Interval
from sharpjax.detection.run import SECONDS_NAME
from sharpjax.detection.summary import Judged, Summary
from sharpjax.detection.truth import Truth
from sharpjax.mitigation import comparison as mitigation
from sharpjax.report import comparison, detection
from sharpjax.report.conditions import truth_table
from sharpjax.report.mitigation import _images, prompt_remarks, prompt_rows, prompt_table
from sharpjax.report.numbers import interval, with_error
from sharpjax.report.spectrum import spectrum_table

NAME, OTHER = "score_difference@981", "effective_dimension@800"


def cells(table):
    """Header and cells of every column."""
    return {str(column.header): list(column.cells) for column in table.columns}


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
        ends, Interval(0.25, 0.125, 0.5), Interval(0.75, math.nan, math.nan), num_positive,
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
        comparison=Comparison(Interval(0.1, -0.05, 0.25), Interval(0, 0, 0), 0.0625),
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
        table = cells(detection.summary_table(SUMMARIES))
        assert table == {
            "statistic @ t": [NAME, OTHER],
            "means memorized": ["large", "small"],
            "AUC": ["0.800 [0.700, 0.900]", "0.900 [0.800, 1.000]"],
            "TPR at FPR ≤ 1%": ["0.250 [0.125, 0.500]"] * 2,
            "average precision": ["0.750 [-]"] * 2,
            "AUC, one noise": ["0.700 [0.600, 0.800]", "-"],
            "AUC less score_difference's": ["-", "0.100 [-0.050, 0.250] p = 0.062"],
            "Spearman with level": ["+0.50 (p = 0.04)", "-0.25 (p = 0.4)"],
        }

    def test_summary_with_the_exact_score(self):
        """It takes the place of the comparison."""
        nearest = evaluation(0.8, nearest=True)
        one = dataclasses.replace(
            SUMMARIES[1], network=nearest, oracle=evaluation(0.6), oracle_rank_correlation=(0.1, 1)
        )
        table = cells(detection.summary_table([one, Summary(NAME, rank_correlation=(math.nan, 1))]))
        assert table["exact-score AUC"] == ["0.600 [0.500, 0.700]", "-"]
        assert table["exact score"] == ["+0.10 (p = 1)", "-"]
        assert table["Spearman with level"] == ["-0.25 (p = 0.4)", "-"]
        assert table["AUC"] == ["0.800 [0.700, 0.900]", "-"]
        assert "TPR at FPR nearest to 1%" in table
        assert "AUC less score_difference's" not in table

    @pytest.mark.parametrize(
        ("p", "text"), [(0.0009, "p < 0.001"), (0.001, "p = 0.001"), (0.5, "p = 0.5")]
    )
    def test_p_value(self, p, text):
        one = dataclasses.replace(
            SUMMARIES[1], comparison=dataclasses.replace(SUMMARIES[1].comparison, p_value=p)
        )
        column = cells(detection.summary_table([one]))["AUC less score_difference's"]
        assert column[0].endswith(f"] {text}")

    def test_apart(self):
        assert cells(detection.apart_table(SUMMARIES, "source")) == {
            "statistic @ t": [NAME, OTHER],
            "hot (150)": ["0.600 [0.500, 0.700]", "0.400 [0.300, 0.500]"],
            "(no source) (30)": ["0.500 [0.400, 0.600]", "-"],
        }
        assert cells(detection.apart_table(SUMMARIES[:1], "level")) == {
            "statistic @ t": [NAME],
            "level 1 (7)": ["0.550 [0.450, 0.650]"],
            "level 4 (13)": ["0.650 [0.550, 0.750]"],
        }
        assert detection.apart_table([Summary(NAME)], "source") is None

    def test_costs(self, tmp_path):
        """Of the batches after the first, a condition; the median of all that were run."""
        lines = [
            {"batch_size": 2, "seconds": {"first": [90.0, 4.0, 6.0], "noise": [8.0]}},
            {"batch_size": 4, "seconds": {"first": [70.0, 4.0]}},
        ]
        (tmp_path / SECONDS_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
        asked = {"a": ("first", 4, 2), "b": ("noise", 16, 0), "c": ("paths", 0.5, 1)}
        found = detection.costs(tmp_path, asked)
        assert found["a"] == {"forwards": 4, "tangents": 2, "seconds": 2.0}  # of 2, 3 and 1
        assert math.isnan(found["b"]["seconds"])
        assert math.isnan(found["c"]["seconds"])
        assert cells(detection.cost_table(found)) == {
            "statistic": ["a", "b", "c"],
            "forwards": ["4", "16", "0.5"],
            "tangents": ["2", "0", "1"],
            "seconds": ["2", "-", "-"],
        }

    def test_verdicts(self):
        calibration = Calibration("abc", {}, None, None, {NAME: LIMIT, OTHER: OPEN})
        table = detection.verdict_table(judged(), calibration, NAME, count=4)
        assert cells(table) == {
            "condition": ["\\[unknown]", "c5", "c4", "c3"],
            NAME: ["7", "6", "5", "4"],
            "margin": ["+2.5", "+1.5", "+0.5", "-0.5"],
            "verdict": ["memorized", "memorized", "memorized (unsure)", "clean (unsure)"],
            "known": ["-", "memorized", "clean", "memorized"],
        }
        assert table.title == f"3 of 7 called memorized: {NAME} > 4.5"
        assert "95% of 80 clean ones" in table.caption
        assert "interval is 3.5 to 5.25; 4 of 7 shown" in table.caption
        other = detection.verdict_table(judged(), calibration, OTHER)
        assert other.title == f"4 of 7 called memorized: {OTHER} < -2"
        assert "shown" not in other.caption
        assert cells(other)["margin"][-2:] == ["-1", "-2"]

    def test_twenty_conditions_and_five_failures_are_shown(self):
        some = judged()
        many = Judged(some.cases * 3, some.records * 3, some.failed * 6)
        calibration = Calibration("abc", {}, None, None, {NAME: LIMIT})
        for table in (
            detection.verdict_table(many, calibration, NAME), detection.values_table(many),
        ):  # fmt: skip
            assert len(table.rows) == 20
        (line,) = detection.failures(many)
        assert line.startswith("[bold red]Failed: 6[/bold red] (")
        assert line.count("not finite") == 5
        assert ", and 1 more)" in line
        assert (
            "more" not in detection.failures(dataclasses.replace(many, failed=some.failed * 5))[0]
        )

    def test_thresholds(self):
        table = detection.threshold_table(Calibration("abc", {}, None, None, {NAME: LIMIT}))
        assert cells(table) == {
            "statistic @ t": [NAME],
            "memorized is": ["above"],
            "threshold": ["4.5"],
            "95% interval": ["3.5 to 5.25"],
        }
        assert table.caption == "95% of 80 clean ones are on the other side"
        table = detection.threshold_table(Calibration("abc", {}, None, None, {OTHER: OPEN}))
        assert cells(table)["memorized is"] == ["below"]
        assert cells(table)["95% interval"] == ["open to -1"]
        assert table.caption.startswith("90% of 20 clean ones are on the other side; too few")

    def test_dose(self):
        """Levels 1 and 2 hold c0, c2, c4 and c1, c3, c5; what has no level is left out."""
        table = detection.dose_table(judged())
        error = 2 / math.sqrt(3)  # of three numbers two apart
        assert cells(table) == {
            "level": ["copy rate", "memorized", NAME, OTHER],
            "1": ["0.20", "0 of 3", f"3 ± {error:.1g} | 20", f"-2 ± {error:.1g}"],
            "2": ["0.30", "3 of 3", f"4 ± {error:.1g} | 30", f"-3 ± {error:.1g}"],
        }
        every = judged()
        few = Judged(
            [dataclasses.replace(c, copy_rate=None) for c in every.cases[:3]],
            [{"network": {NAME: r["network"][NAME]}} for r in every.records[:3]], [],
        )  # fmt: skip
        assert cells(detection.dose_table(few)) == {
            "level": [NAME], "1": ["2 ± 1"], "2": ["2"],
        }  # fmt: skip
        assert detection.dose_table(Judged(few.cases[:1], few.records[:1], [])) is None

    def test_values(self):
        table = detection.values_table(judged(), count=2)
        assert cells(table) == {"condition": ["c0", "c1"], NAME: ["1", "2"], OTHER: ["0", "-1"]}
        assert table.caption == "and 5 more in results.csv"
        assert detection.values_table(judged(), count=7).caption is None

    def test_remarks(self):
        known, rates, few, failed = detection.remarks(
            judged(), [Summary(NAME, evaluation(0.5, num_positive=3))]
        )
        assert known == (
            "Known of the conditions: 3 memorized, 3 clean, 0 between (left out), 1 without a "
            "label (left out)."
        )
        assert "Clean conditions: 150; " in rates
        assert "in steps of 0.7%" in rates
        assert "allows 1 false positives" in rates
        assert few.startswith("No intervals: a class has only 3")
        assert failed.startswith("[bold red]Failed: 1[/bold red] ('\\[lost]': ")
        for enough in (evaluation(0.5, num_negative=200), evaluation(0.5, nearest=True)):
            assert len(detection.remarks(judged(), [Summary(NAME, enough)])) == 2
        alone = dataclasses.replace(judged(), failed=[])
        one_kind = Judged(alone.cases[1:2], alone.records[1:2], [])
        assert "all labelled conditions are memorized" in detection.remarks(one_kind, [])[1]
        unknown = Judged(alone.cases[6:], alone.records[6:], [])
        assert detection.remarks(unknown, [])[0].startswith("No ROC: the ground truth of both")


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
                        }
                    )  # fmt: skip
    return rows


class TestTruth:
    def test_copies_of_conditions(self):
        rows = [Truth("0 x1", 1, 0.9, 32, 30, 0.8, 0.99, 0.97),
                Truth("0 x3", 3, 0.85, 32, 8, 0.13, 0.42, 0.5)]  # fmt: skip
        assert cells(truth_table(rows)) == {
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
    table = spectrum_table(rows, tolerance=0.01)
    assert cells(table) == {
        "condition": ["cat", "", "cat #1", "cat #1"], "t": ["981", "", "981", "1"],
        "score": ["network", "exact", "network", "network"], "< 0": ["60"] * 4,
        "≈ 0": ["3"] * 4, "> 0": ["1"] * 4, "smallest": ["-1.0000"] * 4,
        "largest": ["0.1235"] * 4, "tr K": ["4.3", "", "4.3", "4.3"],
    }  # fmt: skip
    assert [row.end_section for row in table.rows] == [False, True, True, False]


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
        return mitigation.compare(rows, tuning=(0, 1), judged=(2, 3, 4), clean=(5,))

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
        assert (one.evaluations, one.seconds) == (100.5, 2.5)

    def test_chosen_strengths(self, rows):
        """0.9 of 0.8 must be kept: of perturb only 0.5 does, of sail both, and 1.0 copies less."""
        found = self.compare(rows)
        assert found.reference == pytest.approx(0.8)
        assert {n: c.point.outcomes.strength for n, c in found.chosen.items()} == {
            "sail": 1.0, "perturb": 0.5,
        }  # fmt: skip
        assert found.baseline.copy_rate.value == 1
        sail, perturb = found.chosen["sail"], found.chosen["perturb"]
        assert sail.reduction == pytest.approx(5 / 6)
        assert perturb.reduction == pytest.approx(1 / 2)
        assert sail.kept == pytest.approx(0.74 / 0.8)
        assert sail.against is None
        difference = (0.72 * 3 - 0.74 * 5) / 6
        assert perturb.against.difference.value == pytest.approx(difference)
        assert [name for name, _ in found.by_success()] == ["sail", "perturb"]

    @pytest.mark.parametrize(
        "changed", [{"tuning": (1, 2)}, {"tuning": ()}, {"judged": ()}, {"clean": ()}]
    )
    def test_prompts_of_a_kind_are_needed(self, rows, changed):
        parts = {"tuning": (0, 1), "judged": (2, 3, 4), "clean": (5,)} | changed
        with pytest.raises(ValueError, match="a comparison needs prompts to tune on"):
            mitigation.compare(rows, **parts)

    def test_tables(self, rows):
        found = self.compare(rows)
        table = cells(comparison.curve_table(found))
        assert table["method"] == ["none", "sail", "", "perturb", ""]
        assert table["strength"] == ["", "0.5", "1", "0.5", "1"]
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
        assert volumes[:3] == ["0.000", f"{volume:.3f}", ""]
        assert (table["evaluations"], table["s"]) == (["100"] * 5, ["2.50"] * 5)

        table = cells(comparison.chosen_table(found))
        assert (table["method"], table["strength"]) == (["sail", "perturb"], ["1", "0.5"])
        assert table["fewer copies"] == ["83%", "50%"]
        assert table["kept"] == ["92%", "90%"]
        assert table["against sail"][0] == table["p"][0] == ""
        assert table["against sail"][1].startswith("-0.257 [")
        assert table["p"][1] == f"{found.chosen['perturb'].against.p_value:.3f}"

        assert comparison.level_table(found, (1, 0, 4)) is None
        table = comparison.level_table(found, (1, 4, 4))
        assert cells(table) == {
            "method": ["none", "sail", "perturb"],
            "x1": ["1.00 | 0.00", "0.50 | 0.37", "0.50 | 0.36"],
            "x4": ["1.00 | 0.00", "0.00 | 0.74", "0.50 | 0.36"],
        }
        assert table.caption.endswith("1 prompts at x1, 2 prompts at x4")

    def test_files(self, rows, tmp_path):
        found = self.compare(rows)
        written = comparison.write_comparison(tmp_path, found)
        assert [p.name for p in written] == ["curves.csv", "chosen.csv", "tradeoff.png"]
        assert all(path.is_file() for path in written)
        with (tmp_path / "curves.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        points = [(n, p) for n, curve in found.curves.items() for p in curve.points]
        for line, (name, point) in zip(lines, points, strict=True):
            assert line["method"] == name
            volume = found.curves[name].hypervolume
            for column, value in {
                "strength": point.outcomes.strength, "copies": point.copy_rate.value,
                "copies_low": point.copy_rate.low, "copies_high": point.copy_rate.high,
                "other": 0.5, "fidelity": point.fidelity.value, "success": point.success.value,
                "hypervolume_low": volume.low, "hypervolume_high": volume.high,
                "evaluations": 100.5, "seconds": 2.5,
            }.items():  # fmt: skip
                assert float(line[column]) == pytest.approx(value, rel=1e-5), column
        with (tmp_path / "chosen.csv").open(newline="") as file:
            sail, perturb = csv.DictReader(file)
        assert (sail["method"], sail["difference"], sail["p_value"]) == ("sail", "", "")
        assert float(sail["reduction"]) == pytest.approx(5 / 6, rel=1e-5)
        against = found.chosen["perturb"].against
        assert float(perturb["difference"]) == pytest.approx(against.difference.value, rel=1e-5)
        assert float(perturb["p_value"]) == pytest.approx(against.p_value, rel=1e-5)

    def test_the_verdict_in_words(self, rows):
        chosen = comparison.chosen_rows(self.compare(rows))
        line = comparison.verdict_line(chosen)
        assert line == (
            "The aim, 80% fewer copies at 90% of the clean prompts' fidelity, is reached by sail."
        )
        at_the_aim = {"method": "a", "reduction": 0.8, "kept": 0.9, "success": 0.1}
        short = [at_the_aim | {"method": "b", "reduction": 0.79, "success": 0.3},
                 at_the_aim | {"method": "c", "kept": 0.89, "success": 0.2}]  # fmt: skip
        assert "is reached by a." in comparison.verdict_line([*short, at_the_aim])
        line = comparison.verdict_line(short)
        assert "No method reaches the aim" in line
        assert "b: 79% fewer copies at 90% of the fidelity" in line


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
    PROMPTS = ("a [cat]", "", "dog")
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
        first, second, third = prompt_rows(self.rows(), self.RECORDS, self.PROMPTS, self.FOUND)
        assert first == {
            "prompt": "a [cat]", "statistic": 3.5, "verdict": "memorized",
            "score_difference_before": 2.5, "score_difference_after": 1.5,
            "copied_before": 0.5, "copied_after": 0.0,
            "fidelity_before": 0.375, "fidelity_after": 0.375,
            "images_before": ["a", "b"], "images_after": ["c", "d"], "treated": True,
            "details": self.RECORDS[1]["details"], "error": None,
        }  # fmt: skip
        assert (second["statistic"], second["verdict"]) == (None, "not finite")
        assert (second["treated"], second["error"]) == (False, "NaN")
        assert (third["treated"], third["error"], third["copied_after"]) == (False, None, None)
        alone = prompt_rows(self.rows(fidelity=False), self.RECORDS, self.PROMPTS, None)
        assert {row["fidelity_before"] for row in alone} == {None}
        assert {row["verdict"] for row in alone} == {None}

    def test_table(self):
        table = prompt_table(self.rows(), self.RECORDS, self.PROMPTS, self.FOUND, "sail")
        assert cells(table) == {
            "prompt": ["a \\[cat]", "(empty prompt)", "dog"],
            "detection": ["3.500 memorized", "not finite", "0.500 clean"],
            "‖s_D‖": ["2.50 → 1.50", "2.50", "2.50"],
            "copies": ["0.50 → 0.00", "0.50", "0.50"],
            "fidelity": ["0.38 → 0.38", "0.38", "0.38"],
        }
        assert "memorized above 4.500" in table.caption
        blind = prompt_table(self.rows(False), self.RECORDS, self.PROMPTS, None, "sail")
        assert cells(blind)["detection"] == cells(blind)["fidelity"] == [""] * 3

    def test_remarks(self):
        told = prompt_remarks(self.RECORDS, self.PROMPTS, [0, 1], self.FOUND)
        assert told[0].startswith(
            "2 of 3 prompts are called memorized, 1 are treated; the images of the other 1 are"
        )
        assert told[1].startswith("1 of 2 descents spent their steps")
        assert told[2].startswith("2 noises no longer look like draws of N(0, I) (a z-score beyond")
        assert told[2].endswith("the longest has 1.50 times the usual length.")
        assert told[3].startswith("[red]1 failed[/red]")
        assert len(told) == 4
        told = prompt_remarks(self.RECORDS[:1], self.PROMPTS, [], None)
        assert told == ["0 of 3 prompts are treated (--all-prompts: none was judged)."]


def test_images_of_a_record_are_those_on_disk(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / f"{i}.png")
    found = _images(tmp_path, {"images": ["1.png", "0.png"]})
    np.testing.assert_allclose(found, pixels[::-1].transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)
