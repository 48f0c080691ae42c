"""Stable Diffusion's networks at their real size: load, forward pass and statistic, beside PyTorch.

    python benchmarks/stable_diffusion_scale.py [--architectures sd1 sd2] [--repeats 3]
                                                [--directory DIR] [--json PATH]

The architectures of SD 1.4 (859.5 M parameters) and 2.0 (865.9 M), by their published
configurations, with random weights: written once as a diffusers directory, which both sides load.
Latents are 4 x 64 x 64, texts 77 tokens. The paired forward is both scores of a prompt; the
statistic is `hessian_score_difference` at t = 981. PyTorch's ways to it are that of the paper's
public code, a pass of the pair and torch.func.jvp of it in direction (s_D, s_D), and the best known
one, a central difference along s_D by forward passes alone, with fused attention and channels-last.

The public code's way is asked once, for the numbers that all must agree with. Then ours, on one
device and with one device a core, each with its prompt (XLA runs a convolution on one core of a
device), take turns with PyTorch's best, with as many threads as there are cores: two processes at
a time, which 24 GB of memory hold. Seconds are for a prompt. Compile seconds are those of the
first call without a compilation cache. Memory is the process' peak during a call, weights and
interpreter included. Needs the test extra (PyTorch), 4 GB of disk, and some thirteen minutes an
architecture.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import memory

CORES = len(os.sched_getaffinity(0))
T = 981
TOKENS = 77
# what these two say beyond the defaults of UNet2DConditionModel
ARCHITECTURES = {
    "sd1": {"sample_size": 64, "cross_attention_dim": 768},
    "sd2": {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}
OURS = {"sharpjax, one device": 1, f"sharpjax, {CORES} devices": CORES}
THEIRS, BEST = "PyTorch, public code", "PyTorch, central difference"
CALLS = ("paired forward", "statistic")
STEP = 2e-3  # of that difference
parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES)
)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--directory", type=Path, help="Where the weights go; kept. Default: nowhere.")
parser.add_argument("--json", metavar="PATH", type=Path)
parser.add_argument("--worker", help=argparse.SUPPRESS)


# --- in the worker processes -------------------------------------------------------------------


def write_random(architecture: str, folder: str) -> int:
    """A directory with random weights."""
    import jax
    import jax.numpy as jnp
    from random_unet import random_weights

    from sharpjax.checkpoints import save_pretrained

    unet = jax.tree.map(jnp.asarray, random_weights(ARCHITECTURES[architecture]))
    save_pretrained(unet, folder)
    return sum(leaf.size for leaf in jax.tree.leaves(unet))


def inputs(settings: dict, count: int):
    """Noise and encoded prompts `(count, 2, tokens, width)`, unconditional and conditional."""
    import numpy as np

    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 64, 64), dtype=np.float32)
    texts = rng.standard_normal((count, 2, TOKENS, settings["cross_attention_dim"]))
    return x, texts.astype(np.float32)


def our_calls(architecture: str, folder: str, devices: int) -> dict:
    """Name -> a function that returns the scores or statistics of `devices` prompts."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from random_unet import pair_of

    from sharpjax import Schedule
    from sharpjax.checkpoints import from_pretrained
    from sharpjax.detection import hessian_score_difference
    from sharpjax.mesh.loops import over_points

    mesh = None
    if devices > 1:
        mesh = jax.make_mesh((devices,), ("points",), (jax.sharding.AxisType.Auto,))
    unet, schedule = from_pretrained(folder), Schedule.create()
    if mesh is not None:
        unet = jax.device_put(unet, NamedSharding(mesh, PartitionSpec()))
    x, texts = map(jnp.asarray, inputs(ARCHITECTURES[architecture], devices))

    def on_mesh(function):
        def share(common, texts):
            unet, x = common
            return jax.vmap(lambda text: function(pair_of(unet, schedule, text, T), x))(texts)

        return jax.jit(lambda unet, x, texts: over_points(share, mesh, (unet, x), texts))

    calls = {
        "paired forward": on_mesh(lambda pair, x: pair.both(x)),
        "statistic": on_mesh(hessian_score_difference),
    }
    return {
        name: lambda call=call: np.asarray(call(unet, x, texts)) for name, call in calls.items()
    }


def their_calls(architecture: str, folder: str, *, quick: bool) -> dict:
    """The same for one prompt in PyTorch; `quick` without a derivative."""
    import torch
    import torch_twin
    from diffusers import UNet2DConditionModel

    from sharpjax import Schedule

    unet = UNet2DConditionModel.from_pretrained(folder)
    unet = torch_twin.quick(unet, compiled=False)[0] if quick else torch_twin.prepared(unet)
    x, texts = (torch.tensor(a) for a in inputs(ARCHITECTURES[architecture], 1))
    sigma = float(Schedule.create().sigma(T))

    def score(points, contexts):
        return -unet(points, T, contexts).sample / sigma

    def forward():
        with torch.no_grad():
            return score(x.expand(2, -1, -1, -1), texts[0])[None].numpy()

    def statistic():
        points, contexts = x.expand(2, -1, -1, -1).contiguous(), texts[0]
        with torch.no_grad():
            unconditional, conditional = score(points, contexts)
        direction = (conditional - unconditional).expand(2, -1, -1, -1)
        _, tangent = torch_twin.jvp(lambda points: score(points, contexts), points, direction)
        return (tangent[1] - tangent[0]).norm()[None].numpy()

    def by_difference():
        data = (x[None], texts[0, 0], texts[0, 1:])
        passes = torch_twin.in_passes(score, 2)
        return torch_twin.by_difference(passes, *data, step=STEP, sides=2)[0].numpy()

    return {"paired forward": forward, "statistic": by_difference if quick else statistic}


def work(kind: str) -> None:
    """Answer requests, one a line: the name of a call -> seconds, peak memory, values."""
    architecture, folder = options.architectures[0], str(options.directory)
    start = time.perf_counter()
    if kind == "write":
        answer = {"parameters": write_random(architecture, folder)}
    elif kind in (THEIRS, BEST):
        calls, answer = their_calls(architecture, folder, quick=kind == BEST), {}
    else:
        calls, answer = our_calls(architecture, folder, OURS[kind]), {}
    answer |= {"seconds": time.perf_counter() - start, "gigabytes": memory.used("VmHWM") / 1e9}
    print("ANSWER " + json.dumps(answer), flush=True)
    for line in sys.stdin:
        name = line.strip()
        memory.forget_peak()
        start = time.perf_counter()
        values = calls[name]()
        seconds = time.perf_counter() - start
        answer = {
            "seconds": seconds,
            "gigabytes": memory.used("VmHWM") / 1e9,
            "prompts": len(values),
        }
        # of all prompts the first is common to all contenders
        answer["values"] = values[0].ravel()[::97].tolist()
        print("ANSWER " + json.dumps(answer), flush=True)


# --- in the parent -----------------------------------------------------------------------------


class Worker:
    """A process of its own that holds the weights."""

    def __init__(self, kind: str, architecture: str, folder: Path):
        environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", kind, "--architectures", architecture,
             "--directory", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.loaded = self._answer()

    def ask(self, name: str) -> dict:
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise SystemExit(f"the worker ended with status {self.process.wait()}")


def measure(architecture: str, folder: Path) -> dict:
    import numpy as np

    writer = Worker("write", architecture, folder)
    parameters = writer.loaded["parameters"]
    writer.close()
    weights = 4 * parameters / 1e9
    print(f"\n{architecture}: {parameters / 1e6:.1f} M parameters, {weights:.2f} GB in float32")
    results = {"parameters": parameters, "loaded": {}} | {what: {} for what in CALLS}

    def loaded(name: str) -> Worker:
        worker = Worker(name, architecture, folder)
        results["loaded"][name] = worker.loaded
        print(f"  {name}: loaded in {worker.loaded['seconds']:.1f} s, peak "
              f"{worker.loaded['gigabytes']:.2f} GB", flush=True)  # fmt: skip
        return worker

    public = loaded(THEIRS)
    expected = {what: np.array(public.ask(what)["values"]) for what in CALLS}
    public.close()
    best = loaded(BEST)
    for name in OURS:
        worker = loaded(name)
        for what in CALLS:
            results[what] |= race(what, {name: worker, BEST: best}, expected[what])
            show(what, results, (name, BEST))
        worker.close()
    best.close()
    return results


def race(what: str, workers: dict, expected) -> dict:
    """Rows of one call of two processes in turn, the second of which is PyTorch's best."""
    import numpy as np

    first = {name: worker.ask(what) for name, worker in workers.items()}
    values = {name: np.array(answer["values"]) for name, answer in first.items()}
    errors = {
        name: float(np.linalg.norm(v - expected) / np.linalg.norm(expected))
        for name, v in values.items()
    }
    if not all(error < (1e-2 if name == BEST else 1e-3) for name, error in errors.items()):
        raise SystemExit(f"{what}: the sides compute different things: {errors}")
    rounds = [
        {name: worker.ask(what) for name, worker in workers.items()} for _ in range(options.repeats)
    ]
    rows = {}
    for name in workers:
        seconds = [r[name]["seconds"] / r[name]["prompts"] for r in rounds]
        ratios = [r[BEST]["seconds"] / s for r, s in zip(rounds, seconds, strict=True)]
        rows[name] = {
            "seconds": seconds,
            "median": float(np.median(seconds)),
            "first_call_more": first[name]["seconds"]
            - float(np.median(seconds)) * first[name]["prompts"],
            "gigabytes": max(r[name]["gigabytes"] for r in rounds),
            "best_pytorch_over_this": [f(ratios) for f in (min, np.median, max)],
            "error": errors[name],
        }
    return rows


def show(what: str, results: dict, names: tuple[str, ...]) -> None:
    print(f"\n  {what}, seconds a prompt")
    print(f"  {'':28} {'median':>7} {'difference / this (range)':>26} {'compile s':>10} "
          f"{'peak GB':>8} {'in forwards':>12} {'error':>8}")  # fmt: skip
    for name in names:
        row = results[what][name]
        low, median, high = row["best_pytorch_over_this"]
        forwards = row["median"] / results["paired forward"][name]["median"]
        print(
            f"  {name:28} {row['median']:7.2f} {f'{median:.2f} ({low:.2f} to {high:.2f})':>26} "
            f"{row['first_call_more']:10.1f} {row['gigabytes']:8.2f} {forwards:12.2f} "
            f"{row['error']:8.1e}",
            flush=True,
        )


def main() -> None:
    import timing

    results = {"machine": timing.header(), "t": T, "architectures": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for architecture in options.architectures:
            folder = (options.directory or Path(temporary)) / architecture
            results["architectures"][architecture] = measure(architecture, folder)
            timing.write(options.json, results)


options = parser.parse_args()
if options.worker:
    work(options.worker)
elif __name__ == "__main__":
    main()
