"""`sharpjax audit`: losses and copies along training, killed and resumed, with a page."""

import csv
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import sharpjax as sj
from sharpjax.detection.audit import audited, first_to_stay, loss_gap, nearest_ratio
from sharpjax.networks import UNet2DModel
from sharpjax.report import audit as report
from sharpjax.report.blocks import Text
from sharpjax.report.page import write_page
from sharpjax.rundir.about import Clock
from sharpjax.runs import audit as runs
from sharpjax.runs.audit import Audited, AuditSettings, audit

SETTINGS = AuditSettings(times=(50, 300), num_noises=3, num_samples=5, num_steps=2)


def test_a_gap_is_the_logarithm_of_the_ratio_of_losses():
    rng = np.random.default_rng(0)
    common = rng.uniform(0.5, 2, size=(30, 3))
    found = loss_gap(0.25 * common, common)
    assert found.value == pytest.approx(np.log(4))
    logs = [np.log(x).mean(axis=1) for x in (0.25 * common, common)]
    from scipy.stats import ttest_ind

    expected = ttest_ind(logs[1], logs[0], equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-6)
    same = loss_gap(np.ones((3, 1)), np.ones((4, 1)))
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_bands_are_left_by_chance_as_often_as_they_say():
    """Nothing remembered, five checkpoints: either band is left by any in at most 5% of audits."""
    rng = np.random.default_rng(1)
    gaps = shows = 0
    for _ in range(400):
        losses = [np.exp(rng.normal(size=(40, 2))) for _ in range(10)]
        ratios = [(rng.uniform(size=50) < 0.1) * 0.1 + 0.2 + 0.5 * (rng.uniform(size=50) > 0.1)
                  for _ in range(6)]  # fmt: skip
        found = audited(losses[:5], losses[5:], ratios[:5], ratios[5])
        gaps += any(one.gap.low > 0 for one in found)
        shows += any(one.copies_show for one in found)
    # one-sided of a two-sided interval: half of the error
    assert gaps / 400 < 0.025 + 3 * np.sqrt(0.025 / 400)
    assert shows / 400 < 0.05


def test_a_copy_is_three_times_nearer_to_one_than_to_any_other():
    rng = np.random.default_rng(2)
    references, images = rng.normal(size=(5, 2, 3)), rng.normal(size=(4, 2, 3))
    repeated = np.concatenate([references, references[:2]])
    expected = []
    for image in images:
        lengths = sorted(np.linalg.norm((image - one).ravel()) for one in references)
        expected.append(lengths[0] / lengths[1])
    np.testing.assert_allclose(nearest_ratio(images, repeated), expected)
    assert nearest_ratio(references[:1] + 1e-3, references) < 1 / 3
    with pytest.raises(ValueError, match="at least two different ones"):
        nearest_ratio(images, repeated[[0, 5]])
    assert first_to_stay([True, True]) == 0
    assert first_to_stay([True, False]) is None


@pytest.fixture(scope="module")
def second(tiny_model):
    """The same network with other weights."""
    config = {k: v for k, v in tiny_model.unet.config.items() if k != "_class_name"}
    return dataclasses.replace(tiny_model, unet=UNet2DModel(**config, rngs=nnx.Rngs(1)))


@pytest.fixture(scope="module")
def checkpoints(tiny_model, second):
    models = {"a": tiny_model, "b": second}
    return [
        Audited(name, 10 * i, f"print of {name}", functools.partial(models.get, name))
        for i, name in enumerate(models, start=1)
    ]


@pytest.fixture(scope="module")
def images(tiny_model):
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, (n, *tiny_model.image_shape)).astype(np.float32) for n in (9, 3)]


@pytest.mark.slow
def test_records_are_losses_and_ratios(checkpoints, images, tiny_model, second, tmp_path):
    suspected, held_out = images
    found = audit(checkpoints, suspected, held_out, ["0 x1"], tmp_path / "run", SETTINGS)
    assert len(found) == 2 * (9 + 3 + 5)
    # one loss, by hand
    record = next(
        r for r in found if (r["checkpoint"], r["part"], r["index"]) == (1, "held-out", 2)
    )
    noises = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 300)
    alpha, sigma = second.schedule.alpha(300), second.schedule.sigma(300)
    total = 0.0
    for i in range(3):
        e = jax.random.normal(jax.random.fold_in(noises, i), second.shape)
        x = alpha * held_out[2] + sigma * e
        total += jnp.sum((e + sigma * second.unconditional(300)(x)) ** 2) / e.size / 3
    np.testing.assert_allclose(record["losses"][1], total, rtol=1e-4)
    # one sample
    key = jax.random.fold_in(jax.random.key(0), 1)
    noise = jax.random.normal(jax.random.fold_in(key, 4), tiny_model.shape)[None]
    drawn = tiny_model.sample(["0 x1"], noise=noise, num_steps=2)
    record = next(r for r in found if (r["checkpoint"], r["part"], r["index"]) == (0, "samples", 4))
    np.testing.assert_allclose(record["ratio"], nearest_ratio(drawn, suspected)[0], rtol=1e-3)


@pytest.mark.slow
def test_losses_under_texts(checkpoints, images, tiny_model, tmp_path):
    suspected, held_out = images
    texts = ["0 x1", "1 x12", "0 x3"] * 3, ["1 x1"] * 3
    found = audit(
        checkpoints[:1], suspected, held_out, ["0 x1"], tmp_path / "run", SETTINGS, texts=texts
    )
    record = next(r for r in found if (r["part"], r["index"]) == ("suspected", 1))
    noises = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 50)
    alpha, sigma = tiny_model.schedule.alpha(50), tiny_model.schedule.sigma(50)
    score, total = tiny_model.scores("1 x12", 50).conditional, 0.0
    for i in range(3):
        e = jax.random.normal(jax.random.fold_in(noises, i), tiny_model.shape)
        x = alpha * suspected[1] + sigma * e
        total += jnp.sum((e + sigma * score(x)) ** 2) / e.size / 3
    np.testing.assert_allclose(record["losses"][0], total, rtol=1e-4)


@pytest.mark.slow
def test_a_run_is_resumed_and_shown(checkpoints, images, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    found = audit(checkpoints, *images, ["0 x1"], folder, SETTINGS)
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    (folder / "results.jsonl").write_text("".join(lines[:20]))
    assert "not finished" in report.sections_of(sj.rundir.run.Run.open(folder))[0].blocks[0].text
    assert audit(checkpoints, *images, ["0 x1"], folder, SETTINGS) == found
    monkeypatch.setattr(runs, "denoising_loss", None)
    assert audit(checkpoints, *images, ["0 x1"], folder, SETTINGS) == found
    rows = report.rows_of(found, ["a", "b"], [10, 20])
    assert [row["step"] for row in rows] == [10, 20]
    written = report.write(folder, rows)
    assert [path.name for path in written] == ["audit.csv", "audit.png"]
    Clock("tiny").record(folder)
    page = write_page([folder]).read_text()
    assert "The losses of suspected images are below held-out ones: not by the last" in page
    other = dataclasses.replace(SETTINGS, num_noises=2)
    with pytest.raises(ValueError, match="num_noises: 3 there, 2 now"):
        audit(checkpoints, *images, ["0 x1"], folder, other)


def test_mistakes(checkpoints, images, tmp_path):
    def call(**changes):
        given = {"checkpoints": checkpoints, "suspected": images[0], "held_out": images[1]}
        given |= {"conditions": ["0 x1"], "directory": tmp_path / "run", "settings": SETTINGS}
        audit(**(given | changes))

    for message, changes in {
        "no checkpoints": {"checkpoints": []},
        "suspected images must be at least 2, got 1": {"suspected": images[0][:1]},
        "held-out images must be at least 2, got 0": {"held_out": images[1][:0]},
        "1 of 3 held-out images are suspected ones, such as number 0": {
            "held_out": np.concatenate([images[0][4:5], images[1][1:]])
        },
        "num_noises must be at least 1": {"settings": AuditSettings(num_noises=0)},
        "timestep t must lie in 0..999": {"settings": AuditSettings(times=(1000,))},
    }.items():
        with pytest.raises(ValueError, match=message):
            call(**changes)


@pytest.mark.slow
def test_by_the_command(tiny_directory, second, images, tmp_path, sharpjax):
    later = second.save_pretrained(tmp_path / "step-20")
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    for i, image in enumerate(images[1]):
        pixels = np.round((image[0] + 1) * 127.5).astype(np.uint8)
        Image.fromarray(pixels).save(held_out / f"{i}.png")

    call = functools.partial(sharpjax, "audit", cwd=tmp_path)
    common = ["--held-out", held_out, "--samples", 4, "--steps", 2, "--times", "50,300"]
    told = call(later, tiny_directory, *common, "--output", tmp_path / "run", "--json")
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    assert [row["checkpoint"] for row in answer["checkpoints"]] == ["step-20", "tiny"]
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    assert settings["num_suspected"] == 32
    assert settings["texts"] is None
    # texts of both: the training set's conditions, and a table
    with open(held_out / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["file_name", "text"], *([f"{i}.png", "0 x1"] for i in range(3))]
        )
    told = call(later, tiny_directory, *common, "--output", tmp_path / "texts")
    assert told.returncode == 0, told.stderr
    assert "Losses are those under each image's text." in told.stdout
    assert len(json.loads((tmp_path / "texts/settings.json").read_text())["texts"][0]) == 32
    # mistakes
    for message, given in {
        "is given twice": [later, later, *common],
        "must be another checkpoint of the same model": [later, "mnist", *common],
    }.items():
        told = call(*given, "--output", tmp_path / "none")
        assert told.returncode == 1, told.stdout
        assert message in told.stderr.replace("\n", " ")
    (held_out / "metadata.csv").write_text("file_name,text\n0.png,0 x1\n")
    told = call(later, tiny_directory, *common, "--output", tmp_path / "none")
    assert "says nothing of '1.png'" in told.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("parted", "copied", "told"),
    [
        ([0, 0, 0], [0, 0, 0], "What to do: nothing"),
        ([0, 1, 1], [0, 0, 0], "no copies are shown yet; before training on, leave out"),
        ([0, 1, 1], [0, 0, 1], "stop at b, or before training on leave out"),
        ([1, 1, 1], [1, 1, 1], "look at earlier checkpoints"),
    ],
)
def test_what_to_do(parted, copied, told):
    rows = [
        {"checkpoint": name, "step": step, "losses_part": one, "copies_show": other}
        | dict.fromkeys(
            f"{what}{end}" for what in ("gap", "copies", "by_chance")
            for end in ("", "_low", "_high")
        )
        for step, (name, one, other) in enumerate(zip("abc", parted, copied, strict=True))
    ]  # fmt: skip
    texts = [block.text for block in report.blocks(rows, texts=False) if isinstance(block, Text)]
    assert told in texts[2]
