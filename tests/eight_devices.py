"""Estimators on a mesh of eight simulated devices: the numbers of one, and the work shared.

The devices must be asked for before JAX starts, so these tests run in a process of their own, which
`test_sharding.py` starts; pytest alone does not collect this file.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax import curvature
from sharpjax.curvature import at_points
from sharpjax.curvature.operators import jacobian
from sharpjax.densities import GaussianMixture
from sharpjax.mesh.loops import chunked_map

KEY = jax.random.key(0)
assert jax.device_count() == 8, "run tests/test_sharding.py, which starts this file"


def mesh_of(**axes):
    devices = jax.devices()[: math.prod(axes.values())]
    return jax.make_mesh(tuple(axes.values()), tuple(axes), devices=devices)


@pytest.fixture(scope="module")
def mixture():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(2, 6)).astype(np.float32)
    return GaussianMixture([0.5, 0.5], means, np.stack([0.5 * np.eye(6, dtype=np.float32)] * 2))


@pytest.fixture(scope="module")
def points():  # 5, which no axis below divides
    return np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)


def _close(ours, theirs):
    """To float32's rounding: sums over up to 20 probes are added in another order."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-5)


SPHERE = {"radius": 0.3, "key": KEY, "num_directions": 20}
ESTIMATORS = {
    "trace": (curvature.trace, {"key": KEY, "num_matvecs": 20}),
    "p-laplacian": (curvature.p_laplacian, {}),
    "flux": (curvature.p_laplacian, {"method": "flux"} | SPHERE),
    "eigenvalues": (curvature.eigenvalues, {}),
}
SLOW_ESTIMATORS = {
    "hessian": (curvature.hessian, {"chunk_size": 2}),
    # Of six signs, two draws may be the same up to sign; rounding then chooses the third direction.
    "hutch++": (
        curvature.trace,
        {"key": KEY, "num_matvecs": 9, "method": curvature.HutchPP("normal"), "sigma": 0.7},
    ),
    "xtrace": (curvature.trace, {"key": KEY, "num_matvecs": 4, "method": "xtrace", "sigma": 0.7}),
    "power": (curvature.trace_of_power, {"key": KEY, "power": 3}),
    "frobenius": (curvature.frobenius_norm, {"key": KEY}),
    "diagonal": (curvature.diagonal, {"key": KEY, "num_matvecs": 20, "batch_size": 3}),
    "lanczos": (curvature.lanczos, {"key": KEY, "num_matvecs": 4}),
    "arnoldi": (curvature.arnoldi, {"key": KEY, "num_matvecs": 4}),
    "density": (
        curvature.spectral_density,
        {"key": KEY, "num_probes": 5, "num_matvecs": 4, "grid": jnp.linspace(-5, 2, 9)},
    ),
    "inertia": (
        curvature.inertia,
        {"method": "slq", "key": KEY, "num_matvecs": 4, "tolerance": 0.1},
    ),
    "asymmetry": (curvature.stochastic_asymmetry, {"key": KEY}),
    "ball": (curvature.p_laplacian, {"method": "ball"} | SPHERE),
}
MESHES = {"points": {"points": 8}, "probes": {"probes": 8}, "both": {"points": 4, "probes": 2}}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_same_numbers_as_on_one_device(name, mixture, points):
    estimator, options = ESTIMATORS[name]
    one = at_points(estimator, mixture.score, points, **options)
    _close(
        at_points(estimator, mixture.score, points, mesh=mesh_of(points=4, probes=2), **options),
        one,
    )


@pytest.mark.parametrize("name", ESTIMATORS | SLOW_ESTIMATORS)
def test_the_same_numbers_on_every_mesh(name, mixture, points):
    """Of four estimators every mesh; of the others that of both axes, whose work is both kinds."""
    estimator, options = (ESTIMATORS | SLOW_ESTIMATORS)[name]
    one = at_points(estimator, mixture.score, points, **options)
    for mesh, axes in MESHES.items():
        if mesh != "both" and name in SLOW_ESTIMATORS:
            continue
        _close(at_points(estimator, mixture.score, points, mesh=mesh_of(**axes), **options), one)


def _cubic(x):
    return -(x**3)


def _trace_here_and_at_multiples(score, x):
    """The trace at x, and in a loop at x, 2x, 3x, 4x: one compiled function in both places."""

    def exact_trace(y):
        return jacobian(score, y).diagonal().sum()

    return exact_trace(x), chunked_map(lambda i: exact_trace((1.0 + i) * x), jnp.arange(4), 2)


def test_a_loop_inside_a_shared_loop_is_not_shared_again():
    """Not even where its trace is kept from outside: its sum would mix the devices' points."""
    here, multiples = at_points(
        _trace_here_and_at_multiples, Partial(_cubic), np.ones((2, 6), "f"), mesh=mesh_of(probes=2)
    )
    np.testing.assert_allclose(here, [-18, -18])
    np.testing.assert_allclose(multiples, [[-18, -72, -162, -288]] * 2)


def _dense_score(weights, x):
    return jnp.tanh(x @ weights[0]) @ weights[1]


@pytest.fixture(scope="module")
def network():
    """A score that is nearly all matrix products: 2 of 64 x 256 a tangent."""
    rng = np.random.default_rng(2)
    shapes = [(64, 256), (256, 64)]
    return Partial(_dense_score, [0.1 * rng.normal(size=s).astype(np.float32) for s in shapes])


def _compiled(network, num_probes, mesh):
    """The trace's program with all probes of a device at once, so that no loop hides its work."""

    def run(network, points):
        options = {"key": KEY, "num_matvecs": num_probes, "batch_size": num_probes}
        return at_points(curvature.trace, network, points, mesh=mesh, **options)

    return jax.jit(run).lower(network, np.ones((1, 64), np.float32)).compile()


def test_tangents_a_device_fall_as_one_over_n_with_one_reduction(network):
    flops = {}
    for devices in (1, 2, 4, 8):
        mesh = mesh_of(probes=devices) if devices > 1 else None
        program = _compiled(network, 64, mesh)
        flops[devices] = program.cost_analysis()["flops"]
        if devices > 1:
            text = program.as_text()
            assert len(re.findall(r"= \S+ all-reduce(-start)?\(", text)) == 1
            assert "all-gather" not in text
            assert "all-to-all" not in text
    # Every device runs the primal: its first product, 64 x 256 entries at 2 operations each (the
    # second gives the score's value, which nobody asks for).
    primal = 2 * 64 * 256
    for devices in (2, 4, 8):
        share = (flops[devices] - primal) / (flops[1] - primal)
        assert share == pytest.approx(1 / devices, rel=0.03), flops


def test_points_spread_too(network):
    """Eight points on eight devices: one program of one point each, and no communication."""

    def run(network, points, mesh):
        options = {"key": KEY, "num_matvecs": 16, "batch_size": 16, "points_at_once": 8}
        return at_points(curvature.trace, network, points, mesh=mesh, **options)

    points = np.ones((8, 64), np.float32)
    flops = {}
    for devices in (1, 8):
        mesh = mesh_of(points=devices) if devices > 1 else None
        program = jax.jit(run, static_argnums=2).lower(network, points, mesh).compile()
        flops[devices] = program.cost_analysis()["flops"]
        if devices > 1:
            assert not re.search(r"all-(reduce|gather|to-all)", program.as_text())
    assert flops[8] / flops[1] == pytest.approx(1 / 8, rel=0.03)


def test_a_mesh_of_the_users_own_axes_is_refused(mixture, points):
    for axes in ({"data": 8}, {"points": 4, "model": 2}):
        with pytest.raises(ValueError, match="axis 'points' or 'probes' or both"):
            at_points(curvature.trace, mixture.score, points, key=KEY, mesh=mesh_of(**axes))


@pytest.mark.parametrize("mesh", ["points", 8, [0, 1], np.zeros(2)])
def test_what_is_no_mesh_is_refused(mesh, mixture, points):
    with pytest.raises(TypeError, match=r"mesh must be a jax.sharding.Mesh of devices, got"):
        at_points(curvature.trace, mixture.score, points, key=KEY, mesh=mesh)


def test_the_point_that_fails_is_named_on_a_mesh_too(mixture, points):
    points = points.copy()
    points[3, 2] = np.nan
    with pytest.raises(ValueError, match="Point 3 of 5"):
        at_points(curvature.trace, mixture.score, points, key=KEY, mesh=mesh_of(points=8))


def test_images_of_prompts(stable_diffusion_directory):
    """Three prompts on two devices: the batch is filled up to four."""
    from sharpjax import LatentDiffusion

    model = LatentDiffusion.from_pretrained(stable_diffusion_directory)
    prompts = ["a cat", "a dog", ""]
    one = model.sample(prompts, KEY, num_steps=3, batch_size=3)
    two = model.sample(prompts, KEY, num_steps=3, batch_size=3, mesh=mesh_of(points=2))
    assert one.shape == two.shape
    np.testing.assert_allclose(two, one, atol=1e-4 * np.abs(one).max())


def test_screened_paths_of_prompts(stable_diffusion_directory):
    """Tries, values and images of paths that share their batches over devices."""
    from sharpjax import LatentDiffusion
    from sharpjax.mitigation import Look, ranked, screened

    model = LatentDiffusion.from_pretrained(stable_diffusion_directory)
    given = {"num_images": 2, "num_steps": 4, "batch_size": 3}
    look = Look(quantity="effective_dimension", step=2, num_probes=2)
    for draw, options in (
        (ranked, {"look": look, "num_tries": 2}),
        (screened, {"looks": [Look(quantity="score_difference", step=2, threshold=1e9)]}),
    ):
        one = draw(model, ["a cat", "a dog"], KEY, **options, **given)
        two = draw(model, ["a cat", "a dog"], KEY, **options, **given, mesh=mesh_of(points=2))
        np.testing.assert_allclose(two.values, one.values, rtol=1e-3)
        assert (two.tries == one.tries).all()
        assert (two.accepted == one.accepted).all()
        np.testing.assert_allclose(two.examples, one.examples, atol=1e-3)


# --- Meshes and maps of the user's own ----------------------------------------------------------

_OPTIONS = {
    "trace": {"key": KEY},
    "effective_dimension": {"key": KEY, "sigma": 0.5},
    "trace_of_power": {"key": KEY, "power": 2},
    "frobenius_norm": {"key": KEY},
    "diagonal": {"key": KEY},
    "hessian": {},
    "eigenvalues": {},
    "lanczos": {"key": KEY, "num_matvecs": 3},
    "arnoldi": {"key": KEY, "num_matvecs": 3},
    "extreme_eigenpairs": {"key": KEY, "k": 1},
    "spectral_density": {"key": KEY, "num_probes": 2},
    "inertia": {},
    "stochastic_asymmetry": {"key": KEY},
    "p_laplacian": {},
}
_VARIANTS = [
    *_OPTIONS.items(),
    ("trace", {"key": KEY, "method": "hutch++", "num_matvecs": 3}),
    ("trace", {"key": KEY, "method": "xtrace", "num_matvecs": 4}),
    ("trace", {"method": "exact"}),
    ("inertia", {"method": "slq", "key": KEY, "num_probes": 2}),
    ("p_laplacian", {"key": KEY, "method": "flux", "radius": 0.3}),
    ("p_laplacian", {"key": KEY, "method": "ball", "radius": 0.3, "num_directions": 4}),
]
_IDS = [f"{name} {options.get('method', '')}".strip() for name, options in _VARIANTS]
_FIVE = np.linspace(0.2, 1.5, 40, dtype=np.float32).reshape(8, 5)


def _bent(x):
    return -jnp.sin(x) * x[::-1]


def _assert_alike(found, wanted):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(("name", "options"), _VARIANTS, ids=_IDS)
def test_inside_a_shard_map_of_the_users(name, options):
    """With `check_vma=True`, JAX's default: 21 of 25 raised errors of JAX's."""
    estimator = getattr(curvature, name)
    mesh = jax.make_mesh((8,), ("points",), axis_types=(jax.sharding.AxisType.Auto,))

    def part(xs):
        return jax.vmap(lambda x: estimator(_bent, x, **options))(xs)

    split = jax.sharding.PartitionSpec("points")
    mapped = jax.shard_map(part, mesh=mesh, in_specs=split, out_specs=split, check_vma=True)
    _assert_alike(mapped(_FIVE), part(_FIVE))


@pytest.mark.parametrize(("name", "options"), _VARIANTS[::3], ids=_IDS[::3])
def test_on_a_mesh_of_explicit_axes(name, options):
    """JAX's default for `make_mesh`: inside `set_mesh`, and points put on it."""
    estimator = getattr(curvature, name)
    mesh = jax.make_mesh((8,), ("points",))
    assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
    wanted = at_points(estimator, _bent, _FIVE, **options)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("points"))
    placed = jax.device_put(_FIVE, split)
    _assert_alike(at_points(estimator, _bent, placed, **options), wanted)
    _assert_alike(at_points(estimator, _bent, placed, mesh=mesh, **options), wanted)
    one = estimator(_bent, _FIVE.ravel()[:8], **options)
    _assert_alike(estimator(_bent, jax.device_put(_FIVE.ravel()[:8], split), **options), one)
    row = jax.device_put(_FIVE.ravel()[:8], split)
    _assert_alike(jax.jit(lambda x: estimator(_bent, x, **options))(row), one)
    with jax.set_mesh(mesh):
        _assert_alike(at_points(estimator, _bent, _FIVE, mesh=mesh, **options), wanted)
        _assert_alike(at_points(estimator, _bent, placed, **options), wanted)
        _assert_alike(estimator(_bent, _FIVE.ravel()[:8], **options), one)
