"""A tangent through attention, at the lengths of images: seconds and memory, ours and PyTorch's.

    python benchmarks/attention_tangents.py [--lengths 256 1024 4096] [--rounds 3] [--json PATH]

Softmax attention of 8 heads of 40 (Stable Diffusion 1.4 at 64 x 64 has 4,096 tokens), to itself and
joint attention (333 tokens of a text beside, as Stable Diffusion 3), float32, one example.  The
value and its derivative along one direction of queries, keys and values.

PyTorch's fused attention has no forward-mode derivative, so its ways are: forward mode through the
formula written out; forward mode through the "math" kernel; two backward passes through the math
kernel; and a central difference of the fused kernel, which is no derivative but the quickest.  All
but the last must agree with ours to 1e-3.  Peak memory and processor seconds (on one core) are
those of a process of its own for each way and length.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import memory
import timing  # first: it sets the number of CPU devices

# isort: split
import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.networks.attention import attention

HEADS, WIDTH, TEXT = 8, 40, 333
STEP = 1e-2


def inputs(length, joint):
    """Queries, keys and values and a direction of each, `(1, n, heads, width)`."""
    rng = np.random.default_rng(0)
    n = length + TEXT * joint
    draw = lambda: rng.standard_normal((1, n, HEADS, WIDTH)).astype(np.float32)
    return [draw() for _ in range(3)], [draw() for _ in range(3)]


def ours(length, joint):
    points, directions = inputs(length, joint)
    x, v = (tuple(map(jnp.asarray, each)) for each in (points, directions))
    run = jax.jit(lambda x, v: jax.jvp(attention, x, v)).lower(x, v).compile()
    return lambda: run(x, v)


def theirs(kind, length, joint):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as fused

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    points, directions = (
        [torch.tensor(one).transpose(1, 2).contiguous() for one in each]
        for each in inputs(length, joint)
    )

    def written_out(q, k, v):
        return torch.softmax(q @ k.transpose(-1, -2) / WIDTH**0.5, dim=-1) @ v

    def difference():
        with torch.no_grad():
            ends = [
                fused(*(x + sign * STEP * d for x, d in zip(points, directions, strict=True)))
                for sign in (1, -1)
            ]
            return fused(*points), (ends[0] - ends[1]) / (2 * STEP)

    def backward_twice():
        leaves = [x.clone().requires_grad_() for x in points]
        with sdpa_kernel(SDPBackend.MATH):
            out = fused(*leaves)
            w = torch.zeros_like(out, requires_grad=True)
            back = torch.autograd.grad(out, leaves, w, create_graph=True)
            product = sum(torch.sum(g * d) for g, d in zip(back, directions, strict=True))
            return out.detach(), torch.autograd.grad(product, w)[0]

    def forward(function):
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(function, tuple(points), tuple(directions))

    return {
        "written out, forward": lambda: forward(written_out),
        "math kernel, forward": lambda: forward(fused),
        "math kernel, two backward": backward_twice,
        "fused, central difference": difference,
    }[kind]


KINDS = ("written out, forward", "math kernel, forward", "math kernel, two backward",
         "fused, central difference")  # fmt: skip


def way(kind, length, joint):
    return ours(length, joint) if kind == "sharpjax" else theirs(kind, length, joint)


def values(found):
    """`(value, tangent)` as `(1, n, heads, width)`."""
    both = [
        np.asarray(one) if isinstance(one, jax.Array) else one.detach().numpy() for one in found
    ]
    return [one if one.shape[1] != HEADS else one.transpose(0, 2, 1, 3) for one in both]


def alone(kind, length, joint):
    """Mebibytes above what a process of its own had before, and processor seconds on one core.

    The latter depend least on what else the machine does: threads that wait for each other spin.
    """
    done = subprocess.run(
        [sys.executable, __file__, "--one", kind, "--lengths", str(length),
         *(["--joint"] if joint else [])],
        capture_output=True, text=True, check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    )  # fmt: skip
    return [float(number) for number in done.stdout.split()[-2:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="PATH", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--joint", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run = way(options.one, options.lengths[0], options.joint)
        memory.forget_peak()
        before, start = memory.used("VmRSS"), time.process_time()
        jax.block_until_ready(run())
        print((memory.used("VmHWM") - before) / 2**20, time.process_time() - start)
        return
    facts, results = timing.header(), {}
    for joint in (False, True):
        for length in options.lengths:
            ways = {kind: way(kind, length, joint) for kind in ("sharpjax", *KINDS)}
            exact = values(ways["sharpjax"]())
            off = {}
            for kind, run in ways.items():
                off[kind] = max(
                    float(np.abs(a - b).max() / np.abs(b).max())
                    for a, b in zip(values(run()), exact, strict=True)
                )
                if "difference" not in kind and off[kind] > 1e-3:
                    raise SystemExit(f"{kind} is off by {off[kind]:.1e}")
            rows = timing.race(ways, repeats=options.rounds)
            name = f"{length} tokens{f' and {TEXT} of a text' if joint else ''}"
            print(f"\n{name}: {'ms':>32} {'/ sharpjax':>11} {'CPU s':>6} {'MiB':>7} {'off by':>8}")
            results[name] = {}
            for kind, row in rows.items():
                mebibytes, cpu = alone(kind, length, joint)
                results[name][kind] = row | {"mebibytes": mebibytes, "cpu": cpu, "off": off[kind]}
                print(
                    f"  {kind:28} {1e3 * row['median']:15.1f} {row['ratio']['median']:11.2f} "
                    f"{cpu:6.2f} {mebibytes:7.0f} {off[kind]:8.1e}",
                    flush=True,
                )
    timing.write(options.json, {"machine": facts, "ways": results})


if __name__ == "__main__":
    main()
