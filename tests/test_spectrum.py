"""Spectra along the sampling path: against dense matrices, the oracle, and a killed run."""

import csv
import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from sharpjax import cli, curvature
from sharpjax.rundir.run import RESULTS_NAME
from sharpjax.runs.spectrum import SpectrumSettings, counts, spectrum, write_table
from sharpjax.sampling import sample

NAMES = ("0 x1", "0 x12")
SETTINGS = SpectrumSettings(num_matvecs=70, num_steps=5)


@pytest.fixture(scope="module")
def run(tiny_model, tiny_training_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "spectrum"
    known = {"training_set": tiny_training_set, "labels": np.array([0, 2])}
    return folder, spectrum(tiny_model, NAMES, folder, SETTINGS, fingerprint="x", **known)


@pytest.mark.slow
def test_stages_are_first_middle_and_last(run, tiny_model):
    grid = tiny_model.schedule.timesteps(5)
    assert [record["t"] for record in run[1][:3]] == [grid[0], grid[2], grid[4]]
    assert [record["condition"] for record in run[1]] == ["0 x1"] * 3 + ["0 x12"] * 3


@pytest.mark.slow
def test_exact_spectrum_is_that_of_the_dense_jacobian_at_the_state_of_the_path(run, tiny_model):
    record = run[1][4]
    x_T = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), tiny_model.shape)

    def score_at(x, t):
        return tiny_model.scores(NAMES[1], t).conditional(x)

    x = sample(score_at, x_T, tiny_model.schedule, num_steps=5, trajectory=True)[record["step"]]
    pair = tiny_model.scores(NAMES[1], record["t"])
    J = np.asarray(curvature.hessian(pair.conditional, x))
    expected = np.linalg.eigvalsh(0.5 * (J + J.T)) * float(pair.sigma) ** 2
    np.testing.assert_allclose(record["exact"], expected, atol=3e-5 * np.abs(expected).max())
    assert record["asymmetry"] == pytest.approx(float(curvature.asymmetry(J)), rel=1e-3)


@pytest.mark.slow
def test_krylov_values_of_the_whole_space_are_the_spectrum(run):
    """64 steps in 64 dimensions: all distinct eigenvalues, each within its residual bound."""
    for record in run[1]:
        exact, ritz = np.array(record["exact"]), record["lanczos"]
        distance = np.abs(np.subtract.outer(ritz["values"], exact)).min(axis=1)
        rounding = 200 * np.finfo(np.float32).eps * np.abs(exact).max()
        assert (distance <= np.array(ritz["residuals"]) + rounding).all()
        assert max(ritz["values"]) == pytest.approx(exact[-1], abs=rounding)
        assert len(record["arnoldi"]["values"]) == len(record["arnoldi"]["imaginary"]) > 0


@pytest.mark.slow
def test_one_image_leaves_nothing_open_under_the_exact_score(run):
    for record in run[1][:3]:
        np.testing.assert_allclose(record["oracle"], -1, atol=1e-5)
    many = counts(run[1][3]["oracle"])
    assert many["effective_dimension"] > 0.1


@pytest.mark.slow  # compiles the pair
def test_spectrum_of_the_difference(tiny_model, tiny_training_set, tmp_path):
    settings = dataclasses.replace(SETTINGS, score="difference", num_stages=1)
    known = {"training_set": tiny_training_set, "labels": np.array([2])}
    (record,) = spectrum(
        tiny_model, NAMES[1:], tmp_path / "run", settings, fingerprint="x", **known
    )
    assert record["t"] == 801
    pair = tiny_model.scores(NAMES[1], 801)
    x = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), tiny_model.shape)
    J = np.asarray(jax.jacfwd(pair.difference)(x)).reshape(64, 64)
    expected = np.linalg.eigvalsh(0.5 * (J + J.T)) * float(pair.sigma) ** 2
    np.testing.assert_allclose(record["exact"], expected, atol=3e-5 * np.abs(expected).max())
    # the exact score's difference has trace tr K_c - tr K_u
    own, everything = (p.effective_dimension(x) for p in reversed(
        tiny_training_set.densities(2, alpha=pair.alpha, sigma=pair.sigma)
    ))  # fmt: skip
    assert sum(record["oracle"]) == pytest.approx(float(own - everything), rel=1e-3, abs=1e-3)


def test_counts_and_table(run, tmp_path):
    found = counts([-1.0, -0.04, 0.04, 0.5, 2.0])
    assert found == {
        "negative": 1, "near_zero": 2, "positive": 2, "smallest": -1, "largest": 2,
        "sum_negative": pytest.approx(-1.04), "sum_positive": pytest.approx(2.54),
        "effective_dimension": 6.5,
    }  # fmt: skip
    rows = write_table(tmp_path / "spectrum.csv", run[1])
    with (tmp_path / "spectrum.csv").open() as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(rows) == 24  # network, Lanczos, Arnoldi and oracle, six times
    names = ("negative", "near_zero", "positive")
    for row in read:
        parts = [row[name] for name in names]
        assert row["source"] in ("lanczos", "arnoldi") or sum(map(int, parts)) == 64
    for network, lanczos, _, _ in zip(*[iter(rows)] * 4, strict=True):
        assert (network["source"], lanczos["source"]) == ("network", "lanczos")
        assert lanczos["largest"] == pytest.approx(network["largest"], abs=1e-3)


def test_a_stopped_run_goes_on_where_it_stopped(run, tiny_model, tiny_training_set, tmp_path):
    lines = (run[0] / RESULTS_NAME).read_text().splitlines(keepends=True)
    folder = tmp_path / "stopped"
    folder.mkdir()
    for name in ("settings.json",):
        (folder / name).write_bytes((run[0] / name).read_bytes())
    (folder / RESULTS_NAME).write_text("".join(lines[:4]) + lines[4][:50])  # torn
    known = {"training_set": tiny_training_set, "labels": np.array([0, 2])}
    again = spectrum(tiny_model, NAMES, folder, SETTINGS, fingerprint="x", **known)
    assert again == run[1]
    assert (folder / RESULTS_NAME).read_text() == "".join(lines)
    record = json.loads(lines[0])
    del record["lanczos"]
    (folder / RESULTS_NAME).write_text(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match="line 1 is not a record of this run: it lacks lanczos"):
        spectrum(tiny_model, NAMES, folder, SETTINGS, fingerprint="x", **known)
    other = dataclasses.replace(SETTINGS, seed=1)
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        spectrum(tiny_model, NAMES, folder, other, fingerprint="x", **known)


@pytest.mark.slow
def test_the_command(tiny_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")
    arguments = ["spectrum", "--model", str(tiny_directory), "--output", str(tmp_path / "run")]
    arguments += ["--condition", "0 x1", "--stages", "2", "--steps", "5"]
    monkeypatch.setattr("sys.argv", ["sharpjax", *arguments, "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None)
    told = json.loads(capsys.readouterr().out)
    assert [row["t"] for row in told["spectra"]] == [801] * 4 + [1] * 4
    assert (tmp_path / "run" / "spectrum.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_stages": 9, "num_steps": 3}, "at most num_steps = 3, got 9"),
        ({"score": "both"}, "unknown score 'both'; choose one of cond"),
        ({"num_noises": 0}, "num_noises must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        SpectrumSettings(**bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"no ground_truth\.csv to choose by; name .* with --condition: 0 x1"),
        (("--condition", "9"), "got '9'"),
    ],
)
def test_bad_options(tiny_directory, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")
    whole = ["spectrum", "--model", str(tiny_directory), "--output", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["sharpjax", *whole, *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "run").exists()
