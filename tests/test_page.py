"""The page of a run: what it says, of whole and of broken runs."""

import csv
import html
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from sharpjax.page import write_page
from sharpjax.provenance import ABOUT_NAME, FORMAT, Clock, read_about
from sharpjax.rundir import append_lines, claim

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
    judged = detection_run(folder)
    return folder, judged, write_page([folder]).read_text()


@pytest.fixture
def run(ordinary, tmp_path):
    """A copy of the ordinary run, to be damaged."""
    return shutil.copytree(ordinary[0], tmp_path / "run")


def rows_of(page):
    """The cells of the table of verdicts."""
    table = page[page.index('id="verdicts"') :]
    body = table[table.index("<tbody>") : table.index("</tbody>")]
    return [
        [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    ]


class TestDetection:
    def test_it_says_what_the_files_say(self, ordinary, text_of):
        folder, judged, page = ordinary
        text = text_of(folder / "report.html")
        with (folder / "results.csv").open() as file:
            rows = list(csv.DictReader(file))
        called = [row for row in rows if row["verdict"].startswith("memorized")]
        assert f"{len(called)} of 40 are called memorized" in text
        cells = rows_of(page)
        assert {row[0] for row in cells} == {case.condition for case in judged.cases}
        margins = [float(row[2]) for row in cells]
        assert margins == sorted(margins, reverse=True)  # the most suspicious first
        first = next(row for row in rows if row["condition"] == cells[0][0])
        assert cells[0][1] == first["verdict"]
        value, half = cells[0][5].split(" ± ")
        assert float(value) == pytest.approx(float(first[f"network {NAMES[0]}"]), abs=0.05)
        assert float(half) == pytest.approx(
            float(first[f"network {NAMES[0]} half-width"]), rel=0.05
        )
        auc = json.loads((folder / "summary.json").read_text())[0]["network"]["auc"]
        assert f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" in text

    def test_every_section_and_a_figure_for_every_statistic(self, ordinary):
        page = ordinary[2]
        for title in (
            "What was run", "Verdicts", "How well each statistic detects", "Where the values lie",
            "Dose and response", "Cost", "What can be added", "How to read this",
        ):  # fmt: skip
            assert f">{title}</h2>" in page
        for label in ("ROC curve of", "Histogram of"):
            assert page.count(f'aria-label="{label}') == len(NAMES)
        assert page.count(" against the level") == len(NAMES) + 1  # and the copy rate

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
        assert "No ground truth of both kinds is known" in text
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
        claim(tmp_path / "run", {"run": "detect", "model": "a", "num_conditions": 3}, what="detect")
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
    shown = {row[0] for row in rows_of(page)}
    assert {p for p in prompts if p.isprintable() and len(p) <= 500} <= shown
    assert f"{('long ' * 100)}… (10,000 characters)" in shown
    assert "bell␇ null␀ escape␛" in shown
    assert "49" not in {cell for row in rows_of(page) for cell in row}


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
        claim(tmp_path / "two", {"run": "detect", "model": "other"}, what="detect")
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
            ("settings.json", '{"run": "training", "model": "a"}', "run of kind 'training'"),
            ("settings.json", '{"run": "spectrum", "model": "a"}', "do not say what a run"),
            ("about.json", "{", "about.json is not valid JSON"),
            ("about.json", "[]", "not a record of a run"),
            ("about.json", json.dumps({"format": FORMAT + 1}), "newer version"),
            ("about.json", json.dumps({"format": FORMAT, "command": 5}), "not a record of a run"),
            ("summary.json", "[5]", "do not say what a run"),
            ("summary.json", '[{"name": "a", "network": {"auc": 1}}]', "do not say what a run"),
            ("results.csv", "a,b\n1,2\n", "do not say what a run"),
            ("results.csv", "condition\na\n", "do not say what a run"),
            ("summary.json", "{", "summary.json is not valid JSON"),
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


@pytest.mark.parametrize("model", ["openmoji", "my model"])
def test_what_can_be_added_are_commands_that_run(run, model):
    about = json.loads((run / "about.json").read_text()) | {"model": model}
    (run / "about.json").write_text(json.dumps(about))
    page = html.unescape(write_page([run]).read_text())
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

    def test_a_stopped_run_shows_its_images(self, tmp_path, text_of, mitigation_run):
        mitigation_run(tmp_path / "run", finished=False)
        path = write_page([tmp_path / "run"])
        assert "not finished" in text_of(path)
        assert path.read_text().count("<img") == 12

    def test_missing_and_broken_images_are_left_out(self, tmp_path, mitigation_run):
        mitigation_run(tmp_path / "run")
        (tmp_path / "run" / "images" / "none-0-0.png").unlink()
        (tmp_path / "run" / "images" / "none-0-1.png").write_bytes(b"no image")
        assert write_page([tmp_path / "run"]).read_text().count("<img") == 6

    def test_names_lead_to_no_file_outside(self, tmp_path, mitigation_run):
        rows = mitigation_run(tmp_path / "run")
        Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
        rows[0]["images_before"] = ["../secret.png", str(tmp_path / "secret.png")]
        (tmp_path / "run" / "prompts.json").write_text(json.dumps(rows))
        assert write_page([tmp_path / "run"]).read_text().count("<img") == 6

    def test_links_lead_to_no_file_outside(self, tmp_path, mitigation_run):
        mitigation_run(tmp_path / "run")
        Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
        image = tmp_path / "run" / "images" / "none-0-0.png"
        image.unlink()
        image.symlink_to(tmp_path / "secret.png")
        assert write_page([tmp_path / "run"]).read_text().count("<img") == 7


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
    [("results.csv", "results.csv leads out"), ("summary.json", "summary.json leads out")],
)
def test_tables_outside_the_run_are_not_read(name, message, run, tmp_path):
    (run / name).rename(tmp_path / name)
    (run / name).symlink_to(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        write_page([run])


def test_a_column_of_the_table_leads_to_no_spectra_outside(run):
    """``spectra/COLUMN`` is read, and the column's name may be anybody's."""
    table = (run / "results.csv").read_text()
    about = json.loads((run / "about.json").read_text())
    name = about["decide_by"]
    (run / "results.csv").write_text(table.replace(f"network {name}", "network ../../.."))
    (run / "about.json").write_text(json.dumps(about | {"decide_by": "../../.."}))
    with pytest.raises(ValueError, match="leads out of the run directory"):
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
    from sharpjax.page.drawing import picture

    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    small = picture(tmp_path / "large.png", "large")
    assert small.source.startswith("data:image/jpeg")
    assert len(small.source) < (tmp_path / "large.png").stat().st_size / 10
    assert picture(tmp_path / "none.png", "absent") is None


def test_a_second_command_adds_its_time(tmp_path):
    for _ in range(2):
        Clock("mnist").record(tmp_path, remark="")
    about = read_about(tmp_path)
    assert len(about["sessions"]) == 2
    assert about["versions"]["sharpjax"]
    assert (tmp_path / ABOUT_NAME).is_file()


class TestSpectra:
    def test_ends_of_every_spectrum(self, tmp_path, text_of):
        folder = tmp_path / "run"
        settings = {"run": "spectrum", "model": "abc", "conditions": ["a $x", "b"],
                    "num_noises": 1, "num_stages": 1}  # fmt: skip
        claim(folder, settings, what="spectrum")
        values = np.linspace(-1, 0.5, 16).tolist()
        krylov = {"values": values[::5], "residuals": [0.0] * 4}
        record = {"condition": "a $x", "noise": 0, "step": 0, "t": 981, "sigma": 1.0,
                  "exact": values, "asymmetry": 0.0, "lanczos": krylov, "arnoldi": krylov,
                  "oracle": None}  # fmt: skip
        append_lines(folder / "results.jsonl", [record])
        path = write_page([folder])
        assert "1 of 2 spectra" in text_of(path)
        assert 'aria-label="Eigenvalues of a $x at t = 981"' in path.read_text()
        append_lines(folder / "results.jsonl", [record | {"condition": "b"}])
        assert "of 2 spectra" not in text_of(write_page([folder]))
