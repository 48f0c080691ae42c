"""Scores: the three predictions against an exact Gaussian score; pairs against naive twins."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import Partial

from sharpjax.detection.statistics import STATISTICS
from sharpjax.schedules import PREDICTION_TYPES, Schedule
from sharpjax.score import ScorePair, clean_and_noise, denoised, score_from_prediction

pytestmark = pytest.mark.quick

D = 5


def gaussian(seed=0):
    """Mean and covariance of data, float64."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((D, D))
    return rng.standard_normal(D), root @ root.T / D


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_predictions_give_the_exact_score_of_gaussian_data(t):
    r"""For data `N(m, S)`: `C = alpha^2 S + sigma^2 I`, `s = -C^{-1} (x - alpha m)`.

    The best predictions are conditional means, by the Gaussian conditioning formula (not through
    the score): `E[x0|x] = m + alpha S C^{-1} (x - alpha m)` and
    `E[eps|x] = sigma C^{-1} (x - alpha m)`; `v = alpha eps - sigma x0`.
    """
    schedule = Schedule.create()
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    sigma = np.sqrt(1 - alpha**2)  # exact partner of a float32 alpha
    mean, cov = gaussian()
    x = np.random.default_rng(1).standard_normal(D)
    solved = np.linalg.solve(alpha**2 * cov + sigma**2 * np.eye(D), x - alpha * mean)
    x0, eps = mean + alpha * cov @ solved, sigma * solved
    predictions = {
        "epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0,
        "flow_prediction": eps - x0,
    }  # fmt: skip
    with jax.enable_x64(True):
        for kind, prediction in predictions.items():
            s = score_from_prediction(
                jnp.asarray(prediction), jnp.asarray(x), alpha=alpha, sigma=sigma,
                prediction_type=kind,
            )  # fmt: skip
            # float64; dividing by sigma^2 >= 8e-4 costs three digits
            np.testing.assert_allclose(s, -solved, rtol=1e-10, atol=1e-11)
            np.testing.assert_allclose(
                denoised(s, jnp.asarray(x), alpha=alpha, sigma=sigma), x0, rtol=1e-10, atol=1e-11
            )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_predictions_are_inverted_at_any_level(kind):
    """(x0, eps) -> x and the prediction -> the same x0 and eps, whatever alpha^2 + sigma^2 is."""
    rng = np.random.default_rng(0)
    levels = [*rng.uniform(0.05, 3, (20, 2)), (0.5, 0.5), (1.0, 80.0), (0.0, 0.7)]
    for alpha, sigma in levels:
        x0, eps = jnp.asarray(rng.standard_normal((2, D)))
        x = alpha * x0 + sigma * eps
        prediction = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0,
                      "flow_prediction": eps - x0}[kind]  # fmt: skip
        level = dict(alpha=alpha, sigma=sigma, prediction_type=kind)
        score = score_from_prediction(prediction, x, **level)
        # float64; x is up to 100 long, and (x - sigma eps)/alpha loses sigma/alpha <= 80 of it
        np.testing.assert_allclose(score, -eps / sigma, rtol=1e-10, atol=1e-10)
        if alpha == 0 and kind == "epsilon":
            with pytest.raises(
                ValueError, match=r"clean example that epsilon leads to .* alpha = 0"
            ):
                clean_and_noise(prediction, x, **level)
            continue
        found = clean_and_noise(prediction, x, **level)
        np.testing.assert_allclose(found, [x0, eps], rtol=1e-10, atol=1e-10)
        if alpha:
            again = clean_and_noise(score, x, **level | {"prediction_type": "score"})
            np.testing.assert_allclose(again, [x0, eps], rtol=1e-10, atol=1e-10)


def test_the_score_of_v_at_half_and_half():
    v = score_from_prediction(
        jnp.float32(0.6225), jnp.float32(1.0), alpha=0.5, sigma=0.5, prediction_type="v_prediction"
    )
    assert v == pytest.approx(-3.245, abs=1e-6)  # twice -1.6225


BAD_LEVELS = [
    ({"sigma": -1.0}, "sigma must be finite and > 0, got -1"),
    ({"sigma": 1e-30}, r"sigma must be from 1\.08e-19 to 9\.22e\+18, so that .*float32, got 1e-30"),
    ({"sigma": 0.0}, "sigma must be finite and > 0, got 0"),
    ({"sigma": np.nan}, "sigma must be finite and > 0, got nan"),
    ({"sigma": jnp.inf}, "sigma must be finite and > 0, got inf"),
    ({"sigma": 1e-60}, "sigma must be from .*, got 1e-60"),
    ({"sigma": jnp.array([0.5, -2.0])}, "sigma must be finite and > 0, got -2"),
    ({"sigma": "0.5"}, "sigma must be real numbers, got '0.5'"),
    ({"sigma": 0.5j}, "sigma must be real numbers, got 0.5j"),
    ({"sigma": True}, "sigma must be real numbers, got True"),
    ({"alpha": -0.1}, "alpha must be finite and >= 0, got -0.1"),
    ({"alpha": torch.tensor(-0.25)}, "alpha must be finite and >= 0, got -0.25"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_LEVELS)
def test_levels_are_checked_once_at_the_edge(changed, message):
    level = {"alpha": 0.6, "sigma": 0.8} | changed
    with pytest.raises(ValueError, match="ScorePair: " + message):
        ScorePair(jnp.negative, jnp.negative, **level)
    for function, kind in ((score_from_prediction, "epsilon"), (clean_and_noise, "v_prediction")):
        with pytest.raises(ValueError, match=f"{function.__name__}: {message}"):
            function(jnp.ones(2), jnp.ones(2), **level, prediction_type=kind)


def test_a_level_may_be_a_tensor_or_a_numpy_number():
    pair = ScorePair(jnp.negative, jnp.sin, alpha=np.float64(0.6), sigma=torch.tensor(0.8))
    assert isinstance(pair.sigma, np.ndarray)
    score = score_from_prediction(
        jnp.ones(2), jnp.ones(2), alpha=1, sigma=torch.tensor(0.5), prediction_type="epsilon"
    )
    np.testing.assert_array_equal(score, [-2, -2])


def test_unknown_prediction_type():
    with pytest.raises(ValueError, match=r"prediction_type must be one of epsilon, .* got 'flow'"):
        score_from_prediction(
            jnp.ones(2), jnp.ones(2), alpha=0.6, sigma=0.8, prediction_type="flow"
        )


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_a_prediction_has_the_shape_of_its_point(kind):
    for function in (score_from_prediction, clean_and_noise):
        with pytest.raises(ValueError, match=r"must have the shape of x, \(2,\), got \(3,\)"):
            function(jnp.ones(3), jnp.ones(2), alpha=0.6, sigma=0.8, prediction_type=kind)


def test_statistics_refuse_a_point_that_is_not_finite():
    """Their value was NaN."""
    pair = ScorePair(Partial(jnp.negative), Partial(jnp.sin), alpha=0.6, sigma=0.8)
    for name in ("score_difference", "hessian_score_difference", "hessian_score"):
        with pytest.raises(ValueError, match="x is not finite"):
            STATISTICS[name].function(pair, jnp.array([0.0, jnp.nan]))


def network(a, b, x):
    """A small smooth nonlinear field with an asymmetric Jacobian, on any shape."""
    return (a @ jnp.tanh(b @ x.ravel())).reshape(x.shape)


def networks(a, b, points):
    """The same in one batch: `a (2, ...)` and `b (2, ...)` stacked."""
    return jax.vmap(network)(a, b, points)


SHAPE = (2, 3)


def make_pair(seed, stacked):
    rng = np.random.default_rng(seed)
    a = jnp.asarray(rng.standard_normal((2, 6, 4)), jnp.float32)
    b = jnp.asarray(rng.standard_normal((2, 4, 6)), jnp.float32)
    return ScorePair(
        Partial(network, a[0], b[0]),
        Partial(network, a[1], b[1]),
        alpha=jnp.float32(0.6),
        sigma=jnp.float32(0.8),
        stacked=Partial(networks, a, b) if stacked else None,
    )


def draws(n, seed=7):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((n, *SHAPE)), jnp.float32)


# Sums of at most 6 products of numbers of order one: a few float32 roundings, 1e-5 is 20 of them.
CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stacked", [False, True])
class TestScorePair:
    def test_values(self, stacked):
        pair = make_pair(0, stacked)
        x, y = draws(2)
        u, c = pair.unconditional, pair.conditional
        np.testing.assert_allclose(pair.both(x), [u(x), c(x)], **CLOSE)
        np.testing.assert_allclose(pair.at(jnp.stack([x, y])), [u(x), c(y)], **CLOSE)
        np.testing.assert_allclose(pair.difference(x), c(x) - u(x), **CLOSE)
        np.testing.assert_allclose(pair.guided(x, 0.0), u(x), **CLOSE)
        np.testing.assert_allclose(pair.guided(x, 1.0), c(x), **CLOSE)
        np.testing.assert_allclose(pair.guided(x, 7.5), -6.5 * u(x) + 7.5 * c(x), rtol=1e-4)

    def test_tangents_are_the_dense_jacobians(self, stacked):
        pair = make_pair(0, stacked)
        x, v = draws(2)

        def dense(score, v):  # the naive twin
            return jnp.einsum("ijkl,kl->ij", jax.jacfwd(score)(x), v)

        here = pair.linearize(x)
        values = (here.unconditional, here.conditional)
        np.testing.assert_allclose(jnp.stack(values), pair.both(x), **CLOSE)
        np.testing.assert_allclose(here.difference, pair.difference(x), **CLOSE)
        h_u, h_c = dense(pair.unconditional, v), dense(pair.conditional, v)
        np.testing.assert_allclose(here.unconditional_tangent(v), h_u, **CLOSE)
        np.testing.assert_allclose(here.conditional_tangent(v), h_c, **CLOSE)
        np.testing.assert_allclose(here.difference_tangent(v), h_c - h_u, **CLOSE)

    def test_trees_of_its_shape_may_hold_anything(self, stacked):
        pair = make_pair(0, stacked)
        for leaf in (None, 0, -1.0, "x", object(), jax.sharding.PartitionSpec()):
            marked = jax.tree.map(lambda _, leaf=leaf: leaf, pair)
            assert marked.sigma is leaf
        assert jax.eval_shape(lambda p: p, pair).sigma.shape == ()
        slope = jax.grad(lambda p: -p.sigma * jnp.sum(p.both(jnp.ones(SHAPE))))(pair)
        assert slope.sigma == pytest.approx(-float(jnp.sum(pair.both(jnp.ones(SHAPE)))), rel=1e-5)
        many = jax.vmap(lambda s: dataclasses.replace(pair, sigma=s))(jnp.array([0.5, 0.8]))
        assert many.sigma.shape == (2,)
        axes = ScorePair(None, None, None, 0, None)
        assert jax.vmap(lambda p: p.sigma, (axes,))(
            dataclasses.replace(pair, sigma=many.sigma)
        ).shape == (2,)

    def test_crosses_jit_without_recompiling(self, stacked):
        f = jax.jit(lambda pair, x: pair.difference(x))  # a function of its own cache
        (x,) = draws(1)
        for seed in (0, 1):
            pair = make_pair(seed, stacked)
            expected = pair.conditional(x) - pair.unconditional(x)
            np.testing.assert_allclose(f(pair, x), expected, **CLOSE)
        assert f._cache_size() == 1

    def test_tangent_maps_leave_jit_and_are_reused(self, stacked):
        linearize = jax.jit(lambda pair, x: pair.linearize(x))
        apply = jax.jit(lambda h, v: h(v))
        pair, other = make_pair(0, stacked), make_pair(1, stacked)
        x, y, v, w = draws(4)
        h_u = linearize(pair, x).unconditional_tangent
        h_other = linearize(other, y).unconditional_tangent  # must not disturb the one kept
        for direction in (v, w):
            expected = jax.jvp(pair.unconditional, (x,), (direction,))[1]
            np.testing.assert_allclose(h_u(direction), expected, **CLOSE)
            np.testing.assert_allclose(apply(h_u, direction), expected, **CLOSE)
        expected = jax.jvp(other.unconditional, (y,), (v,))[1]
        np.testing.assert_allclose(apply(h_other, v), expected, **CLOSE)
        # a map kept from one point and condition serves another without recompiling
        assert linearize._cache_size() == 1
        assert apply._cache_size() == 1
        leaves = jax.tree.leaves(h_u)
        assert leaves
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
