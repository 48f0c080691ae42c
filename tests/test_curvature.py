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
        with pytest.raises(ValueError, match=r"one sample has no standard error.*at least 2"):
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
        (
            lambda: curvature.jacobian(lambda x: x, jnp.ones((2, 0))),
            r"must have coordinates.*\(2, 0\)",
        ),
        (lambda: curvature.jacobian(lambda x: x, jnp.ones(3)).mv(jnp.ones(4)), r"shape \(4,\)"),
        (lambda: curvature.jacobian(lambda x: x, jnp.ones(3)).rmv(jnp.ones((2, 3))), "vmap"),
        (lambda: curvature.hessian(lambda x: x, jnp.ones(3), chunk_size=0), "chunk_size.*got 0"),
        (lambda: curvature.hessian(jnp.log, jnp.zeros(3)), r"score\(x\) is not finite: 3 of 3"),
        (lambda: curvature.hessian(jnp.log, jnp.full(3, jnp.nan)), "x is not finite"),
        (
            lambda: curvature.hessian(jnp.sqrt, jnp.array([1.0, 0.0])),  # an infinite slope
            r"The Jacobian is not finite: 1 of 4 entries, the first at index \(1, 1\)",
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


# --- Types, in one place ----------------------------------------------------------------------

ANY = {
    "trace": (curvature.trace, {"key": KEY}),
    "trace, sigma": (curvature.trace, {"key": KEY, "sigma": np.float64(0.5)}),
    "hutch++": (curvature.trace, {"key": KEY, "method": "hutch++", "num_matvecs": 6}),
    "xtrace": (curvature.trace, {"key": KEY, "method": "xtrace", "num_matvecs": 6}),
    "until sure": (curvature.trace, {"key": KEY, "rtol": np.float64(0.9), "num_matvecs": 16}),
    "effective dimension": (curvature.effective_dimension, {"key": KEY, "sigma": np.float64(0.5)}),
    "power": (curvature.trace_of_power, {"key": KEY, "power": 3, "sigma": np.float64(0.5)}),
    "norm": (curvature.frobenius_norm, {"key": KEY, "sigma": np.float64(0.5)}),
    "diagonal": (curvature.diagonal, {"key": KEY}),
    "hessian": (curvature.hessian, {}),
    "eigenvalues": (curvature.eigenvalues, {}),
    "lanczos": (curvature.lanczos, {"key": KEY, "num_matvecs": 4}),
    "arnoldi": (curvature.arnoldi, {"start": np.arange(1.0, 9.0), "num_matvecs": 4}),
    "pairs": (curvature.extreme_eigenpairs, {"key": KEY, "k": 2, "rtol": np.float64(1e-3)}),
    "density": (
        curvature.spectral_density,
        {"key": KEY, "grid": np.linspace(-3.0, 3, 4), "bandwidth": np.float64(0.3)},
    ),
    "inertia": (curvature.inertia, {"tolerance": np.float64(0.1)}),
    "slq": (curvature.inertia, {"method": "slq", "key": KEY, "tolerance": np.float64(0.1)}),
    "asymmetry": (curvature.stochastic_asymmetry, {"key": KEY}),
    "p": (curvature.p_laplacian, {"p": np.float64(1.5)}),
    "flux": (
        curvature.p_laplacian,
        {"p": np.float64(1.5), "method": "flux", "key": KEY, "radius": np.float64(0.5)},
    ),
    "ball": (curvature.p_laplacian, {"method": "ball", "key": KEY, "radius": np.float64(0.5)}),
}


@pytest.mark.fast_cases("float64-float32-trace", "float64-float32-lanczos", "float64-float32-ball")
@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize(("of_x", "of_score"), [("float32", "float64"), ("float64", "float32")])
def test_results_are_in_the_type_of_the_point(name, of_x, of_score, x64):
    """A score and options of another type give the numbers of those of the same type."""
    estimator, options = ANY[name]
    x = jnp.asarray(np.linspace(0.3, 1.0, 8), of_x)

    def score_in(dtype):
        weights = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)), dtype)
        return lambda x: -jnp.tanh(weights @ x.astype(dtype))

    def numbers(result):
        return [leaf for leaf in jax.tree.leaves(result) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    found = numbers(estimator(score_in(of_score), x, **options))
    wanted = numbers(estimator(score_in(of_x), x, **options))
    assert found
    for ours, theirs in zip(found, wanted, strict=True):
        assert jnp.finfo(ours.dtype).dtype == of_x
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3)  # float32 in one of them


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["trace", "lanczos", "p", "flux", "hessian"])
def test_a_score_in_half_precision_is_refused(name, half):
    """It gave -512 ± 0 for -511.609."""
    estimator, options = ANY[name]
    with pytest.raises(ValueError, match=r"score\(x\) must be float32 or float64, got dtype \w*16"):
        estimator(lambda x: (-0.9992 * x).astype(half), jnp.ones(8), **options)


def test_a_network_may_use_half_precision_inside():
    inside = curvature.trace(
        lambda x: (-2 * x.astype(jnp.bfloat16)).astype(jnp.float32), jnp.ones(8), method="exact"
    )
    assert float(inside.value) == -16.0


@pytest.mark.parametrize("x", [
    np.arange(1.0, 4, dtype=">f4"), np.arange(1.0, 4, dtype=">f8"), (1.0, 2.0, 3.0), [1.0, 2, 3],
])  # fmt: skip
def test_points_of_other_make(x):
    assert float(curvature.trace(lambda x: -x * x, x, method="exact").value) == -12.0


def test_numbers_of_other_make():
    torch = pytest.importorskip("torch")
    for sigma in (torch.tensor(0.5), np.float16(0.5), np.array(0.5), jnp.float32(0.5), 0.5):
        found = curvature.effective_dimension(lambda x: -3 * x, jnp.ones(4), sigma=sigma, key=KEY)
        assert float(found.value) == 1.0
    x = torch.tensor([1.0, 2.0])
    assert float(curvature.trace(lambda x: -x, x, method="exact").value) == -2.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curvature.hessian(lambda x: x, {"a": jnp.ones(3)}), "got dict.*ravel_pytree"),
        (lambda: curvature.hessian(lambda x: x, (np.ones(3), np.ones(2))), "one array of numbers"),
        (lambda: curvature.hessian(lambda x: x, np.array([1, None])), "object.*ravel_pytree"),
        (lambda: curvature.hessian(lambda x: x, np.ones(3, np.longdouble)), "JAX lacks.*float64"),
        (lambda: curvature.hessian(lambda x: jnp.ones(3, int), jnp.ones(3)), "whole numbers"),
        (lambda: curvature.hessian(lambda x: x, np.arange(3)), r"int\d+: whole numbers"),
        (
            lambda: curvature.trace(cube, jnp.ones(3), key=True),
            r"got True; pass key=jax.random.key",
        ),
        (
            lambda: curvature.lanczos(cube, jnp.ones(3), key="a"),
            "a PRNG key of JAX or its seed, got .a.",
        ),
        (
            lambda: curvature.trace(cube, jnp.ones(3), key=jax.random.split(KEY, 2)),
            r"one key, got \(2,\) of them; use jax.vmap",
        ),
        (
            lambda: curvature.trace(cube, jnp.ones(3), key=KEY, sigma=1e-25),
            "sigma must be from",
        ),
        (
            lambda: curvature.trace(cube, jnp.ones(3), key=KEY, sigma=1e25),
            "power 2 is a number",
        ),
        (
            lambda: curvature.trace_of_power(cube, jnp.ones(3), key=KEY, power=4, sigma=1e-6),
            "so that its power 8 is a number in float32",
        ),
        (lambda: curvature.extreme_eigenpairs(cube, jnp.ones(3), key=KEY, rtol=0), "rtol must be"),
        (
            lambda: curvature.trace(cube, jnp.ones(3), key=KEY, num_matvecs=10**12),
            "num_matvecs must be an integer from 1 to 2147483647, got 1000000000000",
        ),
        *(
            (
                lambda f=f, s=s: curvature.trace_of_power(
                    lambda x: -s * jnp.arange(1.0, 65) * x, jnp.ones(64), power=2, key=KEY, method=f
                ),
                "Powers of the Jacobian are of the size of .*drops parts of their trace: give the",
            )
            for f in ("exact", "hutchinson")
            for s in (1e-20, 1e-21)
        ),
    ],
)
def test_what_cannot_be_computed_with(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def cube(x):
    return -(x**3)


@pytest.mark.parametrize("scale", [1e-60, 1e-38, 1e-44, 1e37])
def test_the_length_of_a_start_does_not_matter(scale):
    found = curvature.lanczos(
        lambda x: -jnp.array([1.0, 2.0]) * x, jnp.ones(2), start=np.array([scale, 2 * scale])
    )
    np.testing.assert_allclose(found.values[:2], [-2, -1], rtol=1e-5)
    assert int(found.num_valid) == 2


@pytest.mark.fast_cases("trace-rbg")
@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
@pytest.mark.parametrize("name", ["trace", "diagonal", "density", "asymmetry", "flux", "ball"])
def test_other_keys_draw_the_same_in_any_batch(implementation, name):
    estimator, options = ANY[name]
    options = options | {"key": jax.random.key(0, impl=implementation)}
    found = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(
            estimator(lambda x: -jnp.tanh(x) * x[::-1], jnp.arange(1.0, 9), batch_size=b, **options)
        )])
        for b in (1, 3, 8, 32)
    ]  # fmt: skip
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("d", [1, 5, 10, 15, 31])
def test_sketches_of_few_dimensions_are_exact(method, d):
    found = curvature.trace(lambda x: -(x**2), jnp.ones(d), key=KEY, method=method)
    assert (float(found.value), float(found.standard_error)) == (-2.0 * d, 0.0)
    assert found.num_matvecs == d


def test_powers_of_a_nilpotent_jacobian_are_zero():
    shift = jnp.diag(jnp.ones(3), 1)
    for method in ("exact", "hutchinson"):
        found = curvature.trace_of_power(
            lambda x: shift @ x, jnp.ones(4), power=4, key=KEY, method=method
        )
        assert float(found.value) == 0.0
