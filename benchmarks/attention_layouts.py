"""How the weights of an attention in blocks lie: what it gives to the forward pass and a tangent.

    python benchmarks/attention_layouts.py [--repeats 5] [--json PATH]

Attentions of Stable Diffusion 1.4 and 2.0 at 64 x 64 latents, one example, float32, one device.
Ours keeps the weights of a block keys by queries and gets their sum from the product with the
values (`sharpjax/networks/attention.py`); the plain form keeps them queries by keys, as formulas
are written, and sums them. Beside them PyTorch's fused kernel, which has no tangent.
"""

import argparse
import functools
import math
import os
from pathlib import Path
from unittest import mock

import timing  # first: it sets the number of CPU devices

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import torch

from sharpjax.networks import attention as ours

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--repeats", type=int, default=5)
parser.add_argument("--json", metavar="PATH", type=Path)
options = parser.parse_args()
torch.set_num_threads(len(os.sched_getaffinity(0)))
SHAPES = [(4096, 8, 40), (4096, 5, 64), (1024, 8, 80)]  # tokens, heads, width of a head


@jax.checkpoint
def queries_by_keys(q, k, v):
    logits = jnp.einsum("hnd,hmd->hnm", q / math.sqrt(q.shape[-1]), k)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    return jnp.einsum("hnm,hmd->hnd", weights, v) / weights.sum(-1, keepdims=True)


def compiled(block, x, dx):
    """Forward pass and tangent with one form of a block."""
    with mock.patch.object(ours, "_block", block):
        forward = jax.jit(lambda x: ours.attention(*x)).lower(x).compile()
        tangent = jax.jit(lambda x, dx: jax.jvp(ours.attention, x, dx)[1]).lower(x, dx).compile()
    return functools.partial(forward, x), functools.partial(tangent, x, dx)


def fused(x):
    return torch.nn.functional.scaled_dot_product_attention(*x).transpose(1, 2).numpy()


results = {"machine": timing.header(), "shapes": {}}
rng = np.random.default_rng(0)
for n, heads, width in SHAPES:
    numbers = [rng.standard_normal((1, n, heads, width), np.float32) for _ in range(6)]
    x, dx = tuple(map(jnp.asarray, numbers[:3])), tuple(map(jnp.asarray, numbers[3:]))
    x_torch = [torch.tensor(one).transpose(1, 2).contiguous() for one in numbers[:3]]
    forms = {
        "keys by queries": compiled(ours._block, x, dx),
        "queries by keys": compiled(queries_by_keys, x, dx),
    }
    races = {
        "forward": {name: both[0] for name, both in forms.items()}
        | {"PyTorch, fused": functools.partial(fused, x_torch)},
        "tangent": {name: both[1] for name, both in forms.items()},
    }
    for what, contenders in races.items():
        name = f"{what}, {n} tokens, {heads} heads of {width}"
        timing.agree({way: function() for way, function in contenders.items()}, rtol=1e-4)
        rows = timing.race(contenders, repeats=options.repeats)
        timing.show(name, rows)
        results["shapes"][name] = rows
timing.write(options.json, results)
