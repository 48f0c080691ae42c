"""Sums that a release of jaxlib computes wrongly on CPU: not with sharpjax."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from sharpjax import _jaxlib
from sharpjax.curvature import at_points, trace
from sharpjax.densities import Empirical
from sharpjax.mesh.devices import num_cores

SUMS = """
import numpy as np, jax, jax.numpy as jnp
A = np.random.default_rng(0).normal(size=(16000, 3)).astype(np.float32)
V = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
sums = lambda A, V: (A[None] * V[:, None]).sum(-1) * (A[:, 0] ** 2)[None]
assert np.abs(np.asarray(jax.jit(sums)(A, V)) - sums(A, V)).max() < 1e-4
"""


def run(program, **more):
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | more
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=300
    )


# 1,500 convolutions in a program, on as many devices at once as there are cores
CONVOLUTIONS = """
import numpy as np, jax, jax.numpy as jnp
from concurrent.futures import ThreadPoolExecutor
k = jax.random.key(0)
x, w = jax.random.normal(k, (32, 16, 16, 64)), 0.04 * jax.random.normal(k, (3, 3, 64, 64))
conv = lambda u: jax.lax.conv_general_dilated(
    u, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
step = lambda u, _: (u + 0.1 * jnp.tanh(y := conv(u)), y[:, 0, 0, 0])
run = jax.jit(lambda u: jax.lax.scan(step, u, None, length=1500)[1])
alone, inputs = np.asarray(run(x)), [jax.device_put(x, d) for d in jax.devices()]
with ThreadPoolExecutor(len(inputs)) as pool:
    together = list(pool.map(lambda u: np.asarray(run(u)), inputs * 2))
assert len(inputs) > 1 and all(np.abs(t - alone).max() < 1e-3 for t in together)
"""


@pytest.mark.quick
@pytest.mark.parametrize("before", ["", "import jax\n"])
def test_sums_are_right(before):
    """Of this release of jaxlib, whichever it is; also where JAX was imported first."""
    done = run(f"{before}import sharpjax\n{SUMS}")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.slow
def test_convolutions_are_right_on_all_cores_at_once():
    """Eigen's are not, of jaxlib 0.10.2 on two cores: the first example of samples was another."""
    cores = max(2, num_cores())
    done = run(f"import sharpjax\n{CONVOLUTIONS}", JAX_NUM_CPU_DEVICES=str(cores))
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(_jaxlib._version() not in _jaxlib.WRONG_SUMS, reason="this jaxlib is right")
def test_who_started_jax_before_is_told():
    done = run("import jax; jax.devices(); import sharpjax")
    assert "JAX has started before sharpjax was imported" in done.stderr
    assert "--xla_cpu_experimental_ynn_fusion_type=LIBRARY" in done.stderr
    # and it is no false alarm; where this fails, XLA was mended
    assert run(SUMS).returncode == 1


def test_what_the_user_has_chosen_stays(monkeypatch):
    given = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"
    monkeypatch.setenv("XLA_FLAGS", given)
    _jaxlib.leave_out_wrong_sums()
    assert os.environ["XLA_FLAGS"] == given
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    monkeypatch.setattr(_jaxlib, "_version", lambda: "0.9.9")
    _jaxlib.leave_out_wrong_sums()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false"


def test_curvature_of_a_large_data_set():
    """Where it was found: a point in a batch of one against the point alone; -34.7 for -2.69."""
    points = np.random.default_rng(0).normal(size=(16_000, 3)).astype(np.float32)
    p = Empirical(points).noised(1.0, 0.3)
    x = 0.3 * np.random.default_rng(1).normal(size=(1, 3)).astype(np.float32)
    key = jax.random.key(0)
    found = at_points(trace, p.score, x, key=key, sigma=0.3)
    alone = trace(p.score, x[0], key=jax.random.fold_in(key, 0), sigma=0.3)
    np.testing.assert_allclose(found.value[0], alone.value, rtol=1e-3)


# a level of Stable Diffusion, half as wide: its attentions to 4,096 pixels loop over blocks
PRODUCTS = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from sharpjax.mesh.loops import over_points
from sharpjax.networks import UNet2DConditionModel
unet = UNet2DConditionModel(
    sample_size=64, cross_attention_dim=64, block_out_channels=(160,), attention_head_dim=8,
    layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",), rngs=nnx.Rngs(0),
)
count, key = len(jax.devices()), jax.random.key(0)
x = jax.random.normal(key, (count, 2, 4, 64, 64)), jax.random.normal(key, (count, 2, 77, 64))
each = lambda unet, x: jax.vmap(lambda points, texts: unet(points, 801, texts))(*x)
mesh = jax.make_mesh((count,), ("points",), (jax.sharding.AxisType.Auto,))
alone, together = (
    np.asarray(jax.jit(lambda unet, x: over_points(each, mesh, unet, x))(unet, x))
    for mesh in (None, mesh)
)
assert count > 1
assert np.abs(together - alone).max() < 1e-4 * np.abs(alone).max()
"""


@pytest.mark.slow
def test_products_are_right_on_all_cores_at_once():
    """Eigen's are not, of jaxlib 0.10.2 on two cores: at this size the first score was another."""
    cores = max(2, num_cores())
    done = run(f"import sharpjax\n{PRODUCTS}", JAX_NUM_CPU_DEVICES=str(cores))
    assert done.returncode == 0, done.stderr
