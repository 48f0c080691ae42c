"""Operators, traces and spectra against dense matrices, naive twins and Monte Carlo."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from sharpjax import curvature
from sharpjax.curvature import Estimate
from sharpjax.densities import Gaussian


def close(actual, desired, dtype=np.float64):
    tolerance = 1e-11 if dtype == np.float64 else 2e-5
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def network_like(weights, x):
    """A nonlinear score that is no gradient: its Jacobian is not symmetric."""
    return (jnp.tanh(weights @ x.ravel()) * jnp.cos(x.ravel()[::-1])).reshape(x.shape)


def linear(matrix, x):
    return matrix @ x


def setting(dtype, shape=(2, 3), seed=0):
    rng = np.random.default_rng(seed)
    d = math.prod(shape)
    weights = jnp.asarray(rng.normal(size=(d, d)).astype(dtype))
    x, v = (jnp.asarray(rng.normal(size=shape).astype(dtype)) for _ in range(2))
    J = jax.jacfwd(lambda y: network_like(weights, y.reshape(shape)).ravel())(x.ravel())
    return Partial(network_like, weights), x, v, np.asarray(J)


# --- The Jacobian -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_products_against_jacfwd(shape, dtype):
    score, x, v, dense = setting(dtype, shape)
    J = curvature.jacobian(score, x)
    close(J.value, score(x), dtype)
    close(J.mv(v).ravel(), dense @ v.ravel(), dtype)
    close(J.rmv(v).ravel(), dense.T @ v.ravel(), dtype)
    close(J.symmetric_mv(v).ravel(), 0.5 * (dense + dense.T) @ v.ravel(), dtype)
    close(J.dense(), dense, dtype)
    assert J.mv(v).shape == J.rmv(v).shape == shape
    assert J.mv(v).dtype == J.dense().dtype == dtype


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_chunks_need_not_divide_the_dimension(chunk_size):
    score, x, _, dense = setting(np.float32)
    J = curvature.jacobian(score, x)
    close(J.dense(chunk_size=chunk_size), dense, np.float32)
    close(J.diagonal(chunk_size=chunk_size), np.diag(dense), np.float32)
    close(curvature.hessian(score, x, chunk_size=chunk_size), dense, np.float32)


def test_a_memory_budget_decides_the_chunk():
    """All of the matrix and at least one tangent fit in what the error message asks for."""
    score, x, _, dense = setting(np.float32)
    with pytest.raises(ValueError, match="too small") as refused:
        curvature.hessian(score, x, memory_budget=6 * 6 * 4)
    least = int(re.search(r"at least (\d+) bytes", str(refused.value))[1])
    for budget in (least, 10 * least):
        close(curvature.hessian(score, x, memory_budget=budget), dense, np.float32)
    values = curvature.eigenvalues(score, x, memory_budget=least)
    close(values, np.linalg.eigvalsh(0.5 * (dense + dense.T)), np.float32)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_transpose_is_the_adjoint(seed):
    with jax.enable_x64(True):
        score, x, v, _ = setting(np.float64, seed=seed)
        w = jnp.cos(v)
        J = curvature.jacobian(score, x)
        close(jnp.vdot(w, J.mv(v)), jnp.vdot(J.rmv(w), v))


def test_jacobian_leaves_jit_and_is_batched_by_vmap(x64):
    score, x, v, dense = setting(np.float64)
    J = jax.jit(curvature.jacobian)(score, x)
    close(J.mv(v).ravel(), dense @ v.ravel())
    close(jax.jit(lambda J, v: J.rmv(v))(J, v).ravel(), dense.T @ v.ravel())
    many = jax.vmap(curvature.jacobian, (None, 0))(score, jnp.stack([x, 2 * x]))
    first = jax.vmap(lambda J: J.mv(v))(many)[0]
    close(first.ravel(), dense @ v.ravel())
    slope = jax.grad(lambda x: jnp.sum(curvature.jacobian(score, x).mv(v) ** 2))(x)
    assert slope.shape == x.shape
    assert float(jnp.abs(slope).max()) > 0


def test_a_score_that_is_a_pytree_is_traced_once():
    traces = 0

    def counted(weights, x):
        nonlocal traces
        traces += 1
        return network_like(weights, x)

    for seed in range(3):
        score, x, v, dense = setting(np.float32, seed=seed)
        J = curvature.jacobian(Partial(counted, *score.args), x)
        close(J.mv(v).ravel(), dense @ v.ravel(), np.float32)
        curvature.trace(Partial(counted, *score.args), x, key=jax.random.key(0))
    assert traces == 1


def test_a_closure_that_changes_is_not_answered_from_a_stale_program():
    box = {"scale": 1.0}

    def score(x):
        return box["scale"] * x

    x = jnp.ones(2)
    assert curvature.jacobian(score, x).mv(x).tolist() == [1.0, 1.0]
    box["scale"] = 3.0
    assert curvature.jacobian(score, x).mv(x).tolist() == [3.0, 3.0]
    assert float(curvature.trace(score, x, method="exact").value) == 6.0


def test_asymmetry(x64):
    score, x, _, J = setting(np.float64)
    exact = np.linalg.norm(J - J.T) / np.linalg.norm(J + J.T)
    close(curvature.asymmetry(J), exact)
    close(curvature.asymmetry(curvature.jacobian(score, x)), exact)
    rotation = np.array([[0.0, 1.0], [-1.0, 0.0]])
    assert float(curvature.asymmetry(np.eye(3))) == float(curvature.asymmetry(0 * rotation)) == 0
    assert math.isinf(curvature.asymmetry(rotation))


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 3e37])
def test_asymmetry_over_the_range_of_float32(scale):
    A = np.random.default_rng(0).normal(size=(5, 5))
    exact = np.linalg.norm(A - A.T) / np.linalg.norm(A + A.T)
    close(curvature.asymmetry((scale * A).astype(np.float32)), exact, np.float32)


def test_eigenvalues(dtype):
    score, x, _, J = setting(dtype)
    values = curvature.eigenvalues(score, x, chunk_size=4)
    close(values, np.linalg.eigvalsh(0.5 * (J + J.T)), dtype)
    p = Gaussian(np.zeros(3, dtype), np.diag([4.0, 1.0, 0.25]).astype(dtype))
    close(curvature.eigenvalues(p.score, jnp.ones(3, dtype)), [-4.0, -1.0, -0.25], dtype)


# --- Estimate ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_interval_is_students(level, x64):
    samples = np.random.default_rng(0).normal(size=7)
    estimate = Estimate.from_samples(jnp.asarray(samples), num_matvecs=14)
    exact = scipy.stats.t.interval(level, 6, samples.mean(), scipy.stats.sem(samples))
    close(estimate.interval(level), exact)
    assert (estimate.num_samples, estimate.num_matvecs) == (7, 14)


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1.0, 1e20, 1e38])
def test_mean_and_error_over_the_range_of_float32(scale):
    samples = np.random.default_rng(0).uniform(0.5, 1.0, (9, 2)) * [scale, 1.0]
    estimate = Estimate.from_samples(jnp.asarray(samples, jnp.float32), num_matvecs=9)
    np.testing.assert_allclose(estimate.value, samples.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(estimate.standard_error, scipy.stats.sem(samples), rtol=1e-5)


def test_the_error_of_equal_samples_has_a_derivative():
    def spread(x):
        return Estimate.from_samples(x * jnp.ones(4), num_matvecs=4).standard_error

    assert float(spread(0.1)) == float(jax.grad(spread)(0.1)) == 0.0


def test_estimates_cross_transformations():
    score, x, _, _ = setting(np.float32)
    key = jax.random.key(0)
    one = curvature.trace(score, x, sigma=0.5, key=key)
    same = jax.jit(lambda s: curvature.trace(score, x, sigma=s, key=key))(0.5)
    close(same.value, one.value, np.float32)
    assert (same.num_samples, same.num_matvecs) == (32, 32)
    many = jax.vmap(lambda k: curvature.trace(score, x, key=k))(jax.random.split(key, 3))
    assert many.value.shape == many.interval()[0].shape == (3,)
    assert "num_samples=32" in repr(many)
    assert repr(jax.tree.map(lambda _: None, one)).startswith("Estimate(")
    assert re.fullmatch(r"Estimate\(-?[\d.]+ ± [\d.]+, num_samples=32, num_matvecs=32\)", repr(one))


def test_one_sample_has_a_value_and_no_error():
    score, x, _, _ = setting(np.float32)
    estimate = curvature.trace(score, x, key=jax.random.key(0), num_matvecs=1)
    assert np.isfinite(estimate.value)
    assert "±" not in repr(estimate)
    for ask in (lambda: estimate.standard_error, estimate.interval):
        with pytest.raises(ValueError, match=r"One sample has no standard error.*at least 2"):
            ask()


# --- Errors -----------------------------------------------------------------------------------

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curvature.jacobian(lambda x: x[:2], jnp.ones(3)), r"shape of x, \(3,\), got \(2"),
        (lambda: curvature.jacobian(lambda x: (x, x), jnp.ones(3)), "shape of x"),
        (lambda: curvature.jacobian(lambda x: x, jnp.arange(3)), "float32 or float64.*int32"),
        (lambda: curvature.jacobian(lambda x: x, jnp.ones(3, jnp.bfloat16)), "got dtype bfloat16"),
        (lambda: curvature.jacobian(lambda x: x, jnp.ones((2, 0))), r"no coordinates.*\(2, 0\)"),
        (lambda: curvature.jacobian(lambda x: x, jnp.ones(3)).mv(jnp.ones(4)), r"shape \(4,\)"),
        (lambda: curvature.jacobian(lambda x: x, jnp.ones(3)).rmv(jnp.ones((2, 3))), "vmap"),
        (lambda: curvature.hessian(lambda x: x, jnp.ones(3), chunk_size=0), "chunk_size.*got 0"),
        (lambda: curvature.hessian(jnp.log, jnp.zeros(3)), r"score\(x\) is not finite: 3 of 3"),
        (lambda: curvature.hessian(jnp.log, jnp.full(3, jnp.nan)), "x is not finite"),
        (
            lambda: curvature.hessian(jnp.sqrt, jnp.array([1.0, 0.0])),  # an infinite slope
            r"The Jacobian is not finite: 1 of 4 entries, the first at index \(1, 1\)",
        ),
        (
            lambda: curvature.hessian(jnp.sin, jnp.ones(9), memory_budget=300),
            r"memory_budget=300 bytes is too small: the result takes 324 .* at least \d+ bytes",
        ),
        (
            lambda: curvature.hessian(jnp.sin, jnp.ones(9), memory_budget=9**9, chunk_size=2),
            "chunk_size or memory_budget, not both",
        ),
        (lambda: curvature.eigenvalues(lambda x: x, jnp.ones(3), chunk_size=1.5), "chunk_size"),
        (lambda: curvature.asymmetry(jnp.ones((2, 3))), r"square matrix.*\(2, 3\)"),
        (lambda: Estimate(0.0, 1.0, 5, 5).interval(95), "level must be between 0 and 1, got 95"),
    ],
)
def test_bad_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_x64_did_not_leak():
    assert jnp.ones(()).dtype == jnp.float32
