"""Several processes in one directory: the records of one, whoever is killed or finishes."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from flax import nnx

from sharpjax import PixelDiffusion, Schedule
from sharpjax.mesh.devices import HEARTBEAT_SECONDS
from sharpjax.networks import UNet2DModel
from sharpjax.rundir import files as rundir
from sharpjax.rundir.run import Run

NAMES = ("a", "b", "c", "d", "e", "f")


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """A model directory whose network compiles fast; its training set is not known."""
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
        num_class_embeds=len(NAMES) + 1,
        rngs=nnx.Rngs(0),
    )
    model = PixelDiffusion(unet, Schedule.create(), NAMES)
    return model.save_pretrained(tmp_path_factory.mktemp("models") / "smallest")


def command(smallest, output, *more):
    # One condition at a time on one device: the programs of any number of processes are the same.
    fixed = ["--batch", 1, "--devices", 1, "--noises", 4, "--probes", 4]
    fixed += ["--statistics", "score_difference,trace_difference"]
    arguments = ["detect", "--model", smallest, "--output", output, *fixed, *more]
    return [sys.executable, "-m", "sharpjax", *map(str, arguments)]


def start(smallest, output, count, own_options=None):
    """`count` processes of one run on this machine, each with options of its own if there are."""
    own_options = own_options or [[]] * count
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    options = [
        ("--coordinator", address, "--processes", count, "--process", i, *own_options[i])
        for i in range(count)
    ]
    return [
        subprocess.Popen(
            command(smallest, output, *more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for more in options
    ]


def finish(processes):
    told = [process.communicate(timeout=400) for process in processes]
    for process, (_, errors) in zip(processes, told, strict=True):
        assert process.returncode == 0, errors
    return told


def records(folder):
    """By condition; a duplicate is a failure."""
    found = {}
    for path in folder.glob("results.*jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            assert record["condition"] not in found
            found[record["condition"]] = record
    return found


@pytest.fixture(scope="module")
def whole(smallest, tmp_path_factory):
    """The run directory of one process, never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(command(smallest, folder), check=True, capture_output=True, timeout=400)
    return folder


@pytest.mark.slow
def test_two_processes_give_what_one_gives(smallest, whole, tmp_path):
    folder = tmp_path / "two"
    (tables, _), (nothing, told) = finish(start(smallest, folder, 2))
    assert "results.0.jsonl, results.1.jsonl, results.csv" in tables
    assert nothing == ""
    assert "process 0 writes the tables" in told
    assert not (folder / "results.jsonl").exists()
    shares = [rundir.read_lines(folder / f"results.{i}.jsonl") for i in range(2)]
    names = [[record["condition"] for record in share] for share in shares]
    assert names == [["a", "c", "e"], ["b", "d", "f"]]
    assert records(folder) == records(whole)
    assert (folder / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def kill_one(processes, folder, victim, lines):
    """SIGKILL a process once it has saved so much; the seconds until the last one has ended."""
    path, deadline = folder / f"results.{victim}.jsonl", time.monotonic() + 300
    while processes[victim].poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            processes[victim].send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert processes[victim].wait() == -signal.SIGKILL, "it ended before it could be killed"
    killed = time.monotonic()
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return time.monotonic() - killed, errors


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_process(victim, smallest, whole, tmp_path):
    folder = tmp_path / "killed"
    processes = start(smallest, folder, 2)
    seconds, errors = kill_one(processes, folder, victim, 1)
    assert processes[1 - victim].returncode not in (0, None)
    assert seconds < HEARTBEAT_SECONDS + 30
    assert "the same commands resume the run" in errors[1 - victim]
    expected = records(whole)
    saved = records_without_torn_lines(folder)
    assert 1 <= len(saved) < 6, "nothing was left to do"
    assert all(expected[name] == record for name, record in saved.items())

    others = tmp_path / "others"  # one process or three, where two began
    shutil.copytree(folder, others)
    torn = folder / f"results.{victim}.jsonl"
    with torn.open("a") as file:
        file.write('{"condition": "')
    finish(start(smallest, folder, 2))
    if victim == 0:
        subprocess.run(command(smallest, others), check=True, capture_output=True, timeout=400)
    else:
        finish(start(smallest, others, 3))
    for resumed in (folder, others):
        assert records(resumed) == expected
        assert (resumed / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def records_without_torn_lines(folder):
    return {
        record["condition"]: record
        for path in folder.glob("results.*jsonl")
        for record in rundir.read_lines(path, repair=False)
    }


def test_a_torn_line_of_another_process_is_left_alone(tmp_path):
    path = tmp_path / "results.1.jsonl"
    path.write_text('{"condition": "a"}\n{"condi')
    assert rundir.read_lines(path, repair=False) == [{"condition": "a"}]
    assert path.read_text().endswith('{"condi')
    assert rundir.read_lines(path) == [{"condition": "a"}]
    assert path.read_text() == '{"condition": "a"}\n'


@pytest.mark.parametrize("same", [True, False])
def test_many_claim_a_directory_at_once(same, tmp_path):
    """With the same settings all get it and go on at once; with others exactly one does."""

    def claim(folder, i, gate):
        gate.wait()
        try:
            Run.claim(folder, "detect", {"seed": 0 if same else i})
        except ValueError as error:
            return str(error)
        (folder / f"results.{i}.jsonl").touch()
        return ""

    count = 8
    with ThreadPoolExecutor(count) as pool:
        for attempt in range(25):
            folder, gate = tmp_path / str(attempt), threading.Barrier(count)
            told = list(pool.map(lambda i, f=folder, g=gate: claim(f, i, g), range(count)))
            assert told.count("") == (count if same else 1), told
            assert all("other settings (seed: " in line for line in told if line)
            assert json.loads((folder / "settings.json").read_text())["run"] == "detect"
            assert not list(folder.glob("*.part"))


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    Run.claim(tmp_path / "run", "x", {})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["settings.json"]


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others(smallest, whole, tmp_path):
    """Not after the minutes that JAX would wait at the end for a process that waits itself."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)  # process 0 has nothing to do but to wait
    first, second = start(smallest, folder, 2, own_options=([], ["--seed", 1]))
    started = time.monotonic()
    told = [process.communicate(timeout=200)[1] for process in (first, second)]
    assert time.monotonic() - started < HEARTBEAT_SECONDS + 60
    assert first.returncode not in (0, None)
    assert second.returncode == 1
    assert "holds a run with other settings (seed: 0 there, 1 now)" in told[1]
    assert "the same commands resume the run" in told[0]
