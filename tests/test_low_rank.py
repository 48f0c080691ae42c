"""The mixture of low-rank Gaussians against dense twins, at 6 dimensions and at 16,384."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.curvature import hessian
from sharpjax.densities import Empirical, GaussianMixture, LowRankMixture

DIM, RANK, COUNT = 6, 2, 3


def fields(seed=0, dim=DIM, rank=RANK, count=COUNT):
    """Components of ranks 2, 1 and 0, the lower ones padded by directions that mean nothing."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(count, dim, rank)))[0].swapaxes(1, 2)
    variances = rng.uniform(0.5, 4.0, (count, rank))
    variances[1, 1:] = variances[2] = 0.0
    directions[1, 1:] = 7.0
    return {
        "weights": np.array([0.5, 0.25, 0.25]),
        "means": rng.normal(size=(count, dim)),
        "directions": directions,
        "variances": variances,
        "floor": np.array([0.3, 0.1, 0.2]),
    }


def dense(weights, means, directions, variances, floor, alpha=1.0, sigma=0.0):
    """The naive twin: the same mixture with its covariances written out."""
    covariances = np.einsum("krd,kr,kre->kde", directions, variances, directions)
    covariances = alpha**2 * (covariances + floor[:, None, None] * np.eye(means.shape[1]))
    return GaussianMixture(weights, alpha * means, covariances + sigma**2 * np.eye(means.shape[1]))


NAMES = (
    "log_prob",
    "score",
    "hessian",
    "trace_hessian",
    "posterior_weights",
    "effective_dimension",
)


@jax.jit
def closed_forms(p, x, v):
    """Every closed form in one program."""
    values = {name: getattr(p, name)(x) for name in NAMES if hasattr(p, name)}
    if hasattr(p, "hvp"):
        values["hvp"] = p.hvp(x, v)
    return values | {"one_laplacian": p.p_laplacian(x, 1.0)}


def close(actual, desired, tolerance=1e-10):
    desired = np.asarray(desired, np.float64)
    np.testing.assert_allclose(
        actual, desired, rtol=tolerance, atol=tolerance * max(1.0, np.abs(desired).max())
    )


@pytest.mark.quick
@pytest.mark.fast_cases("None", "level1")
@pytest.mark.parametrize("level", [None, (0.8, 0.6), (0.1, 0.995), (0.999, 0.04)])
def test_against_the_dense_mixture(level, x64):
    given = fields()
    p, q = LowRankMixture(**given), dense(**given)
    if level is not None:
        p, q = p.noised(*level), q.noised(*level)
    rng = np.random.default_rng(1)
    for x, v in rng.normal(size=(4, 2, DIM)):
        forms, twin = closed_forms(p, x, v), closed_forms(q, x, v)
        H = np.asarray(twin["hessian"])
        close(forms["log_prob"], twin["log_prob"])
        close(forms["score"], twin["score"])
        close(forms["hessian"], H, 1e-9)
        close(forms["hvp"], H @ v, 1e-9)
        close(forms["trace_hessian"], np.trace(H), 1e-9)
        close(forms["one_laplacian"], twin["one_laplacian"], 1e-9)
        close(hessian(p.score, x), H, 1e-9)  # automatic differentiation
        if level is not None:
            close(forms["effective_dimension"], DIM + level[1] ** 2 * np.trace(H), 1e-9)


def test_without_ranks_and_floors_it_is_the_noised_data_set(x64):
    points = np.random.default_rng(2).normal(size=(5, 1, 2, 3))
    none = np.zeros((5, 0, 1, 2, 3)), np.zeros((5, 0)), np.zeros(5)
    weights = np.full(5, 0.2)
    p = LowRankMixture(weights, points, *none).noised(0.8, 0.6)
    q = Empirical(points, weights).noised(0.8, 0.6)
    x, v = points[0] + 0.3, points[1]
    forms, twin = closed_forms(p, x, v), closed_forms(q, x, v)
    assert set(forms) == set(twin) >= {*NAMES, "hvp"}
    for name, value in forms.items():
        close(value, twin[name], 1e-9)
    assert p.shape == (1, 2, 3) == p.sample(jax.random.key(0), 4).shape[1:]


@pytest.mark.fast_cases("784-float32", "16384-float64")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("dim", [784, 16_384])
def test_at_the_dimension_of_images(dim, dtype):
    """The twin: in an orthonormal frame it is a small mixture times white noise of d - 6 axes."""
    given = fields(seed=3) | {"floor": np.full(COUNT, 0.04)}  # else the rest would not factor
    alpha, sigma = 0.8, 0.6
    across = alpha**2 * 0.04 + sigma**2
    rng = np.random.default_rng(4)
    frame = np.linalg.qr(rng.normal(size=(dim, DIM)))[0].T  # (6, d)
    x, v = frame.T @ rng.normal(size=DIM) + 0.5 * rng.normal(size=dim), rng.normal(size=dim)
    with jax.enable_x64(True):
        small = dense(**given, alpha=alpha, sigma=sigma)
        inside, v_inside = frame @ x, frame @ v
        rest, v_rest = x - frame.T @ inside, v - frame.T @ v_inside
        H = np.asarray(small.hessian(inside))
        density = -0.5 * rest @ rest / across - 0.5 * (dim - DIM) * math.log(2 * math.pi * across)
        wanted = {
            "log_prob": small.log_prob(inside) + density,
            "score": frame.T @ np.asarray(small.score(inside)) - rest / across,
            "hvp": frame.T @ (H @ v_inside) - v_rest / across,
            "trace_hessian": np.trace(H) - (dim - DIM) / across,
        }
        wanted = {name: np.asarray(value) for name, value in wanted.items()}
    with jax.enable_x64(dtype == "float64"):
        lifted = given | {
            "means": given["means"] @ frame,
            "directions": np.where(given["variances"][..., None] > 0, given["directions"], 0)
            @ frame,
        }
        p = LowRankMixture(**{name: value.astype(dtype) for name, value in lifted.items()})
        p, x_, v_ = p.noised(alpha, sigma), x.astype(dtype), v.astype(dtype)
        found = {
            "log_prob": p.log_prob(x_), "score": p.score(x_), "hvp": p.hvp(x_, v_),
            "trace_hessian": p.trace_hessian(x_),
        }  # fmt: skip
        dimension = float(p.effective_dimension(x_))
    for name, exact in wanted.items():
        error = np.linalg.norm(np.asarray(found[name], np.float64) - exact)
        assert error <= (1e-10 if dtype == "float64" else 2e-5) * np.linalg.norm(exact), name
    exact = dim + sigma**2 * wanted["trace_hessian"]
    assert dimension == pytest.approx(exact, rel=1e-9 if dtype == "float64" else 1e-4)


def test_effective_dimension_keeps_its_digits_in_float32():
    """Where `d + sigma^2 tr H` would be the difference of two numbers of 16,384."""
    dim, given = 16_384, fields() | {"floor": np.zeros(COUNT)}
    for name in ("means", "directions"):
        given[name] = np.pad(given[name], [*[(0, 0)] * (given[name].ndim - 1), (0, dim - DIM)])
    single = {name: value.astype(np.float32) for name, value in given.items()}
    p = LowRankMixture(**single).noised(0.01, 1.0)
    with jax.enable_x64(True):
        exact = LowRankMixture(**given)
        wanted = float(exact.noised(0.01, 1.0).effective_dimension(np.zeros(dim)))
    assert wanted < 1e-3
    assert float(p.effective_dimension(jnp.zeros(dim))) == pytest.approx(wanted, rel=1e-4)


def test_without_noise_every_direction_counts(x64):
    close(LowRankMixture(**fields()).effective_dimension(np.zeros(DIM)), DIM)


@pytest.mark.slow
def test_samples_have_the_moments_of_the_closed_form(x64):
    n, (alpha, sigma) = 40_000, (0.6, 0.8)
    p, q = (
        LowRankMixture(**fields()).noised(alpha, sigma),
        dense(**fields(), alpha=alpha, sigma=sigma),
    )
    x = np.asarray(p.sample(jax.random.key(0), n))
    mean = np.asarray(q.weights @ q.means)
    second = np.einsum(
        "k,kij->ij", q.weights, q.covariances + jax.vmap(jnp.outer)(q.means, q.means)
    )
    squares = x[:, :, None] * x[:, None]
    for drawn, exact in ((x, mean), (squares, second)):
        error = drawn.std(axis=0, ddof=1) / math.sqrt(n)
        assert (np.abs(drawn.mean(axis=0) - exact) / error).max() < 5  # 42 comparisons
    # E|s|^2 = -E tr H: the samples are of the density whose score it is
    s, H = jax.vmap(p.score)(x[:5000]), jax.vmap(p.trace_hessian)(x[:5000])
    gap = np.sum(np.asarray(s) ** 2, axis=1) + np.asarray(H)
    assert abs(gap.mean()) < 5 * gap.std() / math.sqrt(len(gap))


def test_levels_compose_and_weights_change(x64):
    p = LowRankMixture(**fields())
    a, b = p.noised(0.9, 0.3).noised(0.5, 0.4), p.noised(0.45, math.hypot(0.15, 0.4))
    x = np.full(DIM, 0.3)
    close(a.score(x), b.score(x))
    one = p.reweighted([0.0, 1.0, 0.0])
    own = dense(**fields())
    alone = GaussianMixture([1.0], own.means[1:2], own.covariances[1:2])
    close(one.log_prob(x), alone.log_prob(x))
    close(one.noised(0.8, 0.6).score(x), alone.noised(0.8, 0.6).score(x))
    assert np.isfinite(jax.jacfwd(one.score)(x)).all()  # a share of 0 is no NaN


def test_it_crosses_jit_and_vmap_as_an_argument():
    p = LowRankMixture(**fields()).noised(0.8, 0.6)
    x = np.random.default_rng(5).normal(size=(4, DIM)).astype(np.float32)
    together = jax.jit(lambda score, x: jax.vmap(score)(x))(p.score, x)
    np.testing.assert_allclose(together, [p.score(one) for one in x], rtol=1e-4, atol=1e-5)
    assert repr(p).startswith("LowRankMixture(weights=float32[3], means=float32[3,6]")


class TestFit:
    def test_maximum_likelihood(self, x64):
        """Tipping & Bishop: of all with this rank none is likelier, tried at 200 neighbours."""
        rng = np.random.default_rng(6)
        points = rng.normal(size=(30, DIM)) * [3, 2, 1, 1, 0.5, 0.5] + 1
        p = LowRankMixture.fit(points, np.zeros(30, int), rank=2)
        covariance = np.cov(points.T, ddof=0)
        values = np.linalg.eigvalsh(covariance)[::-1]
        close(p.floor, [values[2:].mean()])
        close(p.variances[0], values[:2] - values[2:].mean())
        fitted = dense(p.weights, p.means, p.directions, p.variances, np.asarray(p.floor))
        assert np.trace(fitted.covariances[0]) == pytest.approx(
            np.trace(covariance)
        )  # none is lost

        def likelihood(direction, variance, floor):
            S = direction.T @ np.diag(variance) @ direction + floor * np.eye(DIM)
            return -np.linalg.slogdet(S)[1] - np.trace(np.linalg.solve(S, covariance))

        best = likelihood(
            np.asarray(p.directions[0]), np.asarray(p.variances[0]), float(p.floor[0])
        )
        for _ in range(200):
            turned = np.linalg.qr((p.directions[0] + 0.05 * rng.normal(size=(2, DIM))).T)[0].T
            factor = np.exp(0.1 * rng.normal(size=3))
            assert likelihood(turned, p.variances[0] * factor[:2], p.floor[0] * factor[2]) < best

    def test_one_point_is_a_point(self):
        points = np.random.default_rng(7).normal(size=(11, 1, 2, 3)).astype(np.float32)
        labels = np.array([0] * 9 + [1] + [2])
        p = LowRankMixture.fit(points, labels, rank=20, floor=0.01)
        assert p.directions.shape == (3, DIM, 1, 2, 3)  # no more directions than axes
        np.testing.assert_allclose(p.weights, np.array([9, 1, 1]) / 11, rtol=1e-6)
        np.testing.assert_allclose(p.variances[1:], 0)
        np.testing.assert_allclose(p.floor[1:], 0.01)
        np.testing.assert_array_equal(p.means[1:], points[9:])

    def test_no_floor_is_below_the_one_asked_for(self, x64):
        points = np.random.default_rng(8).normal(size=(40, DIM)) * [3, 2, 0.01, 0.01, 0.01, 0.01]
        p = LowRankMixture.fit(points, np.zeros(40, int), rank=3, floor=0.25)
        values = np.linalg.eigvalsh(np.cov(points.T, ddof=0))[::-1]
        close(p.floor, [0.25])
        close(p.variances[0], np.maximum(values[:3] - 0.25, 0))
        assert p.variances[0, 2] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [0.5, 0.5, 0.5]}, "must sum to 1"),
        ({"means": np.zeros(3)}, r"means must have shape \(k, \*shape\)"),
        ({"directions": np.zeros((3, 2, 5))}, r"here \(3, r, 6\), got \(3, 2, 5\)"),
        ({"variances": np.ones((3, 1))}, r"variances must have shape \(3, 2\), got \(3, 1\)"),
        ({"variances": -np.ones((3, 2))}, "variances must be >= 0, the smallest is -1"),
        ({"floor": np.array([0.1, -2.0, 0.1])}, "floor must be >= 0, the smallest is -2"),
        ({"floor": [np.nan, 1, 1]}, "floor holds NaN"),
        ({"directions": np.ones((3, 2, 6))}, "orthonormal .* miss that by 6 "),
        ({"sigma": 0.0}, "sigma"),
    ],
)
def test_what_is_no_mixture(change, message):
    with pytest.raises(ValueError, match=message):
        LowRankMixture(**fields() | change)


def test_mistakes_of_methods():
    p = LowRankMixture(**fields())
    with pytest.raises(ValueError, match="takes one point of shape"):
        p.score(np.zeros((2, DIM)))
    with pytest.raises(ValueError, match="v has shape"):
        p.hvp(np.zeros(DIM), np.zeros(3))
    with pytest.raises(ValueError, match="weights have shape"):
        p.reweighted([1.0])
    with pytest.raises(ValueError, match="no density where its floor is 0"):
        LowRankMixture(**fields() | {"floor": np.zeros(3)}).score(np.zeros(DIM))
    for labels, message in (
        ([0, 2, 2], "1 has none"),
        ([0.0, 1, 1], "integer label"),
        ([0], "labels"),
    ):
        with pytest.raises(ValueError, match=message):
            LowRankMixture.fit(np.zeros((3, 4)), np.array(labels), rank=1)
    with pytest.raises(ValueError, match="rank must be an integer"):
        LowRankMixture.fit(np.zeros((3, 4)), np.zeros(3, int), rank=0)
