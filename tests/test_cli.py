"""The command line as a user meets it: real processes, killed and resumed; one line per mistake."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import matplotlib.image
import pytest

from sharpjax import cli
from sharpjax.commands.options import tell_written, wide_console

IMAGES = Path(__file__).parents[1] / "docs" / "figures"


def sharpjax(*arguments, cwd=None, **options):
    """Run the command in a process of its own, its compilation cache shared by the tests."""
    return subprocess.run(
        [sys.executable, "-m", "sharpjax", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=500,
        **options,
    )


@pytest.mark.slow
def test_ctrl_c_leaves_at_once_and_says_what_is_left(tiny_directory, tmp_path):
    arguments = ["spectrum", "--model", tiny_directory, "--output", tmp_path / "run"]
    arguments += ["--condition", "0 x1", "--steps", "200", "--stages", "200"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sharpjax", *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    path, deadline = tmp_path / "run" / "results.jsonl", time.monotonic() + 300
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert told == "\nstopped; a run with a directory goes on by the same command\n"
    assert len(records(path)) >= 1


def failure(monkeypatch, capsys, *arguments):
    """The message of a command that must fail, run in this process."""
    monkeypatch.setattr(sys, "argv", ["sharpjax", *map(str, arguments)])
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")  # leave JAX's configuration alone
    jax.devices()  # and its devices: they cannot be changed once they are there
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    return capsys.readouterr().err


def kill_after_lines(arguments, path, lines, cwd):
    """Start the command and SIGKILL it once `path` has that many lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sharpjax", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 400
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_detect_killed_and_resumed_loses_nothing(tiny_directory, tmp_path):
    def command(output):
        return ["detect", "--model", tiny_directory, "--output", output, "--batch", 1]

    whole = sharpjax(*command("whole"), cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    killed = tmp_path / "killed" / "results.jsonl"
    kill_after_lines(command("killed"), killed, 2, tmp_path)
    saved = killed.read_bytes()
    assert 2 <= saved.count(b"\n") < 6
    again = sharpjax(*command("killed"), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert killed.read_bytes().startswith(saved[: saved.rfind(b"\n") + 1])
    # the same program on the same machine: bit for bit, in order, without duplicates
    assert records(killed) == records(tmp_path / "whole" / "results.jsonl")

    with (tmp_path / "whole" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["condition"] for row in rows] == ["0 x1", "0 x3", "0 x12", "1 x1", "1 x3", "1 x12"]
    assert [row["level"] for row in rows] == ["1", "3", "12"] * 2
    assert float(rows[0]["oracle effective_dimension@600"]) == pytest.approx(0, abs=1e-4)
    assert matplotlib.image.imread(tmp_path / "whole" / "dose_response.png").std() > 0.05
    told = " ".join(whole.stdout.split())
    assert "By level (number of conditions): mean ± standard error" in told
    assert "training images of the condition" in told
    assert "ground truth of both classes is not known" in told


@pytest.mark.slow
def test_ground_truth_then_detect_judges(tiny_directory, tmp_path):
    """Made-up verdicts would prove nothing: the untrained network must be found clean."""
    run = sharpjax(
        "ground-truth", "--model", tiny_directory, "--output", "truth", "--samples", 4,
        "--steps", 4, "--json", cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    truths = json.loads(run.stdout)["truths"]
    assert [t["verdict"] for t in truths] == ["clean"] * 6
    assert all(t["num_samples"] == 4 and 0 < t["threshold"] < 1 for t in truths)
    assert len(list((tmp_path / "truth" / "samples").glob("*.png"))) == 6


def test_runs_are_joined_on_one_page(tmp_path, detection_run, mitigation_run):
    from typer.testing import CliRunner

    from sharpjax.cli import app

    detection_run(tmp_path / "d")
    mitigation_run(tmp_path / "m")
    arguments = ["report", tmp_path / "d", tmp_path / "m", "--output", tmp_path / "both.html"]
    ran = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    page = (tmp_path / "both.html").read_text()
    assert told == {"report": str(tmp_path / "both.html"), "bytes": len(page.encode())}
    arguments[-1] = tmp_path / ("long " * 20) / "page.html"
    (line,) = CliRunner().invoke(app, [*map(str, arguments)]).stdout.splitlines()
    assert line.startswith(f"Written to {arguments[-1]} (")  # no path is broken
    assert ">Verdicts</h2>" in page
    assert ">Mitigation: before and after</h2>" in page
    assert "sharpjax mitigate --model" not in page  # that run is there


def test_what_scripts_read_is_not_broken_over_lines(capsys):
    path = Path("a folder", "x" * 100, "[y]")
    tell_written(path, ["results.jsonl", "grid.png"], path / "report.html", then="; done")
    told = capsys.readouterr().out.splitlines()
    assert told == [
        f"Written to {path}: results.jsonl, grid.png; done",
        f"To look at: {path}/report.html",
    ]


def test_no_test_is_told_a_width():
    """Neither here nor in a process: the tables of a pipe are the same under pytest-xdist."""
    code = "from sharpjax.commands import options; print(options.wide_console().width)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (wide_console().width, child.stdout, child.stderr) == (160, "160\n", "")


def test_version_and_help():
    assert sharpjax("--version").stdout.strip() == "sharpjax 0.2.0"
    text = sharpjax("detect", "--help", env={**os.environ, "COLUMNS": "200"}).stdout
    for word in ("--model", "--output", "--noises", "--probes", "--all", "resumes"):
        assert word in text
    assert "which are refused otherwise" in text  # links


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("detect", "--model", "mnist", "--condition", "12 x4"), "got '12 x4'"),
        (("detect", "--devices", 4096), "4096 devices were asked for, this process has"),
        (("detect", "--model", "mnist", "--steps", 2000), "--steps: num_steps must lie in 1..1000"),
        (
            ("dimension", IMAGES, "--model", "mnist", "--times", "5,1000"),
            "--times: timestep t must",
        ),
        (("images", IMAGES, "--model", "mnist", "--timestep", 1000), "--timestep: timestep t must"),
        (("ground-truth", "--captions", 3), "are for models of captions, mnist is one of cond"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    told = failure(monkeypatch, capsys, *arguments)
    assert told.startswith("error: ")
    assert message in told
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir()), "a mistake must not leave a directory behind"


@pytest.mark.parametrize(("command", "option"), [("detect", "prompts"), ("spectrum", "condition")])
def test_a_model_of_prompts_needs_some(
    command, option, stable_diffusion_directory, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    told = failure(monkeypatch, capsys, command, "--model", stable_diffusion_directory)
    assert told.startswith("error: ")
    assert f"--{option}" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_directories_that_cannot_be_used(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert "is a file" in failure(monkeypatch, capsys, "detect", "--output", "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    assert "not empty" in failure(monkeypatch, capsys, "detect", "--output", "full")
    assert "cannot write" in failure(monkeypatch, capsys, "detect", "--output", "/proc/nowhere")
    (tmp_path / "empty").mkdir()
    assert "no model_index.json" in failure(monkeypatch, capsys, "detect", "--model", "empty")
