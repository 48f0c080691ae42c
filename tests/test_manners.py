"""A good guest: JSON on every command, bars on terminals alone, logging, tables for pandas."""

import ast
import dataclasses
import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import typer

import sharpjax
from sharpjax import cli, curvature, detection
from sharpjax.detection import DetectSettings

ROOT = Path(sharpjax.__file__).parent


def leaves(command, path=()):
    """`(words, command)` of every command that does something itself."""
    if isinstance(command, click.Group) or hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from leaves(child, (*path, name))
    else:
        yield path, command


COMMANDS = dict(leaves(typer.main.get_command(cli.app)))


def test_the_commands_are_found():
    assert {("detect",), ("ground-truth",), ("train", "mnist"), ("verify",)} <= COMMANDS.keys()
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_json(words):
    options = {name for parameter in COMMANDS[words].params for name in parameter.opts}
    assert "--json" in options, words


def answer(monkeypatch, capsys, *arguments):
    """The one JSON document that a command prints."""
    monkeypatch.setattr(sys, "argv", ["sharpjax", *map(str, arguments), "--json"])
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")  # leave JAX's configuration alone
    jax.devices()  # and its devices: they cannot be changed once they are there
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None)
    return json.loads(capsys.readouterr().out)  # which takes one document and nothing beside


def test_with_json_that_is_all_there_is_on_standard_output(
    tiny_directory, tmp_path, monkeypatch, capsys
):
    one = ("--model", tiny_directory, "--condition", "0 x1")
    run = tmp_path / "run"
    detected = answer(
        monkeypatch, capsys, "detect", *one, "--noises", 2, "--statistics", "score_difference",
        "--output", run,
    )  # fmt: skip
    assert detected["directory"] == str(run)
    spectra = answer(
        monkeypatch, capsys, "spectrum", *one, "--steps", 4, "--stages", 1, "--matvecs", 4,
        "--output", tmp_path / "spectrum",
    )  # fmt: skip
    assert len(spectra["spectra"]) >= 1
    drawn = answer(
        monkeypatch, capsys, "sample", "--model", tiny_directory, "--prompt", "0 x1", "--steps", 2,
        "--output", tmp_path / "images",
    )  # fmt: skip
    assert [image["prompt"] for image in drawn["images"]] == ["0 x1"]
    written = answer(monkeypatch, capsys, "convert", tiny_directory / "unet", tmp_path / "unet")
    assert written["directory"] == str(tmp_path / "unet")
    rows = answer(monkeypatch, capsys, "verify", "--samples", 1000, "--dim", 2)["rows"]
    assert {"L1", "P4"} <= {row["name"] for row in rows}

    table = pd.read_csv(run / "results.csv")
    assert list(table["condition"]) == ["0 x1"]
    assert table["network score_difference@981"].dtype == float


@pytest.mark.slow  # a network is compiled
def test_training_answers_in_json(tmp_path):
    arguments = ["--steps", "2", "--batch", "2", "--json", "--output", "run"]
    run = subprocess.run(  # a process of its own: it sets up devices
        [sys.executable, "-m", "sharpjax", "train", "mnist", *arguments],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {"directory": "run/model"}
    assert (tmp_path / "run/model/model_index.json").is_file()


def in_a_terminal(code):
    """What a program writes to a standard error that is a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(slave)
    told = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # how Linux says that nobody is at the other end any more
            break
        if not part:
            break
        told += part
    os.close(master)
    assert process.wait() == 0
    return told.decode()


BAR = (
    "import time\n"
    "from sharpjax.progress import progress\n"
    "with progress('measuring', total=3) as bar:\n"
    "    for i in range(3):\n"
    "        time.sleep(0.15)\n"
    "        bar.advance(note=f'prompt {i}')\n"
)


def test_bars_are_for_terminals_and_leave_nothing_behind():
    told = in_a_terminal(BAR)
    assert "measuring" in told
    assert "/3" in told
    assert "prompt 1" in told
    assert "/s" in told  # a rate
    assert told.rstrip("\r\n").endswith("\x1b[2K")  # the line is erased at the end
    piped = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True)
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, "", "")


def prints(path):
    """Lines on which a module calls `print`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print"
    ]


def test_the_library_does_not_print():
    commands = {ROOT / "cli.py", *(ROOT / "commands").glob("*.py")}
    assert any(prints(path) for path in commands), "the test finds no print: it is broken"
    wrong = {str(path): prints(path) for path in ROOT.rglob("*.py") if path not in commands}
    assert not {path: lines for path, lines in wrong.items() if lines}


def test_loggers_are_named_by_their_modules():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        if "getLogger(" in text and path.name != "cli.py":
            assert "getLogger(__name__)" in text, path


def test_a_run_tells_its_steps_to_who_listens(tiny_model, tmp_path, caplog):
    settings = DetectSettings(statistics=("score_difference",), num_noises=1)
    options = {"fingerprint": "f", "batch_size": 1}
    with caplog.at_level(logging.INFO, logger="sharpjax"):
        detection.detect(tiny_model, ["0 x1"], tmp_path / "run", settings, **options)
    told = [(record.name, record.getMessage()) for record in caplog.records]
    assert ("sharpjax.rundir", f"{tmp_path / 'run'}: a new detect run") in told
    assert ("sharpjax.rundir", f"1 more on disk: {tmp_path / 'run' / 'results.jsonl'}") in told
    assert any("compilation included" in message for _, message in told)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="sharpjax"):
        detection.detect(tiny_model, ["0 x1"], tmp_path / "run", settings, **options)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'run'}: the detect run goes on"
    ]


def test_verbose_says_what_was_read_and_compiled(tiny_directory, tmp_path):
    arguments = ["sample", "--model", str(tiny_directory), "--prompt", "0 x1", "--steps", "2"]
    told = {}
    for name, options in (("quiet", []), ("verbose", ["--verbose"])):
        run = subprocess.run(
            [sys.executable, "-m", "sharpjax", *options, *arguments, "--output", name],
            capture_output=True, text=True, cwd=tmp_path,
            # nothing is compiled beforehand
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / f"cache-{name}")},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        told[name] = run.stderr
    assert told["quiet"] == ""
    for words in (
        f"INFO sharpjax.models.checkpoints: read {tiny_directory}/unet: UNet2DModel(",
        "INFO sharpjax.models.fingerprint: fingerprint of",
        "INFO sharpjax: compiled jit(",
        "INFO sharpjax.rundir: verbose: a new sample run",
    ):
        assert words in told["verbose"]
    assert all(line.startswith("INFO sharpjax") for line in told["verbose"].splitlines())


def test_estimates_evaluations_and_records_make_tables(tiny_model, tmp_path):
    key, points = jax.random.key(0), jnp.array([[1.0, 2.0], [0.5, 1.0], [0.0, 3.0]])
    each = curvature.at_points(curvature.trace, lambda x: -(x**3), points, key=key, num_matvecs=8)
    table = pd.DataFrame(each.as_dict())
    assert table.shape[0] == 3
    np.testing.assert_array_equal(table["value"], each.value)
    np.testing.assert_array_equal(table["standard_error"], each.standard_error)
    assert set(table["num_matvecs"]) == {8}
    alone = [curvature.trace(lambda x: -(x**3), x, key=key, num_matvecs=8) for x in points]
    assert pd.DataFrame([one.as_dict() for one in alone])["value"].dtype == np.float32
    single = curvature.trace(lambda x: -x, points[0], key=key, num_matvecs=1)
    assert single.as_dict()["standard_error"] is None

    found = detection.evaluate(np.arange(20.0), np.arange(20) >= 10, num_bootstrap=100)
    row = pd.json_normalize(dataclasses.asdict(found))
    assert row.loc[0, "auc.value"] == 1
    assert row.loc[0, "num_negative"] == 10

    settings = DetectSettings(statistics=("score_difference",), num_noises=2)
    records = detection.detect(
        tiny_model, ["0 x1", "1 x3"], tmp_path / "run", settings, fingerprint="f"
    )
    table = pd.json_normalize(records)
    assert list(table["condition"]) == ["0 x1", "1 x3"]
    assert table["network.score_difference@981"].map(len).tolist() == [2, 2]
