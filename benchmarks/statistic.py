"""`hessian_score_difference` of a batch of conditions at one shared noise: sharpjax and PyTorch.

    python benchmarks/statistic.py [--networks digits wider] [--conditions 16] [--repeats 9]
                                   [--json PATH]

PyTorch's way is that of the paper's public code: a forward pass of the paired batch, unconditional
and conditional stacked, then torch.func.jvp of it in direction (s_D, s_D). Ours: the library's
function vmapped over the conditions. With the noise shared, the unconditional score is the same
score at the same point for all of them, and `vmap` linearizes it once; beside it the same noises
given one by one, where it cannot. The last figure of a line is the time in units of our own forward
passes of the paired batch, on the same devices, in the same rounds. Needs the test extra (PyTorch).
"""

import argparse
import functools
from pathlib import Path

import timing  # first: it sets the number of CPU devices
import torch_twin

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import NamedSharding, PartitionSpec

from sharpjax.curvature.loops import over_points
from sharpjax.detection.statistics import hessian_score_difference

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "--networks", nargs="+", choices=torch_twin.WIDTHS, default=list(torch_twin.WIDTHS)
)
parser.add_argument("--conditions", type=int, default=16)
parser.add_argument("--t", type=int, default=981)
parser.add_argument("--repeats", type=int, default=9)
parser.add_argument("--json", metavar="PATH", type=Path)
options = parser.parse_args()


def paired_forwards(model, labels, noises, x, t):
    """Both scores under every condition: twice as many evaluations as conditions."""
    return jax.vmap(lambda label, x: model.scores(label, t).both(x))(labels, noises)


def statistic_of_each(model, labels, noises, x, t):
    return jax.vmap(lambda label, x: hessian_score_difference(model.scores(label, t), x))(
        labels, noises
    )


def statistic_of_all(model, labels, noises, x, t):
    return jax.vmap(lambda label: hessian_score_difference(model.scores(label, t), x))(labels)


def on(mesh, function):
    """Compiled, with the conditions split over the devices of a mesh."""

    def split(model, labels, noises, x, t):
        def share(common, batch):
            model, x, t = common
            return function(model, *batch, x, t)

        return over_points(share, mesh, (model, x, t), (labels, noises))

    return jax.jit(split)


def placed(model, mesh):
    return model if mesh is None else jax.device_put(model, NamedSharding(mesh, PartitionSpec()))


FUNCTIONS = {
    "paired forward": paired_forwards,
    "statistic, a noise each": statistic_of_each,
    "statistic, noise shared": statistic_of_all,
}
DEVICES = {"one device": None, "all devices": timing.mesh("points")}

THEIRS = "PyTorch forward, then jvp"


def measure(network: str) -> dict:
    twins = torch_twin.load(network)
    n, null = options.conditions, len(twins.ours.conditions)
    labels = jnp.arange(n) * null // n
    x = jax.random.normal(jax.random.key(0), twins.ours.shape)
    their_labels, their_x = torch_twin.tensor(labels).long(), torch_twin.tensor(x)[None]
    their_score = twins.score(options.t)
    noises = jnp.broadcast_to(x, (n, *x.shape))
    rest = (labels, noises, x, jnp.asarray(options.t))
    # The weights lie where they are used, once, as in `detect`.
    model = {where: placed(twins.ours, mesh) for where, mesh in DEVICES.items()}
    contenders = {
        f"{what}, {where}": functools.partial(on(mesh, function), model[where], *rest)
        for what, function in FUNCTIONS.items()
        for where, mesh in DEVICES.items()
    }
    paired = torch.cat([torch.full_like(their_labels, null), their_labels])

    def their_forward():
        with torch.no_grad():
            return their_score(their_x.expand(2 * n, -1, -1, -1), paired)

    contenders["PyTorch paired forward"] = their_forward
    contenders[THEIRS] = functools.partial(
        torch_twin.hessian_score_difference, their_score, their_x, their_labels, null
    )

    print(f"\n{network}: {twins.parameters / 1e6:.2f} M parameters, {n} conditions")
    values = {name: np.asarray(run()) for name, run in contenders.items()}
    stacked = values["PyTorch paired forward"].reshape(2, n, *x.shape)
    values["PyTorch paired forward"] = stacked.swapaxes(0, 1)
    statistics = {name: v for name, v in values.items() if "paired" not in name}
    difference = max(
        timing.agree({name: v for name, v in values.items() if "paired" in name}),
        timing.agree(statistics),
    )

    rows = timing.race(contenders, repeats=options.repeats)
    notes = {}
    for name, row in rows.items():
        where = name.rpartition(", ")[2]
        base = rows.get(f"paired forward, {where}", rows["PyTorch paired forward"])
        row["in_forwards"] = float(np.median(np.divide(row["seconds"], base["seconds"])))
        notes[name] = f"{row['in_forwards']:.2f} paired forwards"
    timing.show(f"{network}, {n} conditions", rows, notes=notes)
    return {
        "parameters": twins.parameters,
        "largest_difference": difference,
        "rows": rows,
        "pytorch_over_sharpjax": {
            name: timing.versus(rows, name, THEIRS) for name in statistics if name != THEIRS
        },
    }


results = {"machine": timing.header(), "t": options.t, "networks": {}}
for network in options.networks:
    results["networks"][network] = measure(network)
    timing.write(options.json, results)
