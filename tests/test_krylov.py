"""Lanczos and Arnoldi against dense eigenvalues, a naive twin, and breakdowns of every kind."""

import collections
import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax.curvature import at_points, jacobian
from sharpjax.curvature.krylov import _lanczos, arnoldi, lanczos

KEY = jax.random.key(0)
M = 5  # products, in most tests: one program serves them


def linear(matrix, x):
    return (matrix @ x.ravel()).reshape(x.shape)


def network_like(weights, x):
    """A nonlinear score that is no gradient: its Jacobian is not symmetric."""
    return (jnp.tanh(weights @ x.ravel()) * jnp.cos(x.ravel()[::-1])).reshape(x.shape)


def setting(dtype, shape=(3, 4), seed=0):
    rng = np.random.default_rng(seed)
    d = math.prod(shape)
    weights = jnp.asarray(rng.normal(size=(d, d)).astype(dtype))
    x, start = (jnp.asarray(rng.normal(size=shape).astype(dtype)) for _ in range(2))
    J = jax.jacfwd(lambda y: network_like(weights, y.reshape(shape)).ravel())(x.ravel())
    return Partial(network_like, weights), x, start, np.asarray(J, np.float64)


def rounding(A, dtype):
    return 10 * math.sqrt(len(A)) * np.finfo(dtype).eps * np.linalg.norm(A, 2)


def naive_lanczos(A, start, m):
    """The tridiagonal matrix from an explicit, QR-orthonormalised Krylov basis."""
    basis = [start / np.linalg.norm(start)]
    for _ in range(m):
        basis.append(A @ basis[-1])
        Q, R = np.linalg.qr(np.stack(basis, axis=1))
        basis = list((Q * np.sign(np.diag(R))).T)
    Q = np.stack(basis[:m], axis=1)
    values, S = np.linalg.eigh(Q.T @ A @ Q)
    beta = abs(basis[m] @ A @ basis[m - 1]) if m < len(A) else 0.0
    return values, beta * np.abs(S[-1]), S[0] ** 2, (Q @ S).T


# --- Against the naive twin and the dense matrix ------------------------------------------------


@pytest.mark.fast_cases("float64")
def test_lanczos_against_a_naive_twin(dtype):
    score, x, start, J = setting(dtype)
    A = 0.5 * (J + J.T)
    values, residuals, weights, vectors = naive_lanczos(A, np.asarray(start, float).ravel(), 7)
    ritz = lanczos(score, x, num_matvecs=7, start=start, vectors=True)
    # Vectors and weights of well separated Ritz values are as sure as the values over the gaps.
    tolerance = rounding(A, dtype)
    loose = 10 * tolerance / np.diff(values).min()
    assert int(ritz.num_valid) == 7
    np.testing.assert_allclose(ritz.values, values, atol=tolerance)
    np.testing.assert_allclose(ritz.residuals, residuals, atol=loose)
    np.testing.assert_allclose(ritz.weights, weights, atol=loose)
    assert ritz.vectors.shape == (7, *x.shape)
    found = np.asarray(ritz.vectors).reshape(7, -1)
    np.testing.assert_allclose(np.abs(found @ vectors.T), np.eye(7), atol=loose)
    # The residual is what it says.
    actual = np.linalg.norm(found @ A - np.asarray(ritz.values)[:, None] * found, axis=1)
    np.testing.assert_allclose(ritz.residuals, actual, atol=tolerance)
    assert actual.max() > 1000 * tolerance


@pytest.mark.fast_cases("float64")
def test_a_full_space_holds_the_whole_spectrum(dtype):
    num_matvecs = 12 if dtype == np.float64 else 20  # as many as dimensions, and more
    score, x, _, J = setting(dtype)
    A = 0.5 * (J + J.T)
    ritz = lanczos(score, x, num_matvecs=num_matvecs, key=KEY)
    assert ritz.values.shape == ritz.residuals.shape == ritz.weights.shape == (num_matvecs,)
    assert int(ritz.num_valid) == 12
    np.testing.assert_allclose(ritz.values[:12], np.linalg.eigvalsh(A), atol=rounding(A, dtype))
    assert (ritz.values[12:] == ritz.values[11]).all()
    assert (ritz.weights[12:] == 0).all()
    general = arnoldi(score, x, num_matvecs=num_matvecs, key=KEY)
    assert int(general.num_valid) == 12
    exact = np.linalg.eigvals(J)
    # Bauer and Fike: a perturbation moves eigenvalues by at most its norm times this.
    condition = np.linalg.cond(np.linalg.eig(J)[1])
    distance = np.abs(np.asarray(general.values[:12])[:, None] - exact)
    furthest = max(distance.min(axis=0).max(), distance.min(axis=1).max())
    assert furthest < condition * rounding(J, dtype) < 0.01
    assert (np.diff(general.values.real[:12]) >= 0).all()
    assert (general.values[12:] == general.values[11]).all()


def test_a_known_symmetry_halves_the_cost_and_keeps_the_numbers(x64):
    _, x, start, J = setting(np.float64)

    def largest_difference(matrix):
        score = Partial(linear, jnp.asarray(matrix))
        options = {"num_matvecs": M, "start": start}
        both, tangents = (lanczos(score, x, symmetric=s, **options) for s in (False, True))
        return float(jnp.abs(both.values - tangents.values).max())

    assert largest_difference(J + J.T) < rounding(J + J.T, np.float64)
    # On a nonsymmetric J they give other numbers: the cotangents were really left out.
    assert largest_difference(J) > 0.01


def test_weights_are_a_gauss_quadrature(x64):
    """Exact for polynomials up to degree 2 m - 1, and not for the next."""
    score, x, start, J = setting(np.float64)
    A, v = 0.5 * (J + J.T), np.asarray(start).ravel()
    A = A / np.linalg.norm(A, 2)
    score = Partial(linear, jnp.asarray(A))
    ritz = lanczos(score, x, num_matvecs=M, start=start)
    errors = []
    for degree in range(2 * M + 1):
        exact = v @ np.linalg.matrix_power(A, degree) @ v / (v @ v)
        errors.append(abs(float(jnp.sum(ritz.weights * ritz.values**degree)) - exact))
    assert max(errors[:-1]) < 1e-14
    assert errors[-1] > 1e-6


def test_arnoldi_residual_is_a_backward_error(x64):
    """theta is an eigenvalue of J + E with ||E|| = residual: sigma_min(J - theta I) <= it."""
    _, x, start, J = setting(np.float64)
    ritz = arnoldi(Partial(linear, jnp.asarray(J)), x, num_matvecs=M, start=start)
    values, residuals = np.asarray(ritz.values), np.asarray(ritz.residuals)
    least = [np.linalg.svd(J - v * np.eye(12), compute_uv=False)[-1] for v in values]
    assert (least <= residuals + rounding(J, np.float64)).all()
    assert np.iscomplexobj(values)
    assert residuals.min() > 1e-3
    assert ritz.weights is None


# --- Breakdown ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [-4.0, 0.0, 1.0, 1e-30, 1e25])
@pytest.mark.parametrize("process", [lanczos, arnoldi])
def test_multiples_of_the_identity_take_one_product(process, scale):
    """The Hessian of pure noise; in float32 the squares of 1e-30 and 1e25 do not exist."""
    ritz = process(Partial(linear, scale * jnp.eye(64)), jnp.zeros(64), num_matvecs=5, key=KEY)
    assert int(ritz.num_valid) == 1
    np.testing.assert_allclose(ritz.values, np.full(5, scale), rtol=1e-6)
    np.testing.assert_allclose(ritz.residuals, 0, atol=1e-5 * abs(scale))
    if process is lanczos:
        np.testing.assert_allclose(ritz.weights, [1, 0, 0, 0, 0], atol=1e-6)


def load_benchmark():
    path = Path(__file__).parents[1] / "benchmarks" / "krylov_fails_safely.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_benchmark(least_cases, **options):
    benchmark = load_benchmark()
    table, worst = benchmark.run(**options)
    for name, entry in table.items():
        silent = {k: v for k, v in entry.items() if k[0] in ("lanczos", "arnoldi")}
        assert {kind for _, kind in silent} == {"none"}, (name, silent)
        assert worst[name] < 1, name
    total = sum(table.values(), collections.Counter())
    assert total["cases"] >= least_cases
    # The same judge does find failures where there are some.
    assert total["matfree", "wrong"] > total["cases"] / 20
    assert total["matfree", "not finite"] > total["cases"] / 20


def test_no_silent_failure_on_small_matrices():
    check_benchmark(64, seeds=4, sizes=(12,), dtypes=("float32",))


@pytest.mark.slow
def test_no_silent_failure_on_500_matrices():
    check_benchmark(500, seeds=12)


def test_the_judge_tells_every_kind_of_failure():
    judge = load_benchmark().judge
    matrix, start, tol = np.diag([1.0, 2.0, 4.0]), np.ones(3), 1e-12
    zero = np.zeros(3)
    assert judge(matrix, start, np.array([1.0, 2.0, 4.0]), zero, 3, tol)[0] == "none"
    assert judge(matrix, start, np.array([1.0, 2.1, 4.0]), zero, 3, tol)[0] == "wrong"
    assert judge(matrix, start, np.array([1.0, 2.1, 4.0]), zero + 0.2, 3, tol)[0] == "none"
    assert judge(matrix, start, np.array([1.0, 2.0, 3.0]), zero, 2, tol)[0] == "invented"
    assert judge(matrix, start, np.array([1.0, 2.0, 2.0]), zero, 2, tol)[0] == "premature"
    assert judge(matrix, start, np.array([1.0, 2.0, np.nan]), zero, 2, tol)[0] == "not finite"
    skew = np.array([[0.0, 1.0], [-1.0, 0.0]])
    assert judge(skew, start[:2], np.array([-1j, 1j]), zero[:2], 2, tol)[0] == "none"
    assert judge(skew, start[:2], np.array([-1j, 1.1j]), zero[:2], 2, tol)[0] == "wrong"


# --- Transformations ----------------------------------------------------------------------------


def minus_squares(x):
    """The Jacobian is diag(-2 x): a point is a spectrum."""
    return -(x**2)


def test_batches_of_points_that_break_down_at_different_steps(x64):
    points = jnp.asarray([np.full(8, 2.0), np.repeat([1.0, 2.0], 4), np.arange(8.0)])
    options = {"num_matvecs": 6, "key": KEY}
    many = at_points(lanczos, Partial(minus_squares), points, common_probes=True, **options)
    assert many.num_valid.tolist() == [1, 2, 6]
    np.testing.assert_allclose(many.values[0], -4.0, rtol=1e-14)
    np.testing.assert_allclose(many.values[1], [-4, -2, -2, -2, -2, -2], rtol=1e-14)
    np.testing.assert_allclose(jnp.sum(many.weights, axis=1), 1.0, rtol=1e-14)
    for i, point in enumerate(points):
        one = lanczos(Partial(minus_squares), point, **options)
        np.testing.assert_allclose(many.values[i], one.values, rtol=1e-10)
        np.testing.assert_allclose(many.residuals[i], one.residuals, atol=1e-10)


def test_another_score_of_the_same_structure_does_not_recompile():
    traces = 0

    def counted(weights, x):
        nonlocal traces
        traces += 1
        return network_like(weights, x)

    for seed in range(3):
        score, x, _, _ = setting(np.float32, seed=seed)
        lanczos(Partial(counted, *score.args), x, num_matvecs=1, key=KEY)
    assert traces == 1


def convolution(kernel, x):
    """Channels first and strided, then back up: no layout that XLA's CPU loops run well."""
    dimensions = ("NCHW", "OIHW", "NCHW")
    h = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=dimensions)
    h = jnp.tanh(h)
    return jax.lax.conv_transpose(h, kernel, (2, 2), "SAME", dimension_numbers=dimensions)


@pytest.mark.slow
def test_convolutions_run_channels_last_inside_the_loop():
    kernel, x = (
        jax.random.normal(jax.random.fold_in(KEY, i), shape)
        for i, shape in enumerate([(2, 2, 3, 3), (1, 2, 6, 6)])
    )
    J = jacobian(Partial(convolution, kernel), x)

    def products(v):
        return J.mv(v), J.rmv(v)

    vectors = jnp.stack([x, x[:, ::-1]])
    looped = jax.jit(lambda vectors: jax.lax.map(products, vectors)).lower(vectors).compile()
    for found, product in zip(looped(vectors), (J.mv, J.rmv), strict=True):
        exact = product(x)
        np.testing.assert_allclose(found[0], exact, atol=1e-5 * float(jnp.abs(exact).max()))
    lines = [line for line in looped.as_text().splitlines() if "dim_labels=" in line]
    assert len(lines) == 4
    if jax.default_backend() == "cpu":
        assert all("dim_labels=b01f_01io->b01f" in line for line in lines), lines


# --- What is not finite, too large or wrongly asked ---------------------------------------------


def overflowing(scales, x):
    """J e1 = e2, and J e2 overflows."""
    return jnp.stack([0.0 * x[0], x[0], x[1] * scales[0] * scales[1]])


def test_a_product_that_is_not_finite_is_named_or_stays_in_the_result():
    score, x = Partial(overflowing, jnp.array([1e30, 1e30])), jnp.zeros(3)
    start = jnp.array([1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"at step 2 of 3 is not finite, though the score is"):
        lanczos(score, x, num_matvecs=3, start=start, symmetric=True)
    with pytest.raises(ValueError, match="at step 2 of 3 is not finite"):
        arnoldi(score, x, num_matvecs=3, start=start)
    jitted = jax.jit(lambda start: lanczos(score, x, num_matvecs=3, start=start, symmetric=True))
    for unusable in (start, jnp.zeros(3)):
        ritz = jitted(unusable)
        assert int(ritz.num_valid) == 0
        assert np.isnan(ritz.values).all()
        assert np.isnan(ritz.residuals).all()


@pytest.mark.slow
def test_memory_is_that_of_the_basis_and_a_few_vectors():
    score, x = Partial(jnp.multiply, jnp.ones(4096)), jnp.zeros(4096)
    options = {"num_matvecs": 9, "symmetric": True, "vectors": False}
    program = _lanczos.lower(jacobian(score, x), x, **options).compile()
    assert program.memory_analysis().temp_size_in_bytes < 15 * x.nbytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_matvecs": 0}, "num_matvecs must be an integer >= 1, got 0"),
        ({"num_matvecs": 4.0}, r"num_matvecs must be an integer >= 1, got 4\.0"),
        ({"key": None}, "got neither"),
        ({"start": np.ones(3)}, "got both"),
        ({"key": None, "start": np.ones(4)}, r"start has shape \(4,\).*point has shape \(3,\)"),
        ({"key": None, "start": np.zeros(3)}, "start must not be zero"),
        ({"key": None, "start": np.array([1, np.nan, 0])}, "start is not finite: 1 of 3"),
    ],
)
@pytest.mark.parametrize("process", [lanczos, arnoldi])
def test_bad_options(process, options, message):
    with pytest.raises(ValueError, match=message):
        process(lambda x: -x, jnp.ones(3), **{"key": KEY} | options)
