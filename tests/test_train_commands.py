"""`sharpjax train`: killed, out of disk, or asked for something else, nothing is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sharpjax import zoo
from sharpjax.mitigation.drawing_judge import read_control

STEPS, EVERY = 8, 2
ARGUMENTS = [
    "train", "drawings-vae", "--steps", str(STEPS), "--batch", "2", "--checkpoint-every",
    str(EVERY), "--output", "run",
]  # fmt: skip
COMMAND = [sys.executable, "-m", "sharpjax", *ARGUMENTS]
# The same, with one fresh rendering of each control instead of eight: those take minutes.
ONE_CONTROL = """
import functools
from sharpjax import cli
from sharpjax.mitigation import drawing_judge
drawing_judge.control = functools.partial(drawing_judge.control, repeats=1)
cli.main()
"""


def start(cwd, command=COMMAND):
    cwd.mkdir(exist_ok=True)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=cwd, **pipes)


def finish(cwd, command=COMMAND):
    process = start(cwd, command)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def finish_weights(cwd):
    """Until the weights are there, by one rename: thousands of images pass through them after that.

    Those of `uninterrupted` do; a run that was killed goes on to the same code.
    """
    process = start(cwd)
    while not (cwd / "run/vae").is_dir():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.kill()
    process.communicate()


def result(cwd):
    """The weights' bytes and the losses without what the clock and the memory say."""
    lines = (cwd / "run/losses.jsonl").read_text().splitlines()
    losses = [{k: json.loads(x)[k] for k in ("step", "loss", "groups")} for x in lines]
    return (cwd / "run/vae/diffusion_pytorch_model.safetensors").read_bytes(), losses


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("whole")
    code, out, err = finish(cwd, [sys.executable, "-c", ONE_CONTROL, *ARGUMENTS])
    assert code == 0, err
    assert "PSNR" in out
    assert "Scaling factor" in out
    assert read_control(cwd / "run/judge.json").renderings > 100
    return cwd


@pytest.mark.slow
def test_killed_and_on_a_full_disk_it_ends_the_same(uninterrupted, tmp_path):
    """A limit on the size of files stops a checkpoint as a full disk does.

    The shell sets it: Python code between fork and exec (preexec_fn) can hang for ever, since
    this process runs JAX's threads.
    """
    log = tmp_path / "run/losses.jsonl"
    process = start(tmp_path)
    while not (log.is_file() and len(log.read_text().splitlines()) >= 2):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    limited = ["bash", "-c", 'ulimit -f 195 && exec "$@"', "bash", *COMMAND]  # in KiB
    code, _, err = finish(tmp_path, limited)
    assert code == 1
    # The checkpoint writer's own threads complain too, at the same time and into the same lines.
    told = re.findall("error: cannot write a checkpoint to run/checkpoints.*", err)
    assert len(told) == 1, err
    assert "the same command goes on" in told[0]
    finish_weights(tmp_path)
    assert result(tmp_path) == result(uninterrupted)


@pytest.mark.slow
def test_other_settings(uninterrupted):
    before = result(uninterrupted)
    run = subprocess.run(
        [*COMMAND, "--learning-rate", "0.001"], cwd=uninterrupted, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "learning_rate: 0.002 there, 0.001 now" in run.stderr
    assert result(uninterrupted) == before


@pytest.mark.slow
@pytest.mark.parametrize("command", ["drawings", "drawings-classifier"])
def test_vae_that_is_not_one(command, tmp_path):
    other = zoo.ROOT / "drawings" / "unet"
    for vae, message in (("nowhere", "nowhere"), (other, "it holds UNet2DConditionModel")):
        run = subprocess.run(
            [sys.executable, "-m", "sharpjax", "train", command, "--vae", str(vae)],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 1
        assert message in run.stderr
        assert len(run.stderr.strip().splitlines()) == 1
        assert not list(Path(tmp_path).iterdir())
