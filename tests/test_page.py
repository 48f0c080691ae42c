"""The page of a run: what it says, of whole and of broken runs."""

import contextlib
import csv
import html
import io
import itertools
import json
import re
import shutil
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sharpjax.report import detect, detection, plots
from sharpjax.report.numbers import p_value, with_error
from sharpjax.report.page import write_page
from sharpjax.report.terminal import show
from sharpjax.rundir.about import ABOUT_NAME, Clock, read_about
from sharpjax.rundir.files import append_lines
from sharpjax.rundir.run import Run
from sharpjax.runs.truth_of_conditions import Truth, write_truths

pytestmark = pytest.mark.quick

NAMES = ("score_difference@981", "tiled_l2")  # of the runs that conftest.py writes


@pytest.fixture
def text_of(tmp_path):
    """What a page says, without its markup."""

    def read(path):
        page = path.read_text()
        body = page[page.index("<main") : page.index("</main>")]
        body = re.sub(r"<svg.*?</svg>", " ", body, flags=re.DOTALL)
        return html.unescape(re.sub(r"<[^>]+>", " ", body))

    return read


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory, detection_run):
    folder = tmp_path_factory.mktemp("ordinary") / "run"
    found = detection_run(folder)
    return folder, found.judged, write_page([folder]).read_text()


@pytest.fixture
def run(ordinary, tmp_path):
    """A copy of the ordinary run, to be damaged."""
    return shutil.copytree(ordinary[0], tmp_path / "run")


def rows_of(page, caption="Every condition"):
    """The cells of a table by their heads: that of verdicts, or another of this caption."""
    table = page[page.index(f"<caption>{caption}") :]
    head, body = table[: table.index("</table>")].split("<tbody>")
    names = [html.unescape(re.sub("<[^>]+>", "", x)) for x in re.findall("<th .*?</th>", head)]
    cells = [
        [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    ]
    return [dict(zip(names, row, strict=True)) for row in cells]


def printed_rows(blocks, title):
    """The cells of a table without empty ones, as a terminal has printed it."""
    console = Console(width=400, record=True, file=io.StringIO())
    show(console, blocks)
    lines = iter(console.export_text().splitlines())
    assert any(line.startswith(title) for line in lines)
    table = list(itertools.takewhile(str.strip, lines))
    line = next(place for place, text in enumerate(table) if set(text.strip()) == {"─"})
    return [re.split(r" {2,}", text.strip()) for text in table[line + 1 :]]


class TestDetection:
    def test_it_says_what_the_files_say(self, ordinary, text_of):
        folder, judged, page = ordinary
        text = text_of(folder / "report.html")
        with (folder / "results.csv").open() as file:
            rows = list(csv.DictReader(file))
        called = [row for row in rows if row["verdict"].startswith("memorized")]
        assert f"{len(called)} of 40 are called memorized" in text
        cells = rows_of(page)
        assert {row["condition"] for row in cells} == {case.condition for case in judged.cases}
        margins = [float(row["margin"]) for row in cells]
        assert margins == sorted(margins, reverse=True)  # the most suspicious first
        first = next(row for row in rows if row["condition"] == cells[0]["condition"])
        assert cells[0]["verdict"] == first["verdict"]
        value, half = cells[0][NAMES[0]].split(" ± ")
        assert float(value) == pytest.approx(float(first[f"network {NAMES[0]}"]), abs=0.05)
        assert float(half) == pytest.approx(
            float(first[f"network {NAMES[0]} standard error"]), rel=0.05
        )
        auc = json.loads((folder / "summary.json").read_text())[0]["network"]["auc"]
        assert f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" in text

    def test_terminal_files_and_page_show_the_same_numbers(self, ordinary):
        folder, judged, page = ordinary
        found = detection.read(Run.open(folder))
        assert found.judged == judged  # read again from the files
        sections = detect.sections(found)
        with (folder / "results.csv").open() as file:
            rows = {row["condition"]: row for row in csv.DictReader(file)}
        shown = rows_of(page)
        printed = printed_rows(sections, "Every condition")
        assert printed.pop() == ["20 of 40 shown, all in results.csv"]
        heads = ("condition", "verdict", "margin", "known", NAMES[0])
        assert printed == [[row[name] for name in heads] for row in shown[:20]]
        for row in shown:
            raw = rows[row["condition"]]
            assert (row["verdict"], row["known"]) == (raw["verdict"], raw["known"])
            assert row["margin"] == f"{float(raw[f'margin {NAMES[0]}']):+.3g}"
            for name in NAMES:
                mean, error = (
                    float(raw[f"network {name}{end}"]) for end in ("", " standard error")
                )
                assert row[name] == with_error(mean, error)
        with (folder / "summary.csv").open() as file:
            figures = {
                row["statistic"]: row
                for row in csv.DictReader(file)
                if (row["score"], row["memorized"], row["clean"]) == ("network", "all", "all")
            }
        shown = rows_of(page, "Detection of memorized")
        printed = printed_rows(sections, "Detection of memorized")
        assert printed[: len(NAMES)] == [list(row.values()) for row in shown]
        for row in shown:
            raw = figures[row["statistic @ t"]]
            for head, name in (("AUC", "auc"), ("TPR at FPR ≤ 1%", "tpr")):
                value, low, high = (float(raw[f"{name}{end}"]) for end in ("", "_low", "_high"))
                assert row[head] == f"{value:.3f} [{low:.3f}, {high:.3f}]"

    def test_the_paired_comparison_is_everywhere(self, ordinary):
        folder, _, page = ordinary
        with (folder / "comparisons.csv").open() as file:
            (raw,) = csv.DictReader(file)
        assert (raw["statistic"], raw["reference"]) == NAMES[::-1]
        assert (raw["num_memorized"], raw["num_clean"]) == ("20", "20")
        value, low, high, p = (float(raw[k]) for k in ("difference", "low", "high", "p_value"))
        told = json.loads((folder / "summary.json").read_text())[1]["comparison"]
        assert told == {
            "auc": {"value": value, "low": low, "high": high}, "p_value": p, "reference": NAMES[0],
        }  # fmt: skip
        title = f"Paired with {NAMES[0]}"
        (row,) = rows_of(page, title)
        cells = [NAMES[1], f"{value:.3f} [{low:.3f}, {high:.3f}]", *[p_value(p)] * 2, "20", "20"]
        assert list(row.values()) == cells
        assert printed_rows(detect.sections(detection.read(Run.open(folder))), title)[0] == cells

    def test_every_section_and_a_figure_for_every_statistic(self, ordinary):
        page = ordinary[2]
        for title in (
            "What was run", "Verdicts", "How well each statistic detects", "Where the values lie",
            "Dose and response", "Cost", "What can be added", "How to read this",
        ):  # fmt: skip
            assert f">{title}</h2>" in page
        for label in ("ROC curve of", "Histogram of"):
            assert page.count(f'aria-label="{label}') == len(NAMES)
        assert page.count(' against the level"') == len(NAMES) + 1  # and the copy rate

    def test_colours_belong_to_the_page(self, ordinary):
        page = ordinary[2]
        drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
        assert "var(--ink)" in drawn
        assert not re.findall(r"#[0-9a-f]{6}\b", drawn)

    def test_no_two_plots_share_an_id(self, ordinary):
        page = ordinary[2]
        by_plot = [set(re.findall(r'<clipPath id="(\w+)"', s)) for s in page.split("<svg")[1:]]
        everything = [name for names in by_plot for name in names]
        assert everything
        assert len(everything) == len(set(everything))

    def test_no_ground_truth(self, tmp_path, text_of, detection_run):
        detection_run(tmp_path / "run", labels=False)
        text = text_of(write_page([tmp_path / "run"]))
        assert "No ROC: the ground truth of both classes is not known" in text
        assert "ROC curve of" not in text
        assert "called memorized" in text

    def test_no_thresholds(self, tmp_path, text_of, detection_run):
        detection_run(tmp_path / "run", calibrated=False)
        text = text_of(write_page([tmp_path / "run"]))
        assert "No verdicts: thresholds are not known" in text
        assert "margin " not in text.split("How to read this")[0]

    def test_a_run_of_an_older_version_says_nothing_of_versions(self, run, text_of):
        (run / ABOUT_NAME).unlink()
        text = text_of(write_page([run]))
        assert "made by an older version" in text
        assert "called memorized" in text  # results.csv has its verdicts

    def test_a_stopped_run_shows_what_is_there(self, run, tmp_path, text_of):
        half = tmp_path / "half"
        half.mkdir()
        shutil.copy(run / "settings.json", half)
        lines = (run / "results.jsonl").read_bytes().splitlines(keepends=True)
        (half / "results.jsonl").write_bytes(b"".join(lines[:17]) + lines[17][:50])
        text = text_of(write_page([half]))
        assert "not finished: 17 of 40 are computed" in text
        assert "prompt 16" in text
        assert "prompt 17" not in text
        assert (half / "results.jsonl").read_bytes().endswith(lines[17][:50])  # only looked at

    def test_nothing_computed_yet(self, tmp_path, text_of):
        Run.claim(tmp_path / "run", "detect", {"model": "a", "num_conditions": 3})
        assert "0 of 3 are computed" in text_of(write_page([tmp_path / "run"]))


HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=1">',
    "</td></tr></table><h1>out</h1>",
    "</script><svg onload=alert(1)>",
    "$\\frac{1}{",
    "{{ 7*7 }}{% raw %}",
    "bell\x07 null\x00 escape\x1b",
    "العربية \u202ereversed",
    "😀 " * 50,
    "long " * 2000,
)


def test_prompts_are_text_whatever_they_hold(tmp_path, detection_run):
    prompts = [*HOSTILE, *(f"prompt {i}" for i in range(20))]
    detection_run(tmp_path / "run", prompts=prompts)
    page = write_page([tmp_path / "run"]).read_text()
    assert page.count("<script") == 1  # ours
    assert "<img src=x" not in page
    assert "<h1>out" not in page
    shown = {row["condition"] for row in rows_of(page)}
    assert {p for p in prompts if p.isprintable() and len(p) <= 500} <= shown
    assert f"{('long ' * 100)}… (10,000 characters)" in shown
    assert "bell␇ null␀ escape␛" in shown
    assert "49" not in {cell for row in rows_of(page) for cell in row.values()}


class TestSeveralRuns:
    def test_sections_are_joined(self, run, tmp_path):
        two = shutil.copytree(run, tmp_path / "two")
        page = write_page([run, two], tmp_path / "both.html").read_text()
        assert ">Verdicts</h2>" in page
        assert ">Verdicts (two)</h2>" in page
        anchors = re.findall(r'<section id="([^"]+)"', page)
        assert len(anchors) == len(set(anchors))
        nav = page[page.index("<nav") : page.index("</nav>")]
        assert re.findall(r'href="#([^"]+)"', nav) == anchors

    def test_of_different_models_are_refused(self, run, tmp_path):
        Run.claim(tmp_path / "two", "detect", {"model": "other"})
        with pytest.raises(ValueError, match="different models"):
            write_page([run, tmp_path / "two"])


class TestBadDirectories:
    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            write_page([tmp_path / "nowhere"])

    def test_a_file(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(FileNotFoundError, match="is a file"):
            write_page([tmp_path / "file"])

    def test_no_run_names_those_inside(self, run, tmp_path):
        shutil.move(run, tmp_path / "runs" / "detect-a")
        with pytest.raises(ValueError, match=r"holds no run.*detect-a"):
            write_page([tmp_path / "runs"])

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("settings.json", "{", "settings.json is not valid JSON"),
            ("settings.json", "[]", "settings.json is not what a run"),
            ("settings.json", '{"run": "detect"}', "settings.json is not what a run"),
            ("settings.json", '{"run": "detect", "model": "a"}', "was made by an earlier version"),
            (
                "settings.json",
                '{"format": 2, "run": "training", "model": "a"}',
                "run of kind 'training'",
            ),
            (
                "settings.json",
                '{"format": 2, "run": "spectrum", "model": "a"}',
                "do not say what a run",
            ),
            ("about.json", "{", "about.json is not valid JSON"),
            ("about.json", "[]", "not a record of a run"),
            ("about.json", json.dumps({"command": 5}), "not a record of a run"),
            ("results.csv", "a,b\n1,2\n", "do not say what a run"),
            ("results.csv", "condition,level\na,b\n", "do not say what a run"),
            ("results.jsonl", '{"condition": "a"}\n', "do not say what a run"),
            ("results.jsonl", '{"condition": "a", "network": 5}\n', "do not say what a run"),
            ("results.jsonl", "{\n", "results.jsonl, line 1 is not valid JSON"),
            ("thresholds.json", "{", "thresholds.json is not a calibration"),
        ],
    )
    def test_damaged_files_are_named(self, run, name, text, message):
        (run / name).write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)):
            write_page([run])

    def test_a_table_that_is_none(self, run):
        (run / "results.csv").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match=r"results\.csv"):
            write_page([run])

    def test_no_run_at_all(self):
        with pytest.raises(ValueError, match="at least one"):
            write_page([])


class TestPlaces:
    def test_nothing_but_an_earlier_page_is_overwritten(self, run, tmp_path):
        mine = tmp_path / "prompts.txt"
        mine.write_text("a cat")
        with pytest.raises(FileExistsError, match="no earlier page"):
            write_page([run], mine)
        assert mine.read_text() == "a cat"
        (tmp_path / "link.html").symlink_to(mine)
        with pytest.raises(FileExistsError, match="no earlier page"):
            write_page([run], tmp_path / "link.html")
        with pytest.raises(IsADirectoryError, match="name of a file"):
            write_page([run], tmp_path)
        with pytest.raises(FileExistsError, match="no earlier page"):
            write_page([run], "/dev/null")
        page = write_page([run], tmp_path / "new" / "page.html")
        before = page.stat().st_mtime_ns
        assert write_page([run], page).stat().st_mtime_ns > before

    def test_a_run_is_shown_once(self, run):
        with pytest.raises(ValueError, match="given twice"):
            write_page([run, run / ".." / run.name])


def test_tables_that_do_not_belong_to_the_run_are_told(run, text_of):
    path = run / "results.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]))
    assert "results.csv has 3 of 40 conditions" in text_of(write_page([run]))
    path.write_text(lines[0])
    assert "All 40 are computed, but the table of results" in text_of(write_page([run]))


def whole(page):
    """Without the marks at which a browser may break a line, or not."""
    return re.sub(r"<wbr>|<span class=\"whole\">(.*?)</span>", r"\1", html.unescape(page))


@pytest.mark.parametrize("model", ["drawings", "my model"])
def test_what_can_be_added_are_commands_that_run(run, model):
    about = json.loads((run / "about.json").read_text()) | {"model": model}
    (run / "about.json").write_text(json.dumps(about))
    page = whole(write_page([run]).read_text())
    own = " --prompts FILE --calibration FILE --clean FILE" if model == "my model" else ""
    quoted = f"'{model}'" if " " in model else model
    assert f'<pre tabindex="0">sharpjax mitigate --model {quoted}{own}</pre>' in page
    assert f"{about['command']} --spectra</pre>" in page


class TestMitigation:
    @pytest.mark.parametrize("prompts", ["5", "[5]", '[{"prompt": "a"}]', '{"a": 1}'])
    def test_damaged_tables_are_told(self, tmp_path, mitigation_run, prompts):
        mitigation_run(tmp_path / "run")
        (tmp_path / "run" / "prompts.json").write_text(prompts)
        with pytest.raises(ValueError, match="do not say what a run"):
            write_page([tmp_path / "run"])

    def test_images_before_and_after(self, tmp_path, text_of, mitigation_run):
        mitigation_run(tmp_path / "run")
        path = write_page([tmp_path / "run"])
        page, text = path.read_text(), text_of(path)
        assert "1 of 3 prompts are treated by sail at 0.5" in text
        assert "a <b>cat</b>" in text
        assert page.count("<img") == 2 * 3 + 2
        assert page.count(' copied"') == 2
        assert page.count("data:image/png;base64,") == 8
        assert "Red frame: a copy of a training image." in text

    def test_a_red_frame_is_promised_only_where_copies_were_judged(
        self, tmp_path, text_of, mitigation_run
    ):
        """With a judge that found none, and without one: its table has no such column then."""
        mitigation_run(tmp_path / "run")
        table = tmp_path / "run/images.csv"
        table.write_text(table.read_text().replace("True", "False"))
        text = text_of(write_page([tmp_path / "run"]))
        assert "None is judged a copy." in text
        table.write_text("\n".join(x.rsplit(",", 1)[0] for x in table.read_text().splitlines()))
        told = text_of(write_page([tmp_path / "run"]))
        assert "whether they copy was not judged" in told
        assert not any("red frame" in one.lower() for one in (text, told))

    def test_a_stopped_run_shows_its_images(self, tmp_path, text_of, mitigation_run):
        mitigation_run(tmp_path / "run", finished=False)
        path = write_page([tmp_path / "run"])
        assert "not finished" in text_of(path)
        assert path.read_text().count("<img") == 8
        assert "whether they copy was not judged" in text_of(path)

    def test_missing_and_broken_images_are_left_out(self, tmp_path, mitigation_run):
        mitigation_run(tmp_path / "run")
        (tmp_path / "run" / "images" / "none-0-0.png").unlink()
        (tmp_path / "run" / "images" / "none-0-1.png").write_bytes(b"no image")
        assert write_page([tmp_path / "run"]).read_text().count("<img") == 6

    def test_names_lead_to_no_file_outside(self, tmp_path, mitigation_run):
        mitigation_run(tmp_path / "run")
        Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
        path = tmp_path / "run" / "results.jsonl"
        text = path.read_text().replace("images/none-0-0.png", "../secret.png")
        path.write_text(text.replace("images/none-0-1.png", str(tmp_path / "secret.png")))
        assert write_page([tmp_path / "run"]).read_text().count("<img") == 6

    def test_links_lead_to_no_file_outside(self, tmp_path, mitigation_run):
        mitigation_run(tmp_path / "run")
        Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
        image = tmp_path / "run" / "images" / "none-0-0.png"
        image.unlink()
        image.symlink_to(tmp_path / "secret.png")
        assert write_page([tmp_path / "run"]).read_text().count("<img") == 7


def test_the_truth_of_conditions_is_on_its_page(tmp_path):
    Run.claim(tmp_path / "digits", "ground-truth", {"model": "abc"})
    write_truths(tmp_path / "digits", [Truth("7 x4", 4, 0.9, 32, 30, 0.8, 0.99, 0.97)])
    page = write_page([tmp_path / "digits"]).read_text()
    (row,) = rows_of(page, "Copies among samples")
    assert row["copies"] == "30 of 32"


@pytest.mark.fast_cases("samples.png")
@pytest.mark.parametrize("name", ["samples.png", "grid.png"])
def test_a_grid_outside_the_run_is_not_shown(name, run, tmp_path):
    """As the images of mitigation, these are of the run or are not there."""
    Image.new("RGB", (8, 8)).save(run / name)
    assert "<img" in write_page([run]).read_text()
    (run / name).rename(tmp_path / name)
    (run / name).symlink_to(tmp_path / name)
    assert "<img" not in write_page([run]).read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [("results.csv", "results.csv leads out"), ("thresholds.json", "thresholds.json leads out")],
)
def test_tables_outside_the_run_are_not_read(name, message, run, tmp_path):
    (run / name).rename(tmp_path / name)
    (run / name).symlink_to(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        write_page([run])


def test_a_column_of_the_table_leads_to_no_spectra_outside(run):
    """`spectra/COLUMN` is read, and the column's name may be anybody's."""
    about = json.loads((run / "about.json").read_text())
    lines = (run / "results.jsonl").read_text()
    (run / "results.jsonl").write_text(lines.replace(about["decide_by"], "../../.."))
    (run / "about.json").write_text(json.dumps(about | {"decide_by": "../../.."}))
    with pytest.raises(ValueError, match=r"do not say what a run|leads out of the run"):
        write_page([run])


def test_formulas_are_shown_as_the_prompts_that_they_are(tmp_path, text_of, detection_run):
    prompts = ["=1+1", "'-2", *map(str, range(6))]
    detection_run(tmp_path / "run", prompts=prompts)
    path = write_page([tmp_path / "run"])
    assert "\n'=1+1" in (tmp_path / "run" / "results.csv").read_text()
    text = text_of(path)
    assert "=1+1" in text
    assert "'=1+1" not in text
    assert "'-2" in text
    assert "''-2" not in text


def test_large_images_are_made_small(tmp_path):
    from sharpjax.report.drawing import picture

    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    small = picture(tmp_path, "large.png", "large")
    assert small.source.startswith("data:image/jpeg")
    assert len(small.source) < (tmp_path / "large.png").stat().st_size / 10
    assert picture(tmp_path, "none.png", "absent") is None


def test_counts_stand_at_whole_numbers(tmp_path, detection_run):
    """Of three prompts a histogram has no half ones."""
    found = detection_run(tmp_path, prompts=["a", "b", "c"], calibrated=False)
    figure = plots._drawn(detect._distributions(found))
    for axes in figure.axes:
        ticks = axes.get_yticks()
        np.testing.assert_array_equal(ticks, np.round(ticks))
        assert any(x != round(x) for x in axes.get_xticks())  # values have others
    plt.close(figure)


def test_a_second_command_adds_its_time(tmp_path):
    for _ in range(2):
        Clock("mnist").record(tmp_path, remark="")
    about = read_about(tmp_path)
    assert len(about["sessions"]) == 2
    assert about["versions"]["sharpjax"]
    assert (tmp_path / ABOUT_NAME).is_file()


def test_sessions_that_were_stopped_are_added(tmp_path, monkeypatch, detection_run):
    """By what they had noted, in runs inside of the run too; the one under way counts once."""
    monkeypatch.setattr("sharpjax.rundir.about.EVERY", 0.0)
    detection_run(tmp_path, about=False)

    def work(name, batches, stop):
        def one(batch, missing):
            for key in missing:
                time.sleep(0.06)
                yield {"index": key}
                if key == stop:
                    raise KeyboardInterrupt

        run = Run.claim(tmp_path / name, "x", {"model": "abc"}, key=["index"])
        with pytest.raises(KeyboardInterrupt) if stop else contextlib.nullcontext():
            run.work("testing", batches, one)
        noted = (run.folder / "sessions.jsonl").read_text().splitlines()[-1]
        return json.loads(noted)

    noted = [work("a", [[0, 1], [2, 3]], 1), work("a", [[0, 1], [2, 3]], 3), work("b", [[0, 1]], 1)]
    time.sleep(0.002)
    clock = Clock("mnist")
    time.sleep(0.002)
    work("b", [[0, 1], [2]], None)
    clock.record(tmp_path)
    sessions = read_about(tmp_path)["sessions"]
    assert sessions[:-1] == noted
    assert sessions[-1]["seconds"] > 0.05
    assert not list(tmp_path.rglob("sessions.jsonl"))
    total = f"{sum(s['seconds'] for s in sessions):g} s"
    assert f"<td>{total}</td>" in whole(write_page([tmp_path]).read_text())


class TestSpectra:
    def test_ends_of_every_spectrum(self, tmp_path, text_of):
        folder = tmp_path / "run"
        settings = {"model": "abc", "conditions": ["a $x", "b"], "num_noises": 1, "num_stages": 1}
        Run.claim(folder, "spectrum", settings)
        values = np.linspace(-1, 0.5, 16).tolist()
        krylov = {"values": values[::5], "residuals": [0.0] * 4}
        record = {"condition": "a $x", "noise": 0, "step": 0, "t": 981, "sigma": 1.0,
                  "exact": values, "asymmetry": 0.0, "lanczos": krylov, "arnoldi": krylov,
                  "oracle": None}  # fmt: skip
        append_lines(folder / "results.jsonl", [record])
        path = write_page([folder])
        assert "1 of 2 spectra" in text_of(path)
        assert 'aria-label="Eigenvalues of a $x at t = 981"' in path.read_text()
        append_lines(folder / "results.jsonl", [record | {"condition": "b", "exact": ["x"]}])
        with pytest.raises(ValueError, match="do not say what a run"):  # found when it is drawn
            write_page([folder])
        (folder / "results.jsonl").unlink()
        append_lines(folder / "results.jsonl", [record, record | {"condition": "b"}])
        assert "of 2 spectra" not in text_of(write_page([folder]))
