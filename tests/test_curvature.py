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
from matfree import stochtrace

from sharpjax import curvature
from sharpjax.curvature import Estimate
from sharpjax.curvature.traces import _hutchinson
from sharpjax.densities import Empirical, Gaussian

SAMPLERS = ("signs", "normal", "sphere")


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


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


def symmetric(spectrum, seed=0):
    spectrum = np.asarray(spectrum, np.float64)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=2 * spectrum.shape))
    return (basis * spectrum) @ basis.T


def score_with_curvature(K, sigma):
    """The linear score with I + sigma^2 H = K."""
    return Partial(linear, jnp.asarray((K - np.eye(len(K))) / sigma**2))


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


def test_eigenvalues(dtype):
    score, x, _, J = setting(dtype)
    values = curvature.eigenvalues(score, x, chunk_size=4)
    close(values, np.linalg.eigvalsh(0.5 * (J + J.T)), dtype)
    p = Gaussian(np.zeros(3, dtype), np.diag([4.0, 1.0, 0.25]).astype(dtype))
    close(curvature.eigenvalues(p.score, jnp.ones(3, dtype)), [-4.0, -1.0, -0.25], dtype)


# --- Traces -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_hutchinson_against_a_naive_twin_seed_for_seed(sampler, x64):
    score, x, _, J = setting(np.float64)
    sigma, key, num, d = 0.5, jax.random.key(7), 10, x.size
    draw = jax.jit(getattr(stochtrace, f"sampler_{sampler}")(x, num=1))
    probes = [np.asarray(draw(jax.random.fold_in(key, i))).ravel() for i in range(num)]
    K = np.eye(d) + sigma**2 * J
    on_H = [v @ J @ v for v in probes]
    on_K = [v @ K @ v for v in probes]
    rescaled = [(q - d) / sigma**2 for q in on_K]

    options = {"key": key, "num_matvecs": num, "sampler": sampler, "batch_size": 4}
    for estimate, samples in (
        (curvature.trace(score, x, **options), on_H),
        (curvature.trace(score, x, sigma=sigma, **options), rescaled),
        (curvature.effective_dimension(score, x, sigma=sigma, **options), on_K),
    ):
        assert (estimate.num_samples, estimate.num_matvecs) == (num, num)
        close(estimate.value, np.mean(samples))
        close(estimate.standard_error, np.std(samples, ddof=1) / math.sqrt(num))


def test_batches_do_not_change_the_numbers():
    score, x, _, _ = setting(np.float32)
    options = {"key": jax.random.key(0), "num_matvecs": 20}
    whole = curvature.trace(score, x, batch_size=20, **options)
    for batch_size in (1, 7):
        parts = curvature.trace(score, x, batch_size=batch_size, **options)
        close(parts.value, whole.value, np.float32)
        close(parts.standard_error, whole.standard_error, np.float32)


def test_memory_does_not_grow_with_the_number_of_probes():
    score = Partial(linear, jnp.eye(512))
    J = curvature.jacobian(score, jnp.ones(512))

    def temporary_bytes(num_matvecs):
        options = {"num_matvecs": num_matvecs, "sampler": "signs", "batch_size": 8}
        program = _hutchinson.lower(J, jax.random.key(0), 1.0, **options).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4096) < 2 * temporary_bytes(64)


def test_exact_trace_and_effective_dimension(dtype):
    score, x, _, J = setting(dtype)
    estimate = curvature.trace(score, x, method="exact", batch_size=4)
    close(estimate.value, np.trace(J), dtype)
    assert (float(estimate.standard_error), estimate.num_matvecs) == (0.0, 6)
    low, high = estimate.interval()
    assert low == high == estimate.value
    with_sigma = curvature.trace(score, x, method="exact", sigma=0.5)
    close(with_sigma.value, np.trace(J), dtype)
    K = curvature.effective_dimension(score, x, sigma=0.5, method="exact")
    close(K.value, 6 + 0.25 * np.trace(J), dtype)


def test_effective_dimension_of_a_data_set():
    p = Empirical(np.random.default_rng(0).normal(size=(20, 2, 4))).noised(0.6, 0.8)
    x = jnp.full((2, 4), 0.3)
    exact = curvature.effective_dimension(p.score, x, sigma=p.sigma, method="exact")
    close(exact.value, p.effective_dimension(x), np.float32)
    options = {"key": jax.random.key(0), "num_matvecs": 200}
    estimate = curvature.effective_dimension(p.score, x, sigma=p.sigma, **options)
    assert abs(estimate.value - exact.value) < 4.5 * estimate.standard_error


def test_the_trace_of_pure_noise_has_no_error_on_K():
    """H = -I/sigma^2: normal probes err on H, and on K = 0 they cannot."""
    score, x = Partial(linear, -4.0 * jnp.eye(8)), jnp.ones(8)
    options = {"key": jax.random.key(0), "sampler": "normal"}
    on_K = curvature.trace(score, x, sigma=0.5, **options)
    assert (float(on_K.value), float(on_K.standard_error)) == (-32.0, 0.0)
    assert float(curvature.trace(score, x, **options).standard_error) > 0.5


def replicate(K, sigma, *, sampler, num_matvecs, repetitions):
    """Independent estimates of tr K: an Estimate with a batch axis."""
    score, x = score_with_curvature(K, sigma), jnp.zeros(len(K))
    options = {"sigma": sigma, "sampler": sampler, "num_matvecs": num_matvecs}

    @jax.jit
    @jax.vmap
    def run(key):
        return curvature.effective_dimension(score, x, key=key, batch_size=num_matvecs, **options)

    return run(jax.random.split(jax.random.key(11), repetitions))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_hutchinson_is_unbiased_and_covers_the_truth(sampler, x64):
    """Nominal 95% intervals from 64 probes cover 93 to 97%: effective rank at least 10, d = 32.

    With 3,000 repetitions the observed coverage has a binomial standard error of 0.4 points, so
    the band is 5 of them wide on each side of 95%.
    """
    K = symmetric(np.geomspace(3.0, 0.05, 32))
    assert np.trace(K) ** 2 / np.sum(K**2) >= 10
    repetitions, truth = 3000, np.trace(K)
    estimates = replicate(K, 0.5, sampler=sampler, num_matvecs=64, repetitions=repetitions)
    low, high = estimates.interval(level=0.95)
    coverage = np.mean((low <= truth) & (truth <= high))
    assert 0.93 < coverage < 0.97
    values = np.asarray(estimates.value)
    spread = values.std(ddof=1)
    assert abs(values.mean() - truth) < 4.5 * spread / math.sqrt(repetitions)
    # The standard error that is reported is the spread that is observed.
    reported = math.sqrt(np.mean(np.asarray(estimates.standard_error) ** 2))
    assert abs(reported / spread - 1) < 5 / math.sqrt(2 * repetitions)
    # And it is the one of theory: 2 |off-diagonal|^2 for signs, 2 |K|^2 for normal probes.
    squares = np.sum(K**2)
    variance = {
        "signs": 2 * (squares - np.sum(np.diag(K) ** 2)),
        "normal": 2 * squares,
        "sphere": 2 * (squares - truth**2 / 32) * 32 / 34,
    }[sampler]
    assert abs(spread / math.sqrt(variance / 64) - 1) < 5 / math.sqrt(2 * repetitions)


# --- Estimate ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_interval_is_students(level, x64):
    samples = np.random.default_rng(0).normal(size=7)
    estimate = Estimate.from_samples(jnp.asarray(samples), num_matvecs=14)
    exact = scipy.stats.t.interval(level, 6, samples.mean(), scipy.stats.sem(samples))
    close(estimate.interval(level), exact)
    assert (estimate.num_samples, estimate.num_matvecs) == (7, 14)


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
    ("options", "message"),
    [
        ({"method": "hutch"}, r"Unknown method 'hutch'; choose one of \['hutchinson', 'exact'\]"),
        ({"sampler": "cauchy"}, r"Unknown sampler 'cauchy'; choose one of .*'sphere'"),
        ({"key": None}, r"pass key=jax\.random\.key"),
        ({"num_matvecs": 0}, "num_matvecs must be an integer >= 1, got 0"),
        ({"num_matvecs": 2.0}, r"num_matvecs must be an integer >= 1, got 2\.0"),
        ({"num_matvecs": True}, "num_matvecs must be an integer >= 1, got True"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"sigma": 0.0}, r"sigma must be finite and > 0, got 0\.0"),
        ({"sigma": -1.0}, r"sigma must be finite and > 0, got -1\.0"),
        ({"sigma": float("nan")}, "sigma must be finite"),
        ({"sigma": np.ones(2)}, r"sigma must be one number, got shape \(2,\)"),
    ],
)
@pytest.mark.parametrize("function", [curvature.trace, curvature.effective_dimension])
def test_bad_trace_options(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(lambda x: -x, jnp.ones(3), **{"key": KEY, "sigma": 1.0} | options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curvature.jacobian(lambda x: x[:2], jnp.ones(3)), r"shape of x, \(3,\), got \(2"),
        (lambda: curvature.jacobian(lambda x: (x, x), jnp.ones(3)), "shape of x"),
        (lambda: curvature.jacobian(lambda x: x, jnp.arange(3)), "floating.*int32"),
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
