"""A batch of points: the same numbers as one by one, and the bad point named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import curvature
from sharpjax.densities import GaussianMixture

pytestmark = pytest.mark.quick

POINTS = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)


def cubic(scale, x):
    return -scale * x**3


def root(x):
    return jnp.sqrt(x)


def logarithm(x):
    return jnp.log(x)


@pytest.fixture(scope="module")
def score():
    spread = 0.3 * np.eye(2, dtype=np.float32)
    return GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [spread] * 2).score


@pytest.mark.fast_cases("2")
@pytest.mark.parametrize("points_at_once", [1, 2, 8])
def test_each_point_gets_its_own_probes_whatever_the_batch(score, points_at_once):
    key = jax.random.key(3)
    options = {"method": curvature.Hutchinson("normal"), "num_matvecs": 8}
    many = curvature.at_points(
        curvature.trace, score, POINTS, key=key, points_at_once=points_at_once, **options
    )
    alone = [
        curvature.trace(score, x, key=jax.random.fold_in(key, i), **options)
        for i, x in enumerate(POINTS)
    ]
    np.testing.assert_allclose(many.value, [e.value for e in alone], rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(
        many.standard_error, [e.standard_error for e in alone], rtol=2e-5, atol=1e-5
    )
    assert (many.num_samples, many.num_matvecs) == (8, 8)


def test_common_probes_cancel_what_points_share():
    """A score of constant curvature: with common probes all points have the same error."""
    matrix = jnp.asarray([[-2.0, 1.0], [1.0, -3.0]])
    score, options = Partial(jnp.matmul, matrix), {"key": jax.random.key(0), "num_matvecs": 2}
    own = curvature.at_points(curvature.trace, score, POINTS, **options)
    common = curvature.at_points(curvature.trace, score, POINTS, common_probes=True, **options)
    assert np.ptp(common.value) == 0
    assert np.ptp(own.value) > 0.5


def test_any_estimator_and_any_result(score):
    H = curvature.at_points(curvature.hessian, score, POINTS)
    values = curvature.at_points(curvature.eigenvalues, score, POINTS)
    assert (H.shape, values.shape) == ((5, 2, 2), (5, 2))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(H), rtol=1e-4, atol=1e-4)


def test_another_score_of_the_same_kind_is_not_compiled_again():
    traced = []

    def counted(scale, x):
        traced.append(1)
        return cubic(scale, x)

    for scale in (1.0, 2.0):
        result = curvature.at_points(
            curvature.trace, Partial(counted, scale), POINTS, method="exact", sigma=0.5 * scale
        )
        np.testing.assert_allclose(result.value, -3 * scale * np.sum(POINTS**2, 1), rtol=1e-4)
    assert len(traced) == 1


def test_the_bad_point_is_named():
    points = np.array([[1.0, 2.0], [3.0, 0.0], [1.0, 1.0], [np.nan, 1.0]], np.float32)
    for estimator, options in ((curvature.trace, {"method": "exact"}), (curvature.hessian, {})):
        with pytest.raises(ValueError, match=r"Point 1 of 4 \(2 fail\): score\(x\) is not finite"):
            curvature.at_points(estimator, Partial(logarithm), points, **options)
    with pytest.raises(ValueError, match=r"Point 0 of 1 \(1 fail\): x is not finite"):
        curvature.at_points(curvature.hessian, Partial(logarithm), points[3:])


@pytest.mark.parametrize("points", [np.float32(1), np.zeros((0, 2), np.float32)])
def test_no_points(points):
    with pytest.raises(ValueError, match=r"shape \(n, \*shape\) with n >= 1"):
        curvature.at_points(curvature.hessian, logarithm, points)


@pytest.mark.parametrize(
    ("estimator", "options", "message"),
    [
        (curvature.p_laplacian, {"p": 0.5}, "p must be one finite number >= 1, got 0.5"),
        (
            curvature.trace,
            {"sigma": -1.0, "key": jax.random.key(0)},
            "sigma must be .* got -1",
        ),
        (curvature.inertia, {"tolerance": -1.0}, "tolerance must be .* > 0"),
        (curvature.trace, {"num_matvecs": 8.0, "key": jax.random.key(0)}, "integer >= 1, got 8.0"),
        (curvature.trace, {}, "pass key="),
    ],
)
def test_options_are_checked_as_for_one_point(estimator, options, message):
    with pytest.raises(ValueError, match=message):
        curvature.at_points(estimator, Partial(cubic, 1.0), POINTS, **options)


@pytest.mark.slow
def test_options_that_are_lists(score):
    options = {"key": jax.random.key(0), "grid": [-5.0, 0.0, 2.0], "num_matvecs": 2}
    density = curvature.at_points(curvature.spectral_density, score, POINTS, **options)
    assert density.grid.shape == (5, 3)


def test_a_point_without_curvature_is_not_counted_as_flat():
    """An infinite slope: the count of eigenvalues near zero must not take it in."""
    points = np.array([[1.0, 2.0], [1.0, 0.0]], np.float32)
    with pytest.raises(ValueError, match="Point 1 of 2"):
        curvature.at_points(curvature.inertia, Partial(root), points, tolerance=0.1)
    counts = jax.jit(lambda x: curvature.inertia(root, x, tolerance=0.1))(points[1])
    assert np.isnan([counts.negative.value, counts.zero.value, counts.positive.value]).all()


def test_points_at_once_is_checked():
    with pytest.raises(ValueError, match="points_at_once must be an integer >= 1, got 0"):
        curvature.at_points(curvature.hessian, logarithm, POINTS, points_at_once=0)


@pytest.mark.parametrize("number", [np.float32, jnp.float32])
def test_options_may_be_known_arrays(number):
    """JAX traces a comparison of a known array where the estimator's options are checked."""
    points, key = jnp.ones((2, 3)), jax.random.key(0)
    options = {"sigma": number(0.8), "key": key, "num_matvecs": 4}
    found = curvature.at_points(curvature.effective_dimension, lambda x: -x, points, **options)
    assert found.value.shape == (2,)
    flux = {"p": number(1.0), "radius": number(0.5), "num_directions": 4, "method": "flux"}
    found = curvature.at_points(curvature.p_laplacian, lambda x: -x, points, key=key, **flux)
    assert found.value.shape == (2,)
    with pytest.raises(ValueError, match="sigma must be finite and > 0"):
        curvature.at_points(
            curvature.effective_dimension, lambda x: -x, points, **options | {"sigma": number(0)}
        )


def test_what_is_infinite_by_definition_is_returned():
    """The asymmetry of a rotation is; it was refused."""
    turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])

    def score(x):  # symmetric at the first point, a rotation at the second
        return jnp.where(x[0] > 0, x, turn @ x)

    points = np.array([[1.0, 0], [-1, 0], [2, 0]], np.float32)
    found = curvature.at_points(
        curvature.stochastic_asymmetry, score, points, key=jax.random.key(0)
    )
    assert found.value.tolist() == [0.0, np.inf, 0.0]


def test_numbers_of_numpy_are_arguments_too():
    traced = []

    def estimator(score, x, *, sigma):
        traced.append(1)
        return score(x) * sigma

    for sigma in (0.5, np.float32(0.25), np.float64(0.125), jnp.float32(2)):
        found = curvature.at_points(estimator, Partial(cubic, 1.0), POINTS, sigma=sigma)
        np.testing.assert_allclose(found, -(POINTS**3) * float(sigma), rtol=1e-5)
    # `eval_shape` looks at the options at each call; the program is made once for Python's numbers
    # and once for strongly typed ones.
    assert len(traced) <= 4 + 2
