"""Statistics of the gap: closed forms, a loop over directions, and whole runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sharpjax as sj
from sharpjax import ScorePair
from sharpjax.detection.gap import (
    condition_jacobian,
    gap_divergence,
    gap_flux,
    image_gap_flux,
)
from sharpjax.detection.registry import named
from sharpjax.detection.settings import DetectSettings
from sharpjax.detection.statistics import STATISTICS
from sharpjax.runs.detect import detect

KEY = jax.random.key(0)
NAMES = ("gap_flux", "gap_divergence", "image_gap_flux", "condition_jacobian")


def pair_of(difference, *, alpha=0.6, sigma=0.8):
    return ScorePair(jnp.zeros_like, difference, alpha=alpha, sigma=sigma)


def test_a_field_that_points_inwards_everywhere():
    """s_D = -c x about 0: k_Delta is 1. At x itself, at distance r, div (x/|x|) = (d - 1)/r."""
    pair = pair_of(lambda x: -3.0 * x)
    found = gap_flux(pair, jnp.zeros(50), key=KEY)
    np.testing.assert_allclose(found, 1, rtol=1e-5)
    x = jnp.zeros(50).at[7].set(2.0)
    found = gap_divergence(pair, x, key=KEY, num_probes=3)
    np.testing.assert_allclose(found, 0.8 / np.sqrt(50) * 49 / 2, rtol=1e-5)
    assert gap_flux(pair_of(lambda x: 3.0 * x), jnp.zeros(50), key=KEY) == pytest.approx(-1)


def test_flux_is_that_of_the_noises_by_a_loop():
    """As the public code adds it up: eps_D = -sigma s_D, on a sphere of radius sigma sqrt(d)."""
    A = np.random.default_rng(0).normal(size=(6, 6))
    pair = pair_of(lambda x: jnp.sin(A @ x))
    x = jnp.arange(6.0) / 6
    total = 0.0
    for i in range(16):
        n = np.array(jax.random.normal(jax.random.fold_in(KEY, i), (6,)))
        n /= np.linalg.norm(n)
        noise = -0.8 * np.sin(A @ (np.asarray(x) + 0.8 * np.sqrt(6) * n))
        total += noise / np.linalg.norm(noise) @ n
    np.testing.assert_allclose(gap_flux(pair, x, key=KEY), total / 16, rtol=1e-4)
    about = image_gap_flux(pair, x / 0.6, key=KEY)
    np.testing.assert_allclose(about, total / 16, rtol=1e-4)


def test_divergence_is_exact_by_all_probes():
    A = np.random.default_rng(1).normal(size=(5, 5))
    pair, x = pair_of(lambda x: jnp.sin(A @ x)), jnp.arange(5.0) / 5

    def field(x):
        s = jnp.sin(A @ x)
        return s / jnp.linalg.norm(s)

    expected = -0.8 / np.sqrt(5) * np.trace(jax.jacfwd(field)(x))
    found = [gap_divergence(pair, x, key=jax.random.key(k), num_probes=64) for k in range(20)]
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / np.sqrt(20))


def test_pure_noise_says_nothing():
    pair = pair_of(lambda x: -x, alpha=0.0, sigma=1.0)
    for statistic in (gap_flux, gap_divergence, image_gap_flux, condition_jacobian):
        with pytest.raises(ValueError, match="undefined or 0 for every condition at alpha = 0"):
            statistic(pair, jnp.ones(3), key=KEY)


def test_conditions_that_are_no_vectors_are_refused_and_left_out():
    with pytest.raises(ValueError, match="needs conditions that are vectors"):
        condition_jacobian(pair_of(lambda x: -x), jnp.ones(3))
    assert set(NAMES) <= set(named(["gap"]))
    assert named(["gap"], vectors=False) == NAMES[:3]
    assert "condition_jacobian" not in named(["all"], vectors=False)
    # what is named is not left out
    assert named(["condition_jacobian"], vectors=False) == ("condition_jacobian",)


@pytest.fixture(scope="module")
def model(stable_diffusion_directory):
    return sj.load(stable_diffusion_directory)


@pytest.mark.slow
def test_a_step_in_the_prompt(model):
    """Against a difference of two scores, a small step along the prompt apart."""
    context, x = model.encode(["a cat"])[0], jax.random.normal(KEY, model.shape)
    step = context - model.empty
    unit = step / jnp.linalg.norm(step)
    pair = model.scores(context, 500)
    sides = [model.scores(context + h * unit, 500).conditional(x) for h in (-0.1, 0.1)]
    expected = (sides[1] - sides[0]) / 0.2
    along = pair.along(x)
    assert jnp.linalg.norm(along - expected) < 0.02 * jnp.linalg.norm(expected)
    np.testing.assert_allclose(condition_jacobian(pair, x), jnp.linalg.norm(along), rtol=1e-5)


@pytest.mark.slow
def test_a_run_computes_them_where_they_belong(model, tmp_path):
    """Of a model of prompts; the image's, from its image encoded again."""
    settings = DetectSettings(
        statistics=named(["gap"]), num_noises=2, num_steps=3, trace_timesteps=(600,),
        trace_noises=1, path_steps=1, guidance=2.0,
    )  # fmt: skip
    (record,) = detect(model, ["a cat"], tmp_path / "run", settings, fingerprint="f")
    found = record["network"]
    assert [len(found[name]) for name in found] == [1, 1, 2, 1]
    assert list(found) == [
        "gap_flux@600", "gap_divergence@600", "image_gap_flux@10", "condition_jacobian@600",
    ]  # fmt: skip
    from sharpjax.detection.compute import Columns
    from sharpjax.detection.trajectory import follow

    context, columns = model.encode(["a cat"])[0], Columns(model, settings)
    key = jax.random.fold_in(jax.random.key(0), 2)
    for i, noise in enumerate(columns.noises):
        z = follow(model, context, noise, num_steps=3, guidance=2.0).states[-1]
        again = model.encode_image(np.clip(model.decode(z[None]), -1, 1))[0]
        probes = jax.random.fold_in(jax.random.fold_in(key, i), 10)
        expected = image_gap_flux(model.scores(context, 10), again, key=probes)
        np.testing.assert_allclose(found["image_gap_flux@10"][i], expected, rtol=2e-3)
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    assert settings["statistics"] == list(named(["gap"]))


def test_costs():
    """Of the words of each, as its docstring says."""
    settings = DetectSettings(num_probes=3)
    assert {n: STATISTICS[n].evaluations(settings) for n in NAMES} == {
        "gap_flux": (32, 0), "gap_divergence": (2, 6), "image_gap_flux": (32, 0),
        "condition_jacobian": (1, 1),
    }  # fmt: skip
