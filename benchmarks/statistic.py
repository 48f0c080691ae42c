"""`hessian_score_difference` of a batch of conditions at one shared noise: sharpjax and PyTorch.

    python benchmarks/statistic.py [--networks digits wider] [--conditions 16] [--repeats 9]
                                   [--no-compile] [--json PATH]

Ours: the library's function vmapped over the conditions. With the noise shared, the unconditional
score is the same score at the same point for all of them, and `vmap` linearizes it once; beside it
the same noises given one by one, where it cannot. PyTorch's ways share the noise too: the tangents
of all conditions at once, s_u kept, and differences along s_D in one batch, compiled where it is
not turned off (`prompts.py` has more ways, and a table of what a difference's step does). The last
figures of a line are the time in units of our own forward passes of the paired batch, on the same
devices, in the same rounds, and the largest relative error. Needs the test extra (PyTorch).
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

from sharpjax.detection.statistics import hessian_score_difference
from sharpjax.mesh.loops import over_points

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "--networks", nargs="+", choices=torch_twin.WIDTHS, default=list(torch_twin.WIDTHS)
)
parser.add_argument("--conditions", type=int, default=16)
parser.add_argument("--t", type=int, default=981)
parser.add_argument("--repeats", type=int, default=9)
parser.add_argument("--no-compile", action="store_true", help="Leave torch.compile out.")
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

TANGENTS = "PyTorch tangents"
# name -> sides and step, as in prompts.py
DIFFERENCES = {
    "PyTorch central difference": (2, 2e-3),
    "PyTorch one-sided difference": (1, 5e-4),
}


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
    empty = torch.tensor(null)
    arguments = (their_x, empty, their_labels)
    contenders[TANGENTS] = functools.partial(
        torch_twin.by_tangents_in_batches, their_score, *arguments, size=2 * n
    )
    quick = twins.quick(compiled=not options.no_compile).score(options.t)
    for name, (sides, step) in DIFFERENCES.items():
        contenders[name] = functools.partial(
            torch_twin.by_difference, quick, *arguments, step=step, sides=sides
        )

    print(f"\n{network}: {twins.parameters / 1e6:.2f} M parameters, {n} conditions")
    values = {name: np.asarray(run()).squeeze() for name, run in contenders.items()}
    stacked = values["PyTorch paired forward"].reshape(2, n, *x.shape)
    values["PyTorch paired forward"] = stacked.swapaxes(0, 1).squeeze()
    statistics = {name: v for name, v in values.items() if "paired" not in name}
    exact = {name: v for name, v in statistics.items() if name not in DIFFERENCES}
    difference = max(
        timing.agree({name: v for name, v in values.items() if "paired" in name}),
        timing.agree(exact),
    )
    errors = {name: float(np.abs(v / exact[TANGENTS] - 1).max()) for name, v in statistics.items()}

    rows = timing.race(contenders, repeats=options.repeats)
    notes = {}
    for name, row in rows.items():
        where = name.rpartition(", ")[2]
        base = rows.get(f"paired forward, {where}", rows["PyTorch paired forward"])
        row["in_forwards"] = float(np.median(np.divide(row["seconds"], base["seconds"])))
        notes[name] = f"{row['in_forwards']:.2f} paired forwards"
        if name in DIFFERENCES:
            notes[name] += f", off by {errors[name]:.1e} at most"
    timing.show(f"{network}, {n} conditions", rows, notes=notes)
    return {
        "parameters": twins.parameters,
        "largest_difference": difference,
        "largest_error": errors,
        "rows": rows,
        "pytorch_over_sharpjax": {
            name: {theirs: timing.versus(rows, name, theirs) for theirs in (TANGENTS, *DIFFERENCES)}
            for name in statistics
            if not name.startswith("PyTorch")
        },
    }


results = {"machine": timing.header(), "t": options.t, "networks": {}}
for network in options.networks:
    results["networks"][network] = measure(network)
    timing.write(options.json, results)
