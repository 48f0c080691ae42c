"""An earlier checkpoint as the baseline: its differences, the path's guidance, and whole runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sharpjax as sj
from sharpjax.detection.baseline import NOT_COMPARED, Baseline
from sharpjax.detection.compute import evaluations
from sharpjax.detection.registry import named
from sharpjax.detection.settings import DetectSettings
from sharpjax.detection.statistics import hessian_score_difference
from sharpjax.detection.trajectory import follow
from sharpjax.networks import UNet2DModel
from sharpjax.report.page import write_page
from sharpjax.runs.detect import detect

NAMES = ["0 x1", "1 x12"]
CHOSEN = named(["first", "traces", "path_score_difference"], num_noises=2)
SETTINGS = DetectSettings(
    statistics=CHOSEN, num_noises=2, trace_noises=1, num_steps=3, trace_timesteps=(600,),
    path_steps=1, num_probes=2, guidance=3.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def earlier(tiny_model):
    """The same network with other weights."""
    config = {k: v for k, v in tiny_model.unet.config.items() if k != "_class_name"}
    return dataclasses.replace(tiny_model, unet=UNet2DModel(**config, rngs=nnx.Rngs(1)))


@pytest.fixture(scope="module")
def pair(tiny_model, earlier):
    return Baseline.of(tiny_model, earlier)


def test_differences_are_of_two_conditional_scores(pair, tiny_model, earlier):
    encoded = pair.encode(NAMES)
    assert encoded.shape == (2, 2)
    x = jax.random.normal(jax.random.key(0), tiny_model.shape)
    found = pair.scores(encoded[1], 500).difference(x)
    own, its = (one.scores(NAMES[1], 500).conditional(x) for one in (tiny_model, earlier))
    np.testing.assert_allclose(found, own - its, atol=1e-6)
    assert jnp.abs(found).max() > 1e-3
    nothing = Baseline.of(tiny_model, tiny_model)
    assert not nothing.scores(encoded[1], 500).difference(x).any()
    with pytest.raises(ValueError, match="in place of the unconditional score"):
        pair.unconditional(500)


def test_a_path_is_led_by_the_models_own_guidance(pair, tiny_model, earlier):
    x = jax.random.normal(jax.random.key(1), tiny_model.shape)
    encoded = pair.encode(NAMES)[0]
    path = follow(pair, encoded, x, num_steps=3, guidance=3.0)
    own = follow(tiny_model, encoded[0], x, num_steps=3, guidance=3.0)
    np.testing.assert_allclose(path.states, own.states, atol=1e-5)
    np.testing.assert_allclose(path.conditional, own.conditional, rtol=1e-3, atol=1e-4)
    for t, state, kept in zip(path.timesteps, path.states, path.unconditional, strict=False):
        its = earlier.scores(encoded[1], t).conditional(state)
        np.testing.assert_allclose(kept, its, rtol=1e-3, atol=1e-4)


def test_a_path_from_pure_noise(tiny_model, earlier):
    """At alpha = 0 predictions lead, of both."""
    schedule = sj.Schedule.create(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    models = [dataclasses.replace(one, schedule=schedule) for one in (tiny_model, earlier)]
    both = Baseline.of(*models)
    x = jax.random.normal(jax.random.key(1), tiny_model.shape)
    encoded = both.encode(NAMES)[0]
    path = follow(both, encoded, x, num_steps=3, guidance=3.0)
    own = follow(models[0], encoded[0], x, num_steps=3, guidance=3.0)
    np.testing.assert_allclose(path.states, own.states, atol=1e-4)
    expected = models[1].scores(encoded[1], path.timesteps[1]).conditional(path.states[1])
    np.testing.assert_allclose(path.unconditional[1], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_run_with_a_baseline(pair, tiny_model, tmp_path):
    """Two conditions in a batch: nothing of the baseline is shared by them."""
    found = detect(pair, NAMES, tmp_path / "run", SETTINGS, fingerprint="a less b")
    alone = detect(pair, NAMES[1:], tmp_path / "one", SETTINGS, fingerprint="a less b")
    for name, values in alone[0]["network"].items():
        np.testing.assert_allclose(found[1]["network"][name], values, rtol=2e-3, atol=1e-5)
    first = sj.detection.compute.Columns(pair, SETTINGS)
    t = int(tiny_model.schedule.timesteps(3)[0])
    for record, encoded in zip(found, pair.encode(NAMES), strict=True):
        scores = pair.scores(encoded, t)
        expected = [hessian_score_difference(scores, x) for x in first.noises]
        got = record["network"][f"hessian_score_difference@{t}"]
        np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_costs_share_nothing():
    """The baseline's score depends on the condition, and paths ask both models."""
    shared, apart = evaluations(SETTINGS), evaluations(SETTINGS, compared=True)
    assert apart["score_difference"][1] == shared["score_difference"][1] + 2
    assert apart["path_score_difference"][1] == 2 * shared["path_score_difference"][1]


def test_what_cannot_be_compared(tiny_model, earlier):
    class Other(type(tiny_model)):
        pass

    fields = {field.name: getattr(earlier, field.name) for field in dataclasses.fields(earlier)}
    schedule = sj.Schedule.create(beta_end=0.01)
    config = {k: v for k, v in tiny_model.unet.config.items() if k != "_class_name"}
    large = UNet2DModel(**config | {"sample_size": 16}, rngs=nnx.Rngs(0))
    renamed = [f"{name}?" for name in tiny_model.conditions]
    cases = {
        "its kind is Other": Other(**fields),
        "its schedule is beta_end = 0.01, the model's beta_end = 0.012$": dataclasses.replace(
            earlier, schedule=schedule
        ),
        "its shape of an example is": dataclasses.replace(earlier, unet=large),
        "its conditions is": dataclasses.replace(earlier, conditions=tuple(renamed)),
    }
    for message, other in cases.items():
        with pytest.raises(ValueError, match=f"another checkpoint of the same model: {message}"):
            Baseline.of(tiny_model, other)


def test_groups_leave_out_what_is_no_difference():
    assert not set(NOT_COMPARED) & set(named(["all"], without=NOT_COMPARED))
    assert set(NOT_COMPARED) < set(named(["all"]))


@pytest.mark.slow
def test_by_the_command(tiny_directory, earlier, tmp_path, monkeypatch, capsys):
    from sharpjax import cli

    other = earlier.save_pretrained(tmp_path / "earlier")

    def call(*more):
        arguments = [
            "detect", "--model", tiny_directory, "--condition", "0 x1", "--condition", "1 x12",
            "--noises", 1, "--steps", 3, "--baseline", other, *more, "--json", "--no-report",
        ]  # fmt: skip
        monkeypatch.setattr("sys.argv", ["sharpjax", *map(str, arguments)])
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, capsys.readouterr()

    code, told = call("--output", tmp_path / "run")
    assert not code, told.err
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    assert " less " in settings["model"]
    assert settings["oracle"] is False
    page = write_page([tmp_path / "run"]).read_text()
    assert f"differences from the scores of {other} under the same" in page
    code, told = call("--output", tmp_path / "run", "--baseline", tiny_directory)
    assert code
    assert "is the model itself: every difference would be 0" in told.err.replace("\n", " ")
    copy = sj.load(tiny_directory).save_pretrained(tmp_path / "copy")  # another fingerprint
    code, told = call("--output", tmp_path / "run", "--baseline", copy)
    assert code
    assert f"--baseline {copy} is the model itself" in told.err.replace("\n", " ")
    code, told = call("--output", tmp_path / "run", "--statistics", "p_laplacian")
    assert code
    assert "p_laplacian is no difference of two models" in told.err
    code, told = call("--output", tmp_path / "run", "--baseline", "mnist")
    assert code
    assert "must be another checkpoint of the same model" in told.err
