"""The training loop: it learns, and a run that is stopped anywhere ends bit for bit the same."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from sharpjax.datasets.mnist import planted_digits
from sharpjax.networks.unet_2d import UNet2DModel
from sharpjax.schedules import Schedule
from sharpjax.training import ClassDenoising, Data, Settings, averaged, kept_steps, train
from sharpjax.training.class_denoising import draw

GROUPS = ("single", "sixteen", "sixteen")
SETTINGS = Settings(steps=60, batch_size=16, learning_rate=3e-3, warmup=10, ema=0.9)
EVERY = 20


@functools.cache
def tiny_data():
    """Real digits at 8 x 8: a single 0, sixteen 0s, sixteen 1s; 24 x 24 averaged 3 x 3."""
    digits = planted_digits()
    numbers = [digits.names.index(name) for name in ("0 x1a", "0 x16", "1 x16")]
    pieces = [digits.images[digits.conditions == number] for number in numbers]
    images = np.concatenate(pieces)[:, :, 2:26, 2:26].reshape(-1, 1, 8, 3, 8, 3).mean((3, 5))
    return Data.create(images, np.repeat(range(3), [len(p) for p in pieces]), GROUPS)


def tiny_task(data=None, **schedule):
    return ClassDenoising(data or tiny_data(), Schedule.create(**schedule))


@functools.cache
def tiny_model(**changes):
    """Made once: training leaves its weights alone."""
    settings = dict(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type=None,  # less to compile
        num_class_embeds=4,
    )
    return UNet2DModel(**(settings | changes), rngs=nnx.Rngs(0))


def run(directory, settings=SETTINGS, **options):
    options = dict(checkpoint_every=EVERY) | options
    return train(tiny_model(), tiny_task(), directory, settings, **options)


def losses(directory):
    """`losses.jsonl` without what the clock and the memory say."""
    lines = (Path(directory) / "losses.jsonl").read_text().splitlines()
    measured = ("seconds_per_step", "peak_memory_mb")
    return [{k: v for k, v in json.loads(x).items() if k not in measured} for x in lines]


def final_state(directory, steps):
    with ocp.CheckpointManager(Path(directory).absolute() / "checkpoints") as manager:
        assert manager.latest_step() == steps
        return manager.restore(steps, args=ocp.args.StandardRestore())


def assert_same_run(found, expected, steps):
    """Parameters, average, optimizer and losses, bit for bit."""
    a, b = final_state(found, steps), final_state(expected, steps)
    assert set(a) == {"params", "ema", "optimizer", "step"}
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert len(jax.tree.leaves(a["optimizer"])) > 2 * len(jax.tree.leaves(a["params"]))
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
    assert losses(found) == losses(expected)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One uninterrupted run: its directory and the averaged model."""
    directory = tmp_path_factory.mktemp("training") / "run"
    before = jax.tree.map(np.array, nnx.state(tiny_model(), nnx.Param))
    model = run(directory)
    # The loop donates its buffers; those of the caller's model are not its to give away.
    for a, b in zip(
        jax.tree.leaves(nnx.state(tiny_model(), nnx.Param)), jax.tree.leaves(before), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    return directory, model


@pytest.mark.slow
def test_loss_falls_and_is_reported_per_group(trained):
    lines = losses(trained[0])
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert set(lines[0]["groups"]) == set(GROUPS)
    # predicting zero costs 1; even this network is well below it within 60 steps
    assert lines[0]["loss"] > 0.5
    assert lines[2]["loss"] < 0.6 * lines[0]["loss"]


@pytest.mark.slow
def test_returns_the_averaged_weights(trained):
    directory, model = trained
    found = nnx.state(model, nnx.Param)
    state = final_state(directory, SETTINGS.steps)
    for name in ("ema", "params"):
        kernel = state[name]["conv_in"]["kernel"]["value"]
        assert np.array_equal(found["conv_in"]["kernel"][...], kernel) == (name == "ema")


@pytest.mark.slow
@pytest.mark.parametrize("torn", ["", '{"step": 60, "loss": 0.1, "groups": {"single": 0.2}'])
def test_resume_is_bit_identical(trained, tmp_path, torn):
    """The state that a kill leaves: losses were written, their checkpoint was not."""
    stopped = shutil.copytree(trained[0], tmp_path / "run")
    shutil.rmtree(stopped / "checkpoints" / "60")
    if torn:  # killed while writing the line
        path = stopped / "losses.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:-1]) + torn)
    assert final_state(stopped, 40)["step"] == 40
    model = run(stopped)
    assert_same_run(stopped, trained[0], 60)
    for a, b in zip(
        jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(trained[1])), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_finished_run_is_left_alone(trained, tmp_path):
    done = shutil.copytree(trained[0], tmp_path / "run")
    log = (done / "losses.jsonl").read_bytes()
    run(done)
    assert (done / "losses.jsonl").read_bytes() == log
    assert_same_run(done, trained[0], 60)


SCRIPT = f"""
import dataclasses, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import jax
from test_training import SETTINGS, run
directory, steps, devices = sys.argv[1:]
assert len(jax.devices()) == int(devices)
run(directory, dataclasses.replace(SETTINGS, steps=int(steps)))
"""


def start(directory, steps, *, devices=1):
    """The same run in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    command = [sys.executable, "-c", SCRIPT, str(directory), str(steps), str(devices)]
    return subprocess.Popen(command, env=environment)


@pytest.mark.slow  # a process of its own
def test_number_of_devices_changes_nothing_beyond_float_error(trained, tmp_path):
    """Stopped on one device, resumed on two."""
    stopped = shutil.copytree(trained[0], tmp_path / "run")
    shutil.rmtree(stopped / "checkpoints" / "60")
    assert start(stopped, 60, devices=2).wait(300) == 0
    found, expected = losses(stopped), losses(trained[0])
    assert found[:2] == expected[:2]
    # Sums over the batch in another order, 1e-7 a step; Adam divides by its own small second
    # moments, so 20 steps amplify it.  A batch that is drawn differently moves the loss by 1e-1.
    assert abs(found[2]["loss"] / expected[2]["loss"] - 1) < 1e-3
    # one device reads what two have written
    a, b = (nnx.state(model, nnx.Param) for model in (run(stopped), trained[1]))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        # a learning rate of 3e-3 has moved every weight by some 0.03
        np.testing.assert_allclose(x, y, atol=1e-3)


@pytest.mark.slow  # two more compilations of the step in processes of their own
def test_killed_run_resumes_bit_identical(tmp_path):
    """SIGKILL at three places: right after losses were written, within a save, between saves."""
    steps = 400  # long enough to be caught in the middle
    settings = dataclasses.replace(SETTINGS, steps=steps)
    expected, directory = tmp_path / "expected", tmp_path / "killed"
    run(expected, settings)
    written = 0
    for delay in (0.0, 0.02, 0.1):
        process = start(directory, steps)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            log = directory / "losses.jsonl"
            lines = log.read_text().count("\n") if log.exists() else 0
            if lines > written + 2:  # it resumed, and went on past a checkpoint of its own
                break
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
        written = len(losses(directory))
        assert 2 < written < steps // EVERY
    run(directory, settings)
    assert_same_run(directory, expected, steps)


class Constant(nnx.Module):
    """The simplest network: one image, whatever it is shown."""

    config = {}

    def __init__(self):
        self.image = nnx.Param(jnp.zeros((1, 2, 2)))

    def __call__(self, sample, timestep, class_labels=None):
        return jnp.broadcast_to(self.image[...], sample.shape)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_what_is_predicted(kind, tmp_path):
    r"""The best constant is the mean of the target: 0, $-E[\sigma] x_0$, $x_0$ or $-x_0$."""
    x0 = np.array([[[0.9, -0.6], [0.3, -0.9]]], np.float32)
    task = tiny_task(Data.create(x0[None], np.zeros(1, int), ("all",)), prediction_type=kind)
    settings = Settings(steps=400, batch_size=64, learning_rate=0.03, warmup=1, ema=0.9)
    model = train(Constant(), task, tmp_path / "run", settings, checkpoint_every=400)
    mean = {"epsilon": 0.0, "v_prediction": -float(task.schedule.sigmas.mean()), "sample": 1.0,
            "flow_prediction": -1.0}[kind]  # fmt: skip
    # Noise of a batch, 1/8, averaged over the last some 100 steps by the falling learning rate.
    np.testing.assert_allclose(model.image[...], mean * x0, atol=0.06)


@pytest.mark.slow
def test_kept_checkpoints(trained, tmp_path):
    """Every `keep_every` steps a model stays, and is that of the run with so many steps."""
    directory = tmp_path / "run"
    run(directory, keep_every=EVERY)
    assert kept_steps(directory) == [20, 40, 60]
    assert kept_steps(trained[0]) == [40, 60]
    for step in (20, 60):
        state = nnx.state(averaged(tiny_model(), directory, step), nnx.Param)
        with ocp.CheckpointManager(directory.absolute() / "checkpoints") as manager:
            expected = manager.restore(step, args=ocp.args.StandardRestore())["ema"]
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 30, but of \[20, 40, 60\]"):
        averaged(tiny_model(), directory, 30)
    with pytest.raises(ValueError, match="keep_every must be a multiple of checkpoint_every=20"):
        run(tmp_path / "other", keep_every=30)


@pytest.mark.slow
def test_diverged_run_is_told(tmp_path):
    settings = dataclasses.replace(SETTINGS, learning_rate=1e30, warmup=0)
    with pytest.raises(FloatingPointError, match=r"the loss is .* at step .* of 60; train with le"):
        run(tmp_path / "run", settings)


@pytest.mark.slow
def test_no_room_for_a_checkpoint(trained, tmp_path, monkeypatch):
    """Nothing is begun, and with room again the run ends as if nothing had been."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(
        OSError, match=r"cannot write a checkpoint to .* MB, 0\.0 MB are free; .*goes"
    ):
        run(tmp_path / "run")
    monkeypatch.undo()
    run(tmp_path / "run")
    assert_same_run(tmp_path / "run", trained[0], SETTINGS.steps)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(steps=61), "steps: 60 there, 61 now"),
        (dict(batch_size=8), "batch_size: 16 there, 8 now"),
        (dict(seed=1, ema=0.5), r"ema: 0\.9 there, 0\.5 now.*seed: 0 there, 1 now"),
    ],
)
def test_other_settings_are_refused(changes, message, trained):
    log = (trained[0] / "losses.jsonl").read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        run(trained[0], dataclasses.replace(SETTINGS, **changes))
    assert str(trained[0]) in str(caught.value)
    assert (trained[0] / "losses.jsonl").read_bytes() == log


def test_other_model_data_and_schedule_are_refused(trained):
    with pytest.raises(ValueError, match="model: "):
        train(tiny_model(norm_num_groups=2), tiny_task(), trained[0], SETTINGS)
    fewer = dataclasses.replace(tiny_data(), images=tiny_data().images[:-1])
    with pytest.raises(ValueError, match=r"images: \[33, .* there, \[32, .* now"):
        train(tiny_model(), tiny_task(fewer), trained[0], SETTINGS)
    with pytest.raises(ValueError, match=r"schedule: .*there.*now"):
        train(tiny_model(), tiny_task(beta_end=0.02), trained[0], SETTINGS)
    other = ClassDenoising(tiny_data(), Schedule.create(), condition_dropout=0.5)
    with pytest.raises(ValueError, match=r"condition_dropout: 0\.2 there, 0\.5 now"):
        train(tiny_model(), other, trained[0], SETTINGS)


@pytest.mark.slow
def test_foreign_directory_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("three years of work")
    with pytest.raises(FileExistsError, match="not empty and holds no training run"):
        run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(FileExistsError, match="is a file"):
        run(tmp_path / "thesis.tex")


def test_damaged_settings_file_is_named(trained, tmp_path):
    damaged = shutil.copytree(trained[0], tmp_path / "run")
    (damaged / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON") as caught:
        run(damaged)
    assert str(damaged / "settings.json") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("batch_size", 0), ("batch_size", -1), ("ema", 1.0), ("ema", -0.1),
        ("decay", 0.0), ("decay", 1.1), ("decay", float("nan")), ("learning_rate", 0.0),
        ("learning_rate", float("nan")), ("clip", 0.0), ("warmup", -1), ("weight_decay", -0.1),
    ],
)  # fmt: skip
def test_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"{name} must .*, got {value}"):
        Settings(**{name: value})


@pytest.mark.fast_cases("1.0")
@pytest.mark.parametrize("value", [1.0, -0.1, float("nan")])
def test_condition_dropout_out_of_range(value):
    with pytest.raises(ValueError, match=r"condition_dropout must lie in \[0, 1\)"):
        ClassDenoising(tiny_data(), Schedule.create(), condition_dropout=value)


def test_learning_rate():
    """Up in the warm-up, flat, and down to nothing in the last part, as a half cosine."""
    update = Settings(steps=100, warmup=10, decay=0.5, learning_rate=0.1).optimizer()
    params = {"w": jnp.ones(3)}
    state = update.init(params)
    moved = []
    for _ in range(100):  # Adam's step for a constant gradient is the rate itself
        change, state = update.update({"w": jnp.ones(3)}, state, params)
        moved.append(-float(change["w"][0]))
    np.testing.assert_allclose(moved[:10], 0.1 * np.arange(10) / 10, atol=1e-4)
    np.testing.assert_allclose(moved[10:55], 0.1, atol=1e-4)
    falling = 0.05 * (1 + np.cos(np.pi * np.arange(45) / 45))
    np.testing.assert_allclose(moved[55:], falling, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_short_runs_have_a_learning_rate(steps):
    """The warm-up is cut to half of a short run instead of swallowing it."""
    update, state = Settings(steps=steps).optimizer(), None
    params = {"w": jnp.ones(3)}
    state = update.init(params)
    moved = []
    for _ in range(steps):
        change, state = update.update({"w": jnp.ones(3)}, state, params)
        moved.append(float(jnp.abs(change["w"]).max()))
    assert max(moved) > 1e-4
    assert np.isfinite(moved).all()


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([0, 0, 2, 2], "every condition in 0..2 needs an image"),
        ([0, 1, 2, 3], r"there may be no other, got \[0, 1, 2, 3\]"),
        ([0, 1, 2, -1], "there may be no other"),
        ([0, 1, 2], "equally many"),
    ],
)
def test_data_that_does_not_fit(conditions, message):
    with pytest.raises(ValueError, match=message):
        Data.create(np.zeros((4, 1, 8, 8)), np.array(conditions), GROUPS)


# --- batches -----------------------------------------------------------------------------------


def test_batches():
    """Conditions equally often, images of the condition equally often, timesteps stratified."""
    sizes = (1, 3, 16)
    owner = np.repeat(range(3), sizes)
    images = np.arange(20.0, dtype=np.float32)[:, None, None, None]  # an image names itself
    data = Data.create(images, owner, GROUPS)
    task = ClassDenoising(data, Schedule.create(), condition_dropout=0.25)
    keys = jax.random.split(jax.random.key(0), 400)
    x0, labels, t, noise, condition = jax.vmap(lambda key: draw(task, key, 50))(keys)

    image = np.asarray(x0).astype(int).ravel()
    condition, labels = np.asarray(condition).ravel(), np.asarray(labels).ravel()
    np.testing.assert_array_equal(owner[image], condition)
    dropped = labels == len(GROUPS)
    np.testing.assert_array_equal(labels[~dropped], condition[~dropped])
    n = len(image)

    def z(count, p):
        return abs(count - n * p) / np.sqrt(n * p * (1 - p))

    # 24 z-scores, fixed seed: P(any > 4) = 0.002
    assert z(dropped.sum(), 0.25) < 4
    for c in range(3):
        assert z((condition == c).sum(), 1 / 3) < 4
    for i in range(20):
        assert z((image == i).sum(), 1 / (3 * sizes[owner[i]])) < 4

    t = np.asarray(t)
    # one timestep in each of the 50 strata of 20, in random order; rounding may move an edge by one
    np.testing.assert_allclose(np.sort(t, axis=1) // 20, np.tile(np.arange(50), (400, 1)), atol=1)
    assert (t.min(), t.max()) >= (0, 980)
    assert t.max() <= 999
    assert np.abs(np.corrcoef(t[:, 0], t[:, 1])[0, 1]) < 0.2  # 4 standard errors of 400 pairs
    noise = np.asarray(noise).ravel()
    assert abs(noise.mean()) < 4 / np.sqrt(n)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / n)
