"""Tangents per second: sharpjax, which linearizes once, and PyTorch's jvp, beside forward passes.

    python benchmarks/tangents.py [--networks digits wider] [--batches 1 16 64] [--repeats 9]
                                  [--json PATH]

Three tables for each network and batch size n:

- n forward passes: images, in one batch.
- n tangents at one point: ours by `vmap` of the tangent map of one linearization, which is kept;
  PyTorch's jvp, vmapped for n > 1, which runs the forward pass each time.
- sharpjax alone, in units of its own forward pass of one image: linearize + n tangents.

"all devices" are as many CPU devices as PyTorch has threads. Needs the test extra (PyTorch).
"""

import argparse
import functools
from pathlib import Path

import timing  # first: it sets the number of CPU devices
import torch_twin

# isort: split
import jax
import torch
from jax.sharding import PartitionSpec

from sharpjax.curvature import jacobian

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "--networks", nargs="+", choices=torch_twin.WIDTHS, default=list(torch_twin.WIDTHS)
)
parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
parser.add_argument("--condition", default="7 x256")
parser.add_argument("--t", type=int, default=600)
parser.add_argument("--repeats", type=int, default=9)
parser.add_argument("--json", metavar="PATH", type=Path)
options = parser.parse_args()

mesh = timing.mesh("probes")
ONE, ALL = "sharpjax, one device", "sharpjax, all devices"


def shared(function):
    """Over the devices: `function(what is common, a batch)`, the batch split."""
    everywhere, split = PartitionSpec(), PartitionSpec("probes")
    return jax.jit(
        jax.shard_map(
            function, mesh=mesh, in_specs=(everywhere, split), out_specs=split, check_vma=False
        )
    )


def forwards(score, points):
    return jax.vmap(score)(points)


def tangents(J, vectors):
    return jax.vmap(J.mv)(vectors)


forwards_here, tangents_here = jax.jit(forwards), jax.jit(tangents)
forwards_shared, tangents_shared = shared(forwards), shared(tangents)


@jax.jit
def single(score, x):
    return score(x)


@jax.jit
def linearized(score, x, vectors):
    J = jacobian(score, x)
    return J.value, tangents(J, vectors)


def per_second(rows, n):
    return {name: f"{n / row['median']:7.1f} a second" for name, row in rows.items()}


def batch(network: str, score, J, their_score, n: int) -> dict:
    """n forward passes and n tangents."""
    vectors = jax.random.normal(jax.random.key(1), (n, *J.point.shape))
    their_x, their_vectors = torch_twin.tensor(J.point)[None], torch_twin.tensor(vectors)
    is_split = n % jax.device_count() == 0

    def their_forward():
        with torch.no_grad():
            return their_score(their_vectors)

    def their_jvp():
        if n == 1:
            return torch_twin.jvp(their_score, their_x, their_vectors)[1]
        return torch_twin.tangents(their_score, their_x, their_vectors[:, None])[:, 0]

    forward = {ONE: lambda: forwards_here(score, vectors)}
    tangent = {ONE: lambda: tangents_here(J, vectors)}
    if is_split:
        forward[ALL] = lambda: forwards_shared(score, vectors)
        tangent[ALL] = lambda: tangents_shared(J, vectors)
    forward["PyTorch forward"], tangent["PyTorch jvp"] = their_forward, their_jvp

    errors = [timing.agree({name: run() for name, run in forward.items()})]
    rows = timing.race(forward, repeats=options.repeats)
    timing.show(f"{n} forward, {network}", rows, notes=per_second(rows, n))
    errors.append(timing.agree({name: run() for name, run in tangent.items()}))
    tangent["PyTorch forward"] = their_forward  # not the same numbers: how much a tangent may cost
    tangent_rows = timing.race(tangent, repeats=options.repeats)
    timing.show(f"{n} tangents, {network}", tangent_rows, notes=per_second(tangent_rows, n))
    ours = ALL if is_split else ONE
    return {
        "largest_difference": max(errors),
        "forward": rows,
        "tangents": tangent_rows,
        "pytorch_jvp_over_sharpjax": timing.versus(tangent_rows, ours, "PyTorch jvp"),
        "pytorch_forward_over_sharpjax": timing.versus(tangent_rows, ours, "PyTorch forward"),
    }


def measure(network: str) -> dict:
    twins = torch_twin.load(network)
    (label,) = twins.ours.encode([options.condition])
    score, pytorch = twins.ours.scores(label, options.t).conditional, twins.score(options.t)
    J = jacobian(score, jax.random.normal(jax.random.key(0), twins.ours.shape))
    print(f"\n{network}: {twins.parameters / 1e6:.2f} M parameters, d = {J.point.size}")

    def their_score(points):
        return pytorch(points, torch.full((len(points),), int(label)))

    entry = {str(n): batch(network, score, J, their_score, n) for n in options.batches}
    contenders = {"forward": lambda: single(score, J.point)}
    for n in options.batches:
        vectors = jax.random.normal(jax.random.key(1), (n, *J.point.shape))
        contenders[f"linearize + {n} tangents"] = functools.partial(
            linearized, score, J.point, vectors
        )
    rows = timing.race(contenders, repeats=options.repeats)
    timing.show(f"sharpjax, one point, one device, {network}", rows)
    return {"parameters": twins.parameters, "batches": entry, "linearized": rows}


results = {"machine": timing.header(), "t": options.t, "networks": {}}
for network in options.networks:
    results["networks"][network] = measure(network)
    timing.write(options.json, results)
