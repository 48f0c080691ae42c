"""Factorizations: those of `jax.numpy.linalg`, and batches of them at once come to an end."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.linalg import solve_triangular

from sharpjax import _linalg

THEIRS = {
    "cholesky": jnp.linalg.cholesky,
    "eig": jnp.linalg.eig,
    "eigh": jnp.linalg.eigh,
    "eigvalsh": jnp.linalg.eigvalsh,
    "orthonormal_basis": lambda a: jnp.linalg.qr(a)[0],
    "inverse_of_lower": lambda a: solve_triangular(a, jnp.eye(len(a), dtype=a.dtype), lower=True),
}


@pytest.fixture
def stack(dtype):
    """Positive definite matrices, `(3, 2, 5, 5)`, eigenvalues apart."""
    A = np.random.default_rng(0).normal(size=(3, 2, 5, 5))
    return jnp.asarray(A @ A.swapaxes(-1, -2) + np.diag(np.arange(5.0)), dtype)


def same(ours, theirs, dtype):
    """To rounding: the same kernel on the same matrices, derivatives composed otherwise."""
    tolerance = 1e4 * np.finfo(dtype).eps
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("length", [1e-34, 1e-22, 1.0, 1e22, 3e38])
def test_norms_over_the_whole_range_of_float32(length):
    v = np.random.default_rng(0).normal(size=(3, 4))
    v = (length * v / np.linalg.norm(v)).astype(np.float32)
    for axis in (None, 0, 1):
        truth = np.linalg.norm(v.astype(np.float64), axis=axis)
        np.testing.assert_allclose(_linalg.safe_norm(v, axis), truth, rtol=1e-6)
        scale = np.asarray(_linalg.scale_of(v, axis))
        np.testing.assert_array_equal(np.frexp(scale)[0], 0.5)  # a power of two
        largest = np.abs(v).max(axis=axis, keepdims=axis is not None)
        assert (largest / 4 < scale).all()
        assert (scale < 2 * largest).all()
    slope = jax.grad(_linalg.safe_norm)(jnp.asarray(v))
    np.testing.assert_allclose(slope, v / np.float64(length), rtol=1e-5)


def test_norm_of_nothing_and_of_what_is_not_finite():
    zero = jnp.zeros(3)
    assert float(_linalg.safe_norm(zero)) == 0
    np.testing.assert_array_equal(jax.grad(_linalg.safe_norm)(zero), 0.0)
    assert float(_linalg.safe_norm(jnp.array([1.0, jnp.inf]))) == np.inf
    assert np.isnan(_linalg.safe_norm(jnp.array([1.0, jnp.nan])))


@pytest.mark.fast_cases(*(f"float32-True-{name}" for name in THEIRS))
@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("compiled", [True, False])
def test_one_a_stack_and_a_batch(name, compiled, stack, dtype):
    ours, theirs = getattr(_linalg, name), THEIRS[name]
    wrap = jax.jit if compiled else lambda f: f
    same(wrap(ours)(stack[0, 0]), theirs(stack[0, 0]), dtype)
    every = jax.vmap(jax.vmap(theirs))(stack)
    same(wrap(ours)(stack), every, dtype)
    same(wrap(jax.vmap(jax.vmap(ours)))(stack), every, dtype)


@pytest.mark.fast_cases("float64-cholesky", "float64-eigh")
@pytest.mark.parametrize("name", sorted(set(THEIRS) - {"eig"}))  # of which JAX has none
def test_derivatives(name, stack, dtype):
    ours, theirs = getattr(_linalg, name), THEIRS[name]
    for way in (jax.jacfwd, jax.jacrev):
        same(way(ours)(stack[0, 0]), way(theirs)(stack[0, 0]), dtype)
        same(jax.vmap(way(ours))(stack[0]), jax.vmap(way(theirs))(stack[0]), dtype)


HANGS = """
import jax, numpy as np
from jax.sharding import PartitionSpec
from jax.tree_util import Partial
from sharpjax import curvature
from sharpjax.densities import GaussianMixture

def both(matrix, x):
    score, options = Partial(lambda A, x: A @ x, matrix), {"num_matvecs": 24, "start": x}
    return curvature.lanczos(score, x, **options), curvature.arnoldi(score, x, **options)

def sketches(matrix, x):
    score, key = Partial(lambda A, x: A @ x, matrix), jax.random.key(0)
    return (
        curvature.eigenvalues(score, x),
        curvature.trace(score, x, key=key, num_matvecs=12, method="xtrace"),
    )

def mixture(matrix, x):
    covariances = np.stack([np.eye(32, dtype=np.float32)] * 20)
    p = GaussianMixture(np.full(20, 0.05), np.zeros((20, 32), np.float32), covariances)
    return p.noised(1.0, abs(x[0])).score(x)

rng = np.random.default_rng(0)
matrices = rng.normal(size=(200, 32, 32)).astype(np.float32)
starts = rng.normal(size=(200, 32)).astype(np.float32)
mesh = jax.make_mesh((2,), ("points",))
split = jax.device_put((matrices, starts), jax.NamedSharding(mesh, PartitionSpec("points")))
for function in (both, sketches, mixture):
    batch = jax.vmap(function)
    spread = jax.jit(jax.shard_map(batch, mesh=mesh, in_specs=PartitionSpec("points"),
                                   out_specs=PartitionSpec("points"), check_vma=False))
    for _ in range(20):
        jax.block_until_ready(jax.jit(batch)(matrices, starts))
        jax.block_until_ready(spread(*split))
    print(function.__name__, flush=True)
"""


@pytest.mark.slow
def test_batches_at_once_come_to_an_end():
    """In a process of two threads and two devices; jaxlib's own batches wait for ever there."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "NPROC": "2", "PJRT_NPROC": "2"}
    run = subprocess.run(
        [sys.executable, "-c", HANGS], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["both", "sketches", "mixture"]
