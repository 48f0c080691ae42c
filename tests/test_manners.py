"""A good guest: JSON on every command, bars on terminals alone, logging, tables for pandas."""

import ast
import dataclasses
import json
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import typer

import sharpjax
from sharpjax import cli, curvature, detection, runs
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


BEFORE_JAX = [  # a mistake, and what is said of it, before anything is loaded that takes a second
    ("detect --model mnits", "unknown model 'mnits'"),
    ("detect --noises 0", "'--noises'"),
    ("detect --trace-noises 8", "--trace-noises must be at most --noises = 4, got 8"),
    ("detect --batch 0", "'--batch'"),
    ("detect --devices 0", "'--devices'"),
    ("detect --guidance nan", "must be a finite number, got nan"),
    ("detect --dtype float16", "'--dtype'"),
    ("detect --statistics frist", "a statistic must be one of score_difference, "),
    ("detect --statistics ,", "statistics must name at least one"),
    ("detect --prompts no.txt", "no file of prompts no.txt: it is missing"),
    ("detect --prompts p.txt --condition a", "--prompts and --condition exclude each other"),
    ("detect --condition a --column b", "--column names a column of the file that --prompts gives"),
    ("detect --prompts p.txt --column b", "p.txt is text, a prompt on each line: leave --column"),
    ("detect --calibration no.json", "no.json"),
    ("detect --images x", "No such option: --images"),
    ("detect --processes 2", "--coordinator, --processes and --process go together"),
    (
        "detect --coordinator a:1 --processes 2 --process 2",
        "--process must be an integer from 0 to 1, got 2",
    ),
    (
        "detect --coordinator here --processes 2 --process 0",
        "--coordinator must be HOST:PORT, the host",
    ),
    ("images nowhere", "nowhere"),
    ("images . --directions 6", "--directions must be a multiple of 4, got 6"),
    ("calibrate --images . --prompts p.txt", "--images is without prompts"),
    ("calibrate --images . --squared", "--images computes the p-Laplacian alone"),
    ("calibrate --prompts labels.csv", "must hold clean ones only; 1 are labelled otherwise"),
    ("spectrum --stages 4 --steps 3", "--stages must be at most --steps = 3, got 4"),
    ("spectrum --score all", "'--score'"),
    ("ground-truth --samples 1", "'--samples'"),
    ("mitigate --method prayer", "unknown method prayer; choose from screened"),
    ("mitigate --methods sail", "--methods goes with --compare"),
    ("mitigate --sscd p.txt", "--sscd goes with --references: training images"),
    ("mitigate --clip x", "--clip goes with --references: training images"),
    ("sample --column b", "--column names a column of the file that --prompts gives"),
    ("report nowhere", "nowhere does not exist; give the run directory"),
    ("report .", "holds no run (settings.json is missing)"),
    ("train mnist --steps 0", "'--steps'"),
    ("verify --dim 1", "'--dim'"),
]
_IN_ONE_PROCESS = """
import contextlib, io, json, sys
from sharpjax import cli
told = []
for arguments in json.loads(sys.argv[1]):
    sys.argv, text = ["sharpjax", *arguments], io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    loaded = [name for name in ("jax", "numpy", "flax", "matplotlib") if name in sys.modules]
    told.append((code, " ".join(text.getvalue().split()), loaded))
print(json.dumps(told))
"""


def in_one_process(lines, cwd):
    """Exit status, what was said, and what was loaded by then, of each command."""
    arguments = json.dumps([line.split() for line in lines])
    run = subprocess.run(
        [sys.executable, "-c", _IN_ONE_PROCESS, arguments],
        capture_output=True, text=True, cwd=cwd, env={**os.environ, "COLUMNS": "250"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_mistakes_are_told_before_jax_is_loaded(tmp_path):
    (tmp_path / "p.txt").write_text("a\n")
    (tmp_path / "labels.csv").write_text("prompt,label\na,memorized\nb,clean\n")
    there = sorted(tmp_path.iterdir())
    found = in_one_process([line for line, _ in BEFORE_JAX], tmp_path)
    for (line, message), (code, told, loaded) in zip(BEFORE_JAX, found, strict=True):
        assert message in told, line
        assert code in (1, 2), line
        assert "Traceback" not in told
        assert loaded == [], line
    assert sorted(tmp_path.iterdir()) == there, "a mistake must not leave anything behind"


def test_help_of_every_command_loads_no_jax(tmp_path):
    lines = ["--help", "--version", *(" ".join([*words, "--help"]) for words in COMMANDS)]
    for line, (code, told, loaded) in zip(lines, in_one_process(lines, tmp_path), strict=True):
        assert (code, loaded) == (0, []), line
        assert "Usage:" in told or line == "--version"
        assert "…" not in told, line  # a word longer than its column is cut


def test_names_and_defaults_that_stand_as_text_are_those_of_the_registries():
    from sharpjax.checkpoints.pipeline import USUAL_GUIDANCE
    from sharpjax.commands import mitigate, options, train
    from sharpjax.commands import spectrum as spectrum_command
    from sharpjax.detection.calibration import QUANTILE
    from sharpjax.detection.registry import EVERYTHING, GROUPS
    from sharpjax.detection.settings import DetectSettings, ImageSettings
    from sharpjax.detection.statistics import STATISTICS
    from sharpjax.detection.summary import REFERENCE
    from sharpjax.mitigation.judging import SSCD_THRESHOLD
    from sharpjax.mitigation.methods import METHODS
    from sharpjax.recipes import drawings, drawings_classifier, drawings_vae, mnist
    from sharpjax.report.page import REPORT_NAME
    from sharpjax.runs.mitigate import MitigationSettings
    from sharpjax.runs.spectrum import SCORES, SpectrumSettings

    assert tuple(STATISTICS) == options.STATISTICS
    assert (*GROUPS, EVERYTHING) == options.GROUPS
    assert {n: (m.default, m.meaning) for n, m in METHODS.items()} == mitigate.STRENGTHS
    default = {
        words: {p.name: p.default for p in command.params} for words, command in COMMANDS.items()
    }
    told = {(words, p.name): p.help for words, command in COMMANDS.items() for p in command.params}
    settings, detect = DetectSettings(), default["detect",]
    for name, given in (
        ("num_noises", "noises"), ("num_steps", "steps"),
        ("num_probes", "probes"), ("squared", "squared"), ("seed", "seed"),
        ("alignment_weights", "alignment_weights"),
    ):  # fmt: skip
        assert getattr(settings, name) == detect[given], name
    images = ImageSettings(**{
        "num_directions": default["images",]["directions"],
        "timestep": default["images",]["timestep"], "exact": default["images",]["exact"],
    })  # fmt: skip
    assert (images, images.timestep) == (ImageSettings(), 400)
    assert default["calibrate",]["quantile"] == QUANTILE
    spectrum = default["spectrum",]
    assert get_args(spectrum_command.ScoreName) == SCORES
    assert SpectrumSettings() == SpectrumSettings(
        num_noises=spectrum["noises"], num_stages=spectrum["stages"], num_steps=spectrum["steps"],
        seed=spectrum["seed"],
    )  # fmt: skip
    mitigation = default["mitigate",]
    assert MitigationSettings() == MitigationSettings(
        num_images=mitigation["images"], num_steps=mitigation["steps"],
        max_steps=mitigation["max_steps"], penalty=mitigation["penalty"], seed=mitigation["seed"],
    )  # fmt: skip
    assert f"Default: {REFERENCE}," in told[("detect",), "decide_by"]
    assert f"above {SSCD_THRESHOLD}." in told[("mitigate",), "sscd"]
    assert settings.guidance == USUAL_GUIDANCE
    for command in ("detect", "mitigate", "sample"):
        told_there = told[(command,), "guidance"]
        assert f"is meant for, {USUAL_GUIDANCE:g} where it does not say" in told_there
    assert REPORT_NAME in told[("report",), "output"]
    for recipe in (
        mnist.MNIST_SETTINGS, drawings.SETTINGS, drawings_vae.VAE_SETTINGS,
        drawings_classifier.CLASSIFIER_SETTINGS,
    ):  # fmt: skip
        assert train.Training().options(recipe)["settings"] == recipe


def answer(monkeypatch, capsys, *arguments):
    """The one JSON document that a command prints."""
    monkeypatch.setattr(sys, "argv", ["sharpjax", *map(str, arguments), "--json"])
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")  # leave JAX's configuration alone
    jax.devices()  # and its devices: they cannot be changed once they are there
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None)
    return json.loads(capsys.readouterr().out)  # which takes one document and nothing beside


@pytest.mark.slow
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
        monkeypatch, capsys, "spectrum", *one, "--steps", 4, "--stages", 1,
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
    "from sharpjax.rundir.progress import progress\n"
    "with progress('measuring', total=3) as bar:\n"
    "    for i in range(3):\n"
    "        time.sleep(0.15)\n"
    "        bar.advance(note=f'prompt {i}')\n"
)


@pytest.mark.slow
def test_bars_are_for_terminals_and_leave_nothing_behind():
    told = in_a_terminal(BAR)
    assert "measuring" in told
    assert "/3" in told
    assert "prompt 1" in told
    assert "/s" in told  # a rate
    assert told.rstrip("\r\n").endswith("\x1b[2K")  # the line is erased at the end
    piped = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True)
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, "", "")


@pytest.mark.slow
def test_off_a_terminal_a_line_is_told_now_and_then():
    """So that a log says that it goes on; of less than half a minute nothing."""
    often = BAR.replace("total=3", "total=2000, done=10").replace(
        "with", "from sharpjax.rundir import progress as module\nmodule.EVERY = 0.4\nwith"
    )
    piped = subprocess.run([sys.executable, "-c", often], capture_output=True, text=True)
    assert (piped.returncode, piped.stdout) == (0, "")
    (line,) = piped.stderr.splitlines()
    assert re.fullmatch(r"measuring: 1[23] of 2,000, \d\.\d/s, \d+ min left", line), line


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


@pytest.mark.slow
def test_a_run_tells_its_steps_to_who_listens(tiny_model, tmp_path, caplog):
    settings = DetectSettings(statistics=("score_difference",), num_noises=1)
    options = {"fingerprint": "f", "batch_size": 1}
    with caplog.at_level(logging.INFO, logger="sharpjax"):
        runs.detect(tiny_model, ["0 x1"], tmp_path / "run", settings, **options)
    told = [(record.name, record.getMessage()) for record in caplog.records]
    assert ("sharpjax.rundir.run", f"{tmp_path / 'run'}: a new detect run") in told
    assert (
        "sharpjax.rundir.files",
        f"1 more on disk: {tmp_path / 'run' / 'results.jsonl'}",
    ) in told
    assert any("compilation included" in message for _, message in told)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="sharpjax"):
        runs.detect(tiny_model, ["0 x1"], tmp_path / "run", settings, **options)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'run'}: the detect run goes on"
    ]


@pytest.mark.slow
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
        f"INFO sharpjax.checkpoints.component: read {tiny_directory}/unet: UNet2DModel(",
        "INFO sharpjax.checkpoints.fingerprint: fingerprint of",
        "INFO sharpjax: compiled jit(",
        "INFO sharpjax.rundir.run: verbose: a new sample run",
    ):
        assert words in told["verbose"]
    assert all(line.startswith("INFO sharpjax") for line in told["verbose"].splitlines())


@pytest.mark.slow
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

    found = detection.evaluate(np.arange(20.0), np.arange(20) >= 10)
    row = pd.json_normalize(dataclasses.asdict(found))
    assert row.loc[0, "auc.value"] == 1
    assert row.loc[0, "num_negative"] == 10

    settings = DetectSettings(statistics=("score_difference",), num_noises=2)
    records = runs.detect(tiny_model, ["0 x1", "1 x3"], tmp_path / "run", settings, fingerprint="f")
    table = pd.json_normalize(records)
    assert list(table["condition"]) == ["0 x1", "1 x3"]
    assert table["network.score_difference@981"].map(len).tolist() == [2, 2]
