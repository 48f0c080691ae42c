"""What a tangent costs: the bundled digits' network in JAX, and its PyTorch twin's forward pass.

    python benchmarks/tangents.py [--batch 16] [--repeats 7]

Same weights, inputs and thread count, both warmed up; prints medians and quartiles of seconds and
the ratio to JAX's own forward pass.  Needs the test extra (PyTorch).
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import UNet2DModel

from sharpjax import zoo
from sharpjax.models import from_pretrained

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--batch", type=int, default=16)
parser.add_argument("--repeats", type=int, default=7)
options = parser.parse_args()

folder = zoo.find("mnist") / "unet"
ours, theirs = from_pretrained(folder), UNet2DModel.from_pretrained(folder).eval()
x = np.random.default_rng(0).standard_normal((options.batch, 1, 28, 28), dtype=np.float32)
labels, t = np.arange(options.batch) % 60, 981


def forward(model, x):
    return model(x, t, class_labels=labels)


def one_tangent(model, x, v):
    value, tangent = jax.linearize(lambda x: forward(model, x), x)
    return value, tangent(v)


def eight_tangents(model, x, v):
    value, tangent = jax.linearize(lambda x: forward(model, x), x)
    return value, jax.lax.map(tangent, jnp.stack([v] * 8))


@torch.no_grad()
def torch_forward():
    return theirs(torch.tensor(x), t, class_labels=torch.tensor(labels)).sample


def seconds(function, *arguments):
    function(*arguments)
    times = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return np.quantile(times, [0.25, 0.5, 0.75])


rows = {
    "JAX forward": seconds(jax.jit(forward), ours, x),
    "JAX linearize + 1 tangent": seconds(jax.jit(one_tangent), ours, x, x),
    "JAX linearize + 8 tangents": seconds(jax.jit(eight_tangents), ours, x, x),
    "PyTorch forward": seconds(torch_forward),
}
base = rows["JAX forward"][1]
print(f"batch {options.batch}, {torch.get_num_threads()} threads, {options.repeats} repeats")
print(f"{'':28} {'median s':>9} {'quartiles':>19} {'/ forward':>10}")
for name, (low, median, high) in rows.items():
    print(f"{name:28} {median:9.4f} {low:9.4f} {high:9.4f} {median / base:10.2f}")
