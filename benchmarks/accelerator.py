"""One prepared run for one GPU: are the numbers the CPU's, and how fast are they beside PyTorch's?

    python benchmarks/accelerator.py [--minutes 6] [--json accelerator.json]
    python benchmarks/accelerator.py --small    # on a CPU, in minutes: that the script works

In order, each part printed and written as it ends, and begun only while it fits the minutes:

1. *Numbers*: three statistics of 8 captions of the bundled model on the accelerator, relative to
   the same on this machine's CPU: in float32 with exact products (bar 1e-3), in float32 as the
   accelerator multiplies by default, and with the network in bfloat16 (bar 1e-2).
2. *Attention* that has a forward-mode derivative, at 4,096 tokens, 8 heads of 40: ours in blocks,
   and `jax.nn.dot_product_attention` whole; seconds of a value and of a tangent.
3. *Stable Diffusion 1.4's network*, random weights, in both types: paired forward pass,
   `hessian_score_difference` and a trace with 4 probes, for 1 and 8 prompts at once: seconds a
   prompt, prompts a minute, peak memory.
4. *PyTorch* on the same weights, where it is installed with a device of the same kind: the paired
   forward pass and the best way that we know to the statistic, a central difference along s_D;
   fused attention, channels-last, torch.compile.
"""

import argparse
import gc
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from random_unet import pair_of, random_weights

import sharpjax as sj
from sharpjax import Schedule
from sharpjax.curvature import trace
from sharpjax.detection import hessian_score_difference, score_difference
from sharpjax.networks.attention import attention

T, STEP, PROBES = 981, 2e-3, 4
REAL = {"config": {"sample_size": 64, "cross_attention_dim": 768}, "tokens": 77, "length": 4096,
        "prompts": (1, 8)}  # fmt: skip
SMALL = {"config": {"sample_size": 16, "cross_attention_dim": 32, "layers_per_block": 1,
                    "block_out_channels": (32, 32, 64, 64), "attention_head_dim": 4},
         "tokens": 8, "length": 1024, "prompts": (1, 2)}  # fmt: skip
TYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
results = {}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--json", type=Path, default=Path("accelerator.json"))
    arguments = parser.parse_args()
    sizes = SMALL if arguments.small else REAL
    end = time.perf_counter() + 60 * arguments.minutes
    device = jax.devices()[0]
    results["machine"] = {"device": device.device_kind, "jax": jax.__version__} | sizes
    print(f"{device.device_kind}, jax {jax.__version__}", flush=True)
    # what each part took where it was tried, in seconds, with its compilation
    parts = (
        ("numbers", 60, lambda: numbers()),
        ("attention", 20, lambda: attentions(sizes)),
        *((f"network {name}", 70, lambda name=name: network(sizes, name)) for name in TYPES),
        *((f"PyTorch {name}", 60, lambda name=name: pytorch(sizes, name)) for name in TYPES),
    )
    for name, seconds, part in parts:
        if time.perf_counter() + seconds > end:
            results[name] = "not run: no time was left"
            print(f"{name}: {results[name]}", flush=True)
            continue
        begin = time.perf_counter()
        results[name] = part()
        print(f"  ({name}: {time.perf_counter() - begin:.0f} s)", flush=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
        gc.collect()
    table()


def numbers():
    """Largest relative differences from the CPU, by type."""
    cpu = jax.devices("cpu")[0]
    captions = list(sj.bench.drawings().captions[::80])
    found = {}
    for name, dtype, precision in (
        ("cpu", "float32", "highest"),
        ("float32, exact products", "float32", "highest"),
        ("float32, default products", "float32", "default"),
        ("bfloat16", "bfloat16", "default"),
    ):
        where = cpu if name == "cpu" else jax.devices()[0]
        with jax.default_device(where), jax.default_matmul_precision(precision):
            model = sj.load("drawings", dtype=TYPES[dtype])
            contexts = model.encode(captions)
            x = jax.device_put(np.random.default_rng(0).normal(size=model.shape), where)
            found[name] = np.asarray(of_bundled(model, contexts, jnp.float32(x)))
    told = {}
    names = ("score_difference", "hessian_score_difference", "trace")
    for way in list(found)[1:]:
        off = np.abs(found[way] / found["cpu"] - 1).max(axis=0)
        told[way] = dict(zip(names, off.tolist(), strict=True))
        print(f"  {way:26} " + ", ".join(f"{n} {v:.1e}" for n, v in told[way].items()))
    return told


@jax.jit
def of_bundled(model, contexts, x):
    def one(context):
        pair = model.scores(context, T)
        found = trace(pair.conditional, x, key=jax.random.key(0), num_matvecs=PROBES)
        return jnp.stack([score_difference(pair, x), hessian_score_difference(pair, x),
                          found.value])  # fmt: skip

    return jax.lax.map(one, contexts)


def attentions(sizes):
    """Seconds of a value and of a tangent."""
    shape = 2, sizes["length"], 8, 40
    told = {}
    for dtype in TYPES:
        q, k, v = (jax.random.normal(jax.random.key(i), shape, TYPES[dtype]) for i in range(3))
        for name, way in (("blocks", attention), ("whole", jax.nn.dot_product_attention)):
            value = jax.jit(way)
            tangent = jax.jit(lambda x, way=way: jax.jvp(way, x, x)[1])
            ours = seconds(value, q, k, v), seconds(tangent, (q, k, v))
            told[f"{name}, {dtype}"] = ours
            print(f"  {name}, {dtype}: value {1e3 * ours[0]:.2f} ms, tangent {1e3 * ours[1]:.2f}")
    return told


def seconds(call, *given, repeats=3):
    """The median of a few calls, after the first."""
    jax.block_until_ready(call(*given))
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call(*given))
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken))


def inputs(sizes, count):
    """A noise, and `(count, 2, tokens, width)`, unconditional and conditional texts."""
    rng, size = np.random.default_rng(1), sizes["config"]["sample_size"]
    x = rng.standard_normal((4, size, size), dtype=np.float32)
    shape = count, 2, sizes["tokens"], sizes["config"]["cross_attention_dim"]
    return x, rng.standard_normal(shape, dtype=np.float32)


CALLS = {
    "paired forward": lambda pair, x: pair.both(x)[1],
    "statistic": hessian_score_difference,
    "trace, 4 probes": lambda pair, x: (
        trace(pair.conditional, x, key=jax.random.key(0), num_matvecs=PROBES).value
    ),
}


def network(sizes, dtype):
    """Seconds a prompt, and peak memory, of every call and number of prompts."""
    unet = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, TYPES[dtype]), random_weights(sizes["config"])
    )
    schedule, told = Schedule.create(), {}
    for name, call in CALLS.items():

        @jax.jit
        def every(unet, x, texts, call=call):
            return jax.vmap(lambda text: call(pair_of(unet, schedule, text, T), x))(texts)

        for count in sizes["prompts"]:
            x, texts = map(jnp.asarray, inputs(sizes, count))
            try:
                each = seconds(every, unet, x, texts) / count
            except jax.errors.JaxRuntimeError as error:  # does not fit
                told[f"{name}, {count} at once"] = {"failed": str(error).splitlines()[0]}
                continue
            value = np.asarray(every(unet, x, texts)[0], np.float32).ravel()
            told[f"{name}, {count} at once"] = {
                "seconds": each, "a_minute": 60 / each, "gigabytes": peak(),
                "value": value[:: max(len(value) // 64, 1)].tolist(),
            }  # fmt: skip
            print(f"  {dtype}, {name}, {count} at once: {each:.4f} s a prompt", flush=True)
    return told


def peak():
    """Of the device since the process began, where it tells."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0) / 1e9 or None


def pytorch(sizes, dtype):
    """The same weights in PyTorch: forward pass, and the statistic by a central difference."""
    try:
        import tempfile

        import torch
        import torch_twin
        from diffusers import UNet2DConditionModel as Theirs

        from sharpjax.checkpoints import save_pretrained
    except ImportError as error:
        return f"not run: {error}"
    kind = "cpu" if jax.default_backend() == "cpu" else "cuda"
    if kind == "cuda" and not torch.cuda.is_available():
        return "not run: this PyTorch has no CUDA"
    number = getattr(torch, dtype)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(jax.tree.map(jnp.asarray, random_weights(sizes["config"])), folder)
        theirs = Theirs.from_pretrained(folder).to(kind, number)
    _, compiled = torch_twin.quick(theirs, compiled=kind == "cuda")
    sigma, told = float(Schedule.create().sigma(T)), {}

    def score(points, contexts):
        found = compiled(points.to(number), T, contexts.to(number), return_dict=False)[0]
        return -found.float() / sigma

    def timed(name, count, call):
        if kind == "cuda":
            torch.cuda.reset_peak_memory_stats()

        def whole():
            value = call().float().cpu().numpy()  # waits for the device
            return value

        value, each = whole()[0].ravel(), seconds(whole) / count
        memory = torch.cuda.max_memory_allocated() / 1e9 if kind == "cuda" else None
        ours = results.get(f"network {dtype}", {}).get(f"{name}, {count} at once", {})
        mine = np.array(ours.get("value", []))
        value = value[:: max(len(value) // 64, 1)]
        off = float(np.linalg.norm(mine - value) / np.linalg.norm(value)) if mine.size else None
        ratio = each / ours["seconds"] if "seconds" in ours else None
        told[f"{name}, {count} at once"] = {
            "seconds": each, "gigabytes": memory, "over_ours": ratio, "off_ours": off,
        }  # fmt: skip
        print(f"  PyTorch, {dtype}, {name}, {count} at once: {each:.4f} s a prompt, "
              f"{ratio} of ours, off by {off}", flush=True)  # fmt: skip

    for count in sizes["prompts"]:
        x, texts = (torch.tensor(a, device=kind) for a in inputs(sizes, count))
        points = x[None].expand(2 * count, -1, -1, -1).contiguous()

        def forward(points=points, texts=texts, count=count):
            with torch.inference_mode():
                return score(points, texts.reshape(2 * count, *texts.shape[2:]))[1::2]

        def statistic(x=x, texts=texts, count=count):
            # s_u of a prompt is its own here, as in ours
            with torch.inference_mode():
                u, c = score_pairs(x.expand(count, -1, -1, -1), texts)
                direction = c - u
                length = direction.flatten(1).norm(dim=1)
                moved = STEP * x.numel() ** 0.5
                move = direction * (moved / length).reshape(-1, 1, 1, 1)
                ends = [score_pairs(x + sign * move, texts) for sign in (1, -1)]
                change = (ends[0][1] - ends[0][0]) - (ends[1][1] - ends[1][0])
                return change.flatten(1).norm(dim=1) * length / (2 * moved)

        def score_pairs(x, texts):
            both = score(torch.cat([x, x]), torch.cat([texts[:, 0], texts[:, 1]]))
            return both.chunk(2)

        timed("paired forward", count, forward)
        timed("statistic", count, statistic)
    return told


def table():
    """As Markdown, for docs/performance.md."""
    print("\n| | type | s a prompt | prompts a minute | peak GB | PyTorch / ours |")
    print("| --- | --- | --- | --- | --- | --- |")
    for dtype in TYPES:
        ours, theirs = (results.get(f"{side} {dtype}") for side in ("network", "PyTorch"))
        for name, row in ours.items() if isinstance(ours, dict) else ():
            if "failed" in row:
                print(f"| {name} | {dtype} | {row['failed'][:60]} | | | |")
                continue
            beside = theirs.get(name, {}) if isinstance(theirs, dict) else {}
            ratio = f"{beside['over_ours']:.2f}" if beside.get("over_ours") else ""
            memory = f"{row['gigabytes']:.1f}" if row["gigabytes"] else ""
            print(f"| {name} | {dtype} | {row['seconds']:.4f} | {row['a_minute']:.0f} | {memory} "
                  f"| {ratio} |")  # fmt: skip


if __name__ == "__main__":
    main()
