"""Fair timing for the benchmarks: all contenders in one process, in turn, medians and quartiles.

Import it before anything runs on JAX: XLA's CPU backend runs a convolution on one core, so JAX
gets as many CPU devices as there are cores, and every contender of ours runs once on one device
and once on a mesh of all. PyTorch gets as many threads as there are cores (`torch_twin`).
"""

import importlib.metadata
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

CORES = len(os.sched_getaffinity(0))
jax.config.update("jax_num_cpu_devices", CORES)


def mesh(axis: str) -> jax.sharding.Mesh:
    """All devices along one axis."""
    return jax.make_mesh((jax.device_count(),), (axis,), (jax.sharding.AxisType.Auto,))


def race(
    contenders: Mapping[str, Callable], *, repeats: int, warmups: int = 1, least: float = 0.1
) -> dict[str, dict]:
    """Seconds a call of each: in turn, round after round, so that a slow moment hits them all.

    A turn is as many calls as take `least` seconds, after one that does not count: threads of the
    contender before may still spin, and its data fills the caches. Quick calls would show that.

    Returns:
        For each the quartiles of the seconds and of the ratio to the first contender of the same
        round, and the seconds of every round.
    """
    calls = {}
    for name, function in contenders.items():
        for _ in range(warmups):
            seconds = _seconds(function, 1)
        calls[name] = math.ceil(least / seconds)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            if calls[name] > 1:
                function()
            times[name].append(_seconds(function, calls[name]))
    first = next(iter(contenders))
    return {
        name: _quartiles(seconds)
        | {"ratio": _quartiles(np.divide(seconds, times[first])), "seconds": seconds}
        for name, seconds in times.items()
    }


def _seconds(function: Callable, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        out = jax.block_until_ready(function())
    stop = time.perf_counter()
    del out
    return (stop - start) / calls


def _quartiles(values) -> dict[str, float]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"low": float(low), "median": float(median), "high": float(high)}


def versus(rows: Mapping[str, Mapping], ours: str, *theirs: str) -> dict:
    """How many times as long as `ours` the quickest of `theirs` takes, by rounds; printed."""
    quickest = min(theirs, key=lambda name: rows[name]["median"])
    ratio = _quartiles(np.divide(rows[quickest]["seconds"], rows[ours]["seconds"]))
    print(
        f"{quickest} / {ours}: {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
        flush=True,
    )
    return {"ours": ours, "theirs": quickest, **ratio}


def agree(values: Mapping[str, np.ndarray], *, rtol: float = 1e-3) -> float:
    """Check that all computed the same as the first: `|a - b|/|b|` in the 2-norm; printed.

    Raises:
        SystemExit: they did not, so a race between them says nothing.
    """
    names = list(values)
    arrays = [np.asarray(values[name], np.float64) for name in names]
    errors = [np.linalg.norm(a - arrays[0]) / np.linalg.norm(arrays[0]) for a in arrays]
    worst = int(np.argmax(errors))
    print(f"largest relative difference from {names[0]}: {errors[worst]:.1e} ({names[worst]})")
    if not max(errors) <= rtol:
        raise SystemExit(f"{names[worst]} computes something else than {names[0]}: no race")
    return float(max(errors))


def quickest(candidates: Mapping[int, Callable], *, what: str) -> int:
    """The key of the quickest of a few settings, each called twice and timed the second time."""
    seconds = {}
    for setting, function in candidates.items():
        jax.block_until_ready(function())
        seconds[setting] = _seconds(function, 1)
    print(f"{what}: " + ", ".join(f"{k}: {v:.2f} s" for k, v in seconds.items()), flush=True)
    return min(seconds, key=seconds.get)


def machine() -> dict:
    """What the figures are taken on. PyTorch's threads wait for each other by spinning, so a load
    before the start, somebody else's work, slows PyTorch far more than its share."""
    devices = jax.devices()
    return {
        "cpu": _cpu(),
        "cores": CORES,
        "devices": f"{len(devices)} {devices[0].device_kind}",
        "load": os.getloadavg()[0],
        **{name: importlib.metadata.version(name) for name in ("jax", "torch")},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown"


def header() -> dict:
    """`machine()`, printed."""
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    return facts


def show(
    title: str, rows: Mapping[str, Mapping], *, notes: Mapping[str, str] | None = None
) -> None:
    """Print a table of what `race` returned."""
    print(f"\n{title}")
    print(f"{'':48} {'median s':>9} {'quartiles':>19} {'/ first':>8} {'quartiles':>15}")
    for name, row in rows.items():
        ratio = row["ratio"]
        print(
            f"{name:48} {row['median']:9.4f} {row['low']:9.4f} {row['high']:9.4f} "
            f"{ratio['median']:8.2f} {ratio['low']:7.2f} {ratio['high']:7.2f}  "
            f"{(notes or {}).get(name, '')}",
            flush=True,
        )


def write(path: Path | None, results: Mapping) -> None:
    """The results as JSON, if a path was given."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n")
