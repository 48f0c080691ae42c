"""Where the time of a tangent goes: seconds of the compiled program's parts by kind.

    python benchmarks/where_time_goes.py [--batch 8] [--json PATH]

A batch of tangents of the bundled digits' network on one device, as XLA's own profiler sees it.
What shares a kernel is counted with its heaviest part: convolution, matrix product, reduction,
concatenation; the rest are copies and arithmetic entry by entry.
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
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--calls", type=int, default=20)
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


results = {"machine": timing.header()}
score = sj.load("mnist").scores("7 x256", 600).conditional
x = jax.random.normal(jax.random.key(0), (1, 28, 28))
_, tangent = jax.jit(lambda score, x: jax.linearize(score, x))(score, x)
vectors = jax.random.normal(jax.random.key(1), (options.batch, *x.shape))
run = jax.jit(lambda tangent, vectors: jax.vmap(tangent)(vectors))
body_of = bodies(run.lower(tangent, vectors).compile().as_text())
run(tangent, vectors).block_until_ready()
with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
        for _ in range(options.calls):
            run(tangent, vectors).block_until_ready()
    (file,) = Path(folder).rglob("*.xplane.pb")
    events = [
        event
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        for line in plane.lines
        for event in line.events
        if event.name in body_of
    ]
    seconds = collections.Counter()
    for event in events:
        seconds[kind(body_of[event.name])] += event.duration_ns * 1e-9 / options.calls
total = sum(seconds.values())
print(f"\n{options.batch} tangents at once, one device: {1e3 * total / options.batch:.2f} ms each")
for name, value in seconds.most_common():
    print(f"{name:28} {1e3 * value / options.batch:6.2f} ms {value / total:7.0%}")
results["seconds"] = dict(seconds)
timing.write(options.json, results)
