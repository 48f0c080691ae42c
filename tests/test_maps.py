"""Where an image is memorized: closed forms, the statistic that is its mean, and whole runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sharpjax as sj
from sharpjax import ScorePair
from sharpjax.detection.maps import to_pixels
from sharpjax.detection.statistics import curvature_difference
from sharpjax.report import maps as report
from sharpjax.report.page import write_page
from sharpjax.rundir.about import Clock
from sharpjax.runs import maps as runs_maps
from sharpjax.runs.maps import MapSettings, maps

KEY = jax.random.key(0)


def pair_of(scale, *, alpha=0.9, sigma=0.3):
    """H_D is diagonal, `-scale`: probes know it exactly."""
    return ScorePair(jnp.zeros_like, lambda x: -scale * x, alpha=alpha, sigma=sigma)


def test_a_diagonal_is_its_own_map():
    """Summed over channels, times sigma; what the condition opens counts for nothing."""
    scale = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)))
    found = sj.detection.memorization_map(pair_of(scale), jnp.ones((2, 3, 4)), key=KEY)
    expected = np.maximum(0.3 * scale.sum(axis=0), 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (np.asarray(found) == 0).any()
    mean = curvature_difference(pair_of(scale), jnp.ones((2, 3, 4)), key=KEY)
    np.testing.assert_allclose(mean, np.mean(expected), rtol=1e-5)


def test_a_function_is_no_pair():
    with pytest.raises(ValueError, match="memorization_map: pair must be a"):
        sj.detection.memorization_map(jnp.negative, jnp.ones((2, 3, 4)), key=KEY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0, "sigma": 1.0}, "memorization_map is undefined"),
        ({"x": jnp.ones((3, 4))}, r"one state \(channels, height, width\), got shape \(3, 4\)"),
        ({"x": jnp.full((2, 3, 4), jnp.nan)}, "x is not finite"),
        ({"key": None}, "The probes are random"),
        ({"num_probes": 0}, "num_probes must be an integer >= 1"),
    ],
)
def test_mistakes(changes, message):
    given = {"x": jnp.ones((2, 3, 4)), "key": KEY} | changes
    pair = pair_of(1.0, **{k: given.pop(k) for k in ("alpha", "sigma") if k in given})
    with pytest.raises(ValueError, match=message):
        sj.detection.memorization_map(pair, given.pop("x"), **given)


def test_at_the_size_of_the_image():
    values = np.arange(4.0, dtype=np.float32).reshape(2, 2)
    large = to_pixels(values, (3, 8, 8))
    assert large.shape == (8, 8)
    assert (large[0, 0], large[-1, -1]) == (0, 3)
    np.testing.assert_array_equal(to_pixels(values, (3, 2, 2)), values)


def test_an_overlay_is_grey_where_nothing_is_memorized():
    image = Image.fromarray(np.full((4, 4, 3), (200, 40, 40), np.uint8))
    share = np.zeros((4, 4))
    share[1, 2] = 1.0
    pixels = np.asarray(report.overlay(image, share)).astype(int)
    assert np.ptp(pixels[0, 0]) == 0
    red, green, blue = pixels[1, 2]
    assert red > green + 80
    assert red > blue + 80


@pytest.fixture(scope="module")
def model(tiny_directory):
    return sj.load(tiny_directory)


@pytest.mark.slow
def test_a_run_is_finished_once_and_shown(model, tmp_path, monkeypatch):
    names, settings = ["0 x1", "1 x12"], MapSettings(num_steps=3, guidance=1.0, num_probes=2)
    found = maps(model, names, tmp_path / "run", settings, fingerprint="f")
    assert [record["condition"] for record in found] == names
    array = np.load(tmp_path / "run" / found[0]["map"], allow_pickle=False)
    assert array.shape == model.image_shape[1:]
    assert array.mean() == pytest.approx(found[0]["mean"], rel=1e-4)
    # the image is that of the first noise of a detection run
    noise = sj.detection.compute.Columns(
        model, sj.detection.DetectSettings(num_steps=3, trace_timesteps=(5,))
    ).noises[0]
    drawn = model.sample(["0 x1"], noise=np.asarray(noise)[None], num_steps=3)[0]
    with Image.open(tmp_path / "run" / found[0]["image"]) as image:
        expected = np.round((np.clip(drawn[0], -1, 1) + 1) * 127.5)
        assert np.abs(np.asarray(image, float) - expected).max() <= 1
    monkeypatch.setattr(runs_maps, "_map", None)  # nothing is computed again
    assert maps(model, names, tmp_path / "run", settings, fingerprint="f") == found
    written = report.write(tmp_path / "run", found)
    assert [path.name for path in written] == ["00000.png", "00001.png"]
    Clock("tiny").record(tmp_path / "run")
    page = write_page([tmp_path / "run"]).read_text()
    assert "Where images are memorized" in page
    assert page.count("<img") == 4
    other = MapSettings(num_steps=3, guidance=1.0, num_probes=3)
    with pytest.raises(ValueError, match="num_probes: 2 there, 3 now"):
        maps(model, names, tmp_path / "run", other, fingerprint="f")
    with pytest.raises(ValueError, match="nothing to map"):
        maps(model, [], tmp_path / "none", settings, fingerprint="f")


@pytest.mark.slow
def test_by_the_command(tiny_directory, tmp_path, monkeypatch, capsys):
    from sharpjax import cli

    arguments = [
        "detect", "--model", tiny_directory, "--condition", "0 x1", "--statistics",
        "score_difference", "--noises", 1, "--steps", 3, "--maps", "--output", tmp_path / "run",
        "--json",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["sharpjax", *map(str, arguments)])
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code, capsys.readouterr().err
    answer = json.loads(capsys.readouterr().out)
    assert (tmp_path / "run/maps/overlays/00000.png").is_file()
    with open(answer["report"]) as page:
        assert "Where images are memorized" in page.read()


def test_a_map_is_judged_by_a_mask():
    rng = np.random.default_rng(0)
    values, mask = rng.integers(0, 5, (6, 7)).astype(float), rng.random((6, 7)) < 0.3
    inside, outside = values[mask], values[~mask]
    pairs = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
    assert sj.detection.pixel_auc(values, mask) == pytest.approx(pairs.mean())
    both = sum(v >= 3 and m for v, m in zip(values.flat, mask.flat, strict=True))
    either = sum(v >= 3 or m for v, m in zip(values.flat, mask.flat, strict=True))
    assert sj.detection.pixel_iou(values, 255 * mask, threshold=3) == pytest.approx(both / either)
    judge = sj.detection.pixel_auc
    with pytest.raises(ValueError, match=r"of one size, got \(6, 7\) and \(7, 6\)"):
        judge(values, mask.T)
    with pytest.raises(ValueError, match="must hold some pixels and leave some, got 100%"):
        judge(values, np.ones((6, 7)))
    with pytest.raises(ValueError, match="not finite"):
        judge(np.where(mask, np.nan, values), mask)
