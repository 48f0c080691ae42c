"""Where the time of an evaluation and of a tangent goes, by kind of operation.

    python benchmarks/where_time_goes.py [--network drawings] [--batch 8] [--json PATH]

Of a conditional score on one device, as XLA's own profiler sees the compiled program: of the
bundled digits' network, of the drawings' one, or of Stable Diffusion 1.4's at its size with random
weights (`sd1`, 20 GB and minutes).  What shares a kernel is counted with its heaviest part:
convolution, matrix product, reduction, concatenation; the rest are copies and arithmetic entry by
entry.
"""

import argparse
import collections
import re
import tempfile
from pathlib import Path

import timing  # first: it sets the number of CPU devices

# isort: split
import jax

import sharpjax as sj

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--network", choices=("digits", "drawings", "sd1"), default="digits")
parser.add_argument("--batch", type=int, help="points, or tangents, at once; 8, of sd1 1")
parser.add_argument("--calls", type=int, help="that are averaged; 20, of sd1 2")
parser.add_argument("--json", metavar="PATH", type=Path)
options = parser.parse_args()

KINDS = ("convolution", "dot", "reduce", "concatenate")  # by weight


def bodies(program: str) -> dict[str, str]:
    """What each instruction runs: the computation that it calls, or its own line."""
    computations, lines = {}, {}
    name = None
    for line in program.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(", line):
            name = head[1]
            computations[name] = ""
        elif name:
            computations[name] += line + "\n"
            if instruction := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
                lines[instruction[1]] = line
    called = {k: re.search(r"calls=%?([\w.\-]+)", line) for k, line in lines.items()}
    return {k: computations[called[k][1]] if called[k] else line for k, line in lines.items()}


def kind(body: str) -> str:
    return next((kind for kind in KINDS if f" {kind}(" in body), "copies and arithmetic")


def network(name: str) -> tuple:
    """A conditional score and the shape of a point."""
    if name == "digits":
        return sj.load("mnist").scores("7 x256", 600).conditional, (1, 28, 28)
    if name == "drawings":
        model = sj.load("drawings")
        return model.scores(model.encode(["cosy snail"])[0], 600).conditional, model.shape
    from random_unet import pair_of, random_weights

    unet = random_weights({"sample_size": 64, "cross_attention_dim": 768})
    text = jax.random.normal(jax.random.key(2), (2, 77, 768))
    pair = pair_of(jax.tree.map(jax.numpy.asarray, unet), sj.Schedule.create(), text, 600)
    return pair.conditional, (4, 64, 64)


def profile(run, *arguments) -> dict[str, float]:
    """Seconds of a call of a jitted function by kind."""
    body_of = bodies(run.lower(*arguments).compile().as_text())
    jax.block_until_ready(run(*arguments))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(run(*arguments))
        (file,) = Path(folder).rglob("*.xplane.pb")
        seconds = collections.Counter()
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for event in (event for line in plane.lines for event in line.events):
                if event.name in body_of and " while(" not in body_of[event.name]:
                    seconds[kind(body_of[event.name])] += event.duration_ns * 1e-9 / calls
    return dict(seconds)


few = options.network == "sd1"
batch, calls = options.batch or (1 if few else 8), options.calls or (2 if few else 20)
results = {"machine": timing.header(), "network": options.network, "batch": batch}
score, shape = network(options.network)
x = jax.random.normal(jax.random.key(0), (batch, *shape))
_, tangent = jax.jit(lambda score, x: jax.linearize(score, x))(score, x[0])
for what, run, given in (
    ("evaluation", jax.jit(lambda score, x: jax.vmap(score)(x)), score),
    ("tangent", jax.jit(lambda tangent, v: jax.vmap(tangent)(v)), tangent),
):
    seconds = results[what] = profile(run, given, x)
    total = sum(seconds.values())
    each = f"{1e3 * total / batch:.2f} ms each"
    print(f"\n{options.network}: {what}, {batch} at once, one device: {each}")
    for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{name:28} {1e3 * value / batch:8.2f} ms {value / total:7.0%}")
timing.write(options.json, results)
