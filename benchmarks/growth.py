"""How the cost grows: with d, probes and points; and what a fresh process pays.

    python benchmarks/growth.py [--parts size probes points processes] [--repeats 3] [--json PATH]

All on the bundled digits' network.

- size: exact Hessian and trace (32 probes) at images of 8 x 8 to 28 x 28, on all devices; other
  sizes than 28 x 28 mean nothing to this network, but cost what they cost. "p" is the exponent of
  seconds ~ d^p between a size and the one before.
- probes: Hutchinson's trace with 1 to 64, on one device.
- points: `at_points(trace, ...)` of 1 to 32 points with 4 probes, on one device and on all.
- processes: fresh processes that do one thing at d = 784 twice, on one device: seconds of the first
  call and of the second, and the peak memory above what was in use with network and point loaded.
  Ours with an empty persistent compilation cache and with what that left there; "filled" shows
  the memory without the compiler's own. PyTorch's ways to the Hessian need the test extra.
"""

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import memory

PARTS = ("size", "probes", "points", "processes")
OURS = ("hessian", "trace", "lanczos", "statistic")
PYTORCH = {"by_backward": 16, "by_tangents": 49, "by_jacrev": 49}  # and the size of a chunk

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
parser.add_argument("--sides", type=int, nargs="+", default=[8, 12, 16, 20, 28])
parser.add_argument("--t", type=int, default=600)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--json", metavar="PATH", type=Path)
parser.add_argument("--child", choices=(*OURS, *PYTORCH), help=argparse.SUPPRESS)
options = parser.parse_args()


def child(what: str) -> dict:
    """One thing in this process alone, called twice: seconds of both, and memory."""
    if what in PYTORCH:
        import torch
        import torch_twin

        twins = torch_twin.load("digits")
        x, score = torch.randn(1, 1, 28, 28), twins.score(options.t)
        run = functools.partial(
            getattr(torch_twin, what),
            lambda points: score(points, torch.full((len(points),), 5)),
            x,
            PYTORCH[what],
        )
    else:
        run = ours(what)
    memory.forget_peak()
    before, seconds = memory.used("VmRSS"), []
    for _ in range(2):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "second": seconds[1], "memory": memory.used("VmHWM") - before}


def ours(what: str):
    import jax

    import sharpjax as sj
    from sharpjax.curvature import hessian, lanczos, trace
    from sharpjax.detection import hessian_score_difference

    model, key = sj.load("mnist"), jax.random.key(0)
    pair = model.scores("7 x256", options.t)
    x = jax.block_until_ready(jax.random.normal(key, model.shape))
    score = pair.conditional
    if what == "statistic":
        statistic = jax.jit(hessian_score_difference)
        run = lambda: statistic(pair, x)
    else:
        run = {
            "hessian": lambda: hessian(score, x),
            "trace": lambda: trace(score, x, key=key),
            "lanczos": lambda: lanczos(score, x, key=key),
        }[what]
    return lambda: jax.block_until_ready(run())


def in_child(what: str, **environment: str) -> dict:
    command = [sys.executable, "-W", "ignore", __file__, "--child", what, "--t", str(options.t)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


if options.child:
    print(json.dumps(child(options.child)))
    sys.exit()

import timing  # noqa: E402  (first: it sets the number of CPU devices)

# isort: split
import jax  # noqa: E402

import sharpjax as sj  # noqa: E402
from sharpjax.curvature import at_points, hessian, jacobian, trace  # noqa: E402

results = {"machine": timing.header(), "t": options.t}
model, key = sj.load("mnist"), jax.random.key(0)
score = model.scores("7 x256", options.t).conditional
x = jax.random.normal(key, model.shape)
race = functools.partial(timing.race, repeats=options.repeats)


def by_size() -> dict:
    mesh, tables = timing.mesh("probes"), {}
    points = {n: jax.random.normal(key, (1, 1, n, n)) for n in options.sides}
    for title, estimator, settings in (
        ("exact Hessian, all devices", hessian, {}),
        ("trace with 32 probes, all devices", trace, {"key": key}),
    ):
        rows = race(
            {
                f"{n} x {n}, d = {n * n}": functools.partial(
                    at_points, estimator, score, points[n], mesh=mesh, **settings
                )
                for n in options.sides
            }
        )
        medians = [row["median"] for row in rows.values()]
        powers = [
            math.log(medians[i + 1] / medians[i])
            / (2 * math.log(options.sides[i + 1] / options.sides[i]))
            for i in range(len(medians) - 1)
        ]
        notes = dict(zip(list(rows)[1:], (f"p = {p:.2f}" for p in powers), strict=True))
        timing.show(title, rows, notes=notes)
        tables[title] = {"rows": rows, "powers": powers}
    return tables


def by_probes() -> dict:
    counts = (1, 4, 16, 64)
    contenders = {
        f"{n} probes": functools.partial(trace, score, x, key=key, num_matvecs=n) for n in counts
    }
    rows = race(contenders)
    notes = {
        f"{n} probes": f"{1e3 * rows[f'{n} probes']['median'] / n:.2f} ms each" for n in counts
    }
    timing.show("trace, one device", rows, notes=notes)
    return rows


def by_points() -> dict:
    tables, counts = {}, (1, 2, 8, 32)
    points = jax.random.normal(key, (max(counts), *model.shape))
    for title, mesh in (("one device", None), ("all devices", timing.mesh("points"))):
        contenders = {
            f"{n} points": functools.partial(
                at_points, trace, score, points[:n], key=key, num_matvecs=4, mesh=mesh
            )
            for n in counts
        }
        rows = race(contenders)
        notes = {
            f"{n} points": f"{1e3 * rows[f'{n} points']['median'] / n:.1f} ms each" for n in counts
        }
        timing.show(f"at_points(trace, 4 probes), {title}", rows, notes=notes)
        tables[title] = rows
    return tables


def by_process() -> dict:
    tangent_map = jacobian(score, x).tangent_map
    planned = jax.jit(lambda f, v: f(v)).lower(tangent_map, x).compile().memory_analysis()
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(tangent_map))
    print(f"\nthe linearization keeps {kept / 2**20:.1f} MiB, weights included; one tangent takes")
    print(f"{planned.temp_size_in_bytes / 2**20:.1f} MiB of temporaries beside it (XLA's plan)")
    print(f"\n{'fresh processes':48} {'first s':>9} {'second s':>9} {'peak MiB':>9}")
    table = {}

    def add(name, what, **environment):
        row = table[name] = in_child(what, **environment)
        numbers = f"{row['first']:9.3f} {row['second']:9.3f} {row['memory'] / 2**20:9.0f}"
        print(f"{name:48} {numbers}", flush=True)

    for what in OURS:
        with tempfile.TemporaryDirectory() as folder:
            # As the command line sets it: programs of half a second and more are kept.
            cache = {
                "JAX_COMPILATION_CACHE_DIR": folder,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
            }
            add(f"sharpjax {what}, empty cache", what, **cache)
            add(f"sharpjax {what}, filled cache", what, **cache)
    for what, size in PYTORCH.items():
        add(f"PyTorch Hessian {what}, chunks of {size}", what)
    return {
        "tangent_temporary": planned.temp_size_in_bytes,
        "linearization": kept,
        "processes": table,
    }


FUNCTIONS = dict(zip(PARTS, (by_size, by_probes, by_points, by_process), strict=True))
for part in options.parts:
    results[part] = FUNCTIONS[part]()
    timing.write(options.json, results)
