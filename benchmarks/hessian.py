"""The exact Hessian of log p at one point, all d = 784 columns: sharpjax and three ways in PyTorch.

    python benchmarks/hessian.py [--networks digits wider] [--repeats 7] [--tune] [--json PATH]

Of the bundled digits' network, and of a wider one with random weights. PyTorch: chunked vmap(jvp),
chunked jacrev, and one forward pass of n copies of the point with a batch of n one-hot rows for
every backward pass. `--tune` first times a few chunk sizes of each, ours too, and races the best;
without it the sizes in CHUNKS race, which
it chose for the digits' network on two cores. Needs the test extra (PyTorch).
"""

import argparse
import functools
from pathlib import Path

import timing  # first: it sets the number of CPU devices
import torch_twin

# isort: split
import jax
import numpy as np
import torch

from sharpjax.curvature import at_points, hessian

CHUNKS = {
    "digits": {"ours": 8, "mesh": 8, "tangents": 49, "jacrev": 28, "backward": 28},
    "wider": {"ours": 8, "mesh": 8, "tangents": 49, "jacrev": 28, "backward": 28},
}
CANDIDATES = {
    "ours": (8, 16, 32, 64),
    "mesh": (8, 16, 32, 64),
    "tangents": (16, 28, 49),
    "jacrev": (16, 28, 49),
    "backward": (8, 16, 28, 49),
}
NAMES = {
    "ours": "sharpjax, one device",
    "mesh": "sharpjax, all devices",
    "tangents": "PyTorch vmap(jvp)",
    "jacrev": "PyTorch jacrev",
    "backward": "PyTorch batched backward",
}

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "--networks", nargs="+", choices=torch_twin.WIDTHS, default=list(torch_twin.WIDTHS)
)
parser.add_argument("--condition", default="7 x256")
parser.add_argument("--t", type=int, default=600)
parser.add_argument("--repeats", type=int, default=7)
parser.add_argument("--tune", action="store_true")
parser.add_argument("--json", metavar="PATH", type=Path)
options = parser.parse_args()

mesh = timing.mesh("probes")


def measure(network: str) -> dict:
    twins = torch_twin.load(network)
    (label,) = twins.ours.encode([options.condition])
    score = twins.ours.scores(label, options.t).conditional
    x = jax.random.normal(jax.random.key(0), twins.ours.shape)
    their_score, their_x = twins.score(options.t), torch_twin.tensor(x)[None]

    def theirs(points):
        return their_score(points, torch.full((len(points),), int(label)))

    ways = {
        "ours": lambda size: hessian(score, x, chunk_size=size),
        "mesh": lambda size: at_points(hessian, score, x[None], mesh=mesh, chunk_size=size)[0],
        "tangents": lambda size: torch_twin.by_tangents(theirs, their_x, size),
        "jacrev": lambda size: torch_twin.by_jacrev(theirs, their_x, size),
        "backward": lambda size: torch_twin.by_backward(theirs, their_x, size),
    }
    print(f"\n{network}: {twins.parameters / 1e6:.2f} M parameters, d = {x.size}")
    chunks = dict(CHUNKS[network])
    if options.tune:
        for way, sizes in CANDIDATES.items():
            candidates = {size: functools.partial(ways[way], size) for size in sizes}
            chunks[way] = timing.quickest(candidates, what=f"{NAMES[way]}, chunks of")
    contenders = {NAMES[way]: functools.partial(ways[way], chunks[way]) for way in ways}

    # Without the -I that the formula of the score adds to the network's part, which all share.
    parts = {name: np.asarray(run()) + np.eye(x.size) for name, run in contenders.items()}
    difference = timing.agree(parts)
    rows = timing.race(contenders, repeats=options.repeats)
    notes = {NAMES[way]: f"chunks of {size}" for way, size in chunks.items()}
    timing.show(f"exact Hessian, {network}, {options.repeats} repeats", rows, notes=notes)
    pytorch = [name for name in rows if name.startswith("PyTorch")]
    return {
        "parameters": twins.parameters,
        "chunks": chunks,
        "largest_difference": difference,
        "rows": rows,
        "pytorch_over_one_device": timing.versus(rows, NAMES["ours"], *pytorch),
        "pytorch_over_all_devices": timing.versus(rows, NAMES["mesh"], *pytorch),
    }


results = {"machine": timing.header(), "t": options.t, "networks": {}}
for network in options.networks:
    results["networks"][network] = measure(network)
    timing.write(options.json, results)
