"""`hessian_score_difference` of prompts of the bundled text-to-image model: sharpjax and PyTorch.

    python benchmarks/prompts.py [--prompts 64] [--noises 4] [--rounds 3] [--no-compile]
                                 [--json PATH]

The whole of what detection does: every prompt at the same few noises, from encoded prompts, on the
same weights. Ours is what `sharpjax detect` runs: batches of prompts on all cores, the
unconditional score linearized once for all. PyTorch's ways are the public code's, prompt after
prompt; the best exact one, tangents of many prompts at once with s_u kept; and finite differences
along s_D, central and one-sided, which need no derivative, so fused attention, channels-last and
torch.compile serve them. The sizes of PyTorch's passes are the best of a few, tried first. Beside
them our own finite differences. Last a table of how far a difference is from the exact value over
its step. Needs the test extra (PyTorch), and a C++ compiler for torch.compile.
"""

import argparse
import functools
import time
from pathlib import Path

import timing  # first: it sets the number of CPU devices
import torch_twin

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from diffusers import UNet2DConditionModel

import sharpjax as sj
from sharpjax import zoo
from sharpjax.datasets.planted_drawings import read_captions
from sharpjax.detection.compute import Columns
from sharpjax.detection.settings import DetectSettings
from sharpjax.mesh.loops import over_points

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--prompts", type=int, default=64)
parser.add_argument("--noises", type=int, default=4)
parser.add_argument("--batch", type=int, default=8, help="Prompts at a time; ours.")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--no-compile", action="store_true", help="Leave torch.compile out.")
parser.add_argument("--json", metavar="PATH", type=Path)
options = parser.parse_args()

OURS, PUBLISHED = "sharpjax", "PyTorch, the public code's way"
TUNED_ON = 16  # prompts
SIZES = {"tangents": (16, 32, 64), "differences": (16, 32, 64, 128)}
# Where rounding and curvature balance in float32, by the last table.
STEPS = {2: 2e-3, 1: 5e-4}
TABLE = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
NAMES = {2: "central difference", 1: "one-sided difference"}
SETTINGS = DetectSettings(statistics=("hessian_score_difference",), num_noises=options.noises)
MESH = timing.mesh("points")


def in_batches(compute, contexts) -> np.ndarray:
    """Of all prompts, batch after batch, the last one filled up."""
    found = []
    for start in range(0, len(contexts), options.batch):
        rows = np.arange(start, start + options.batch) % len(contexts)
        found.append(np.asarray(compute(contexts[rows])))
    return np.concatenate(found)[: len(contexts)]


def exactly(columns: Columns, contexts):
    """As `detect` does it: the linearization of the unconditional score is kept."""
    return next(iter(columns(contexts)[0].values()))


@functools.partial(jax.jit, static_argnames="sides")
def by_difference(model, noises, kept, contexts, t, step, *, sides: int):
    """The formula of `torch_twin.by_difference`, on all devices."""

    def part(common, contexts):
        model, noises, kept, t, step = common

        def one(context, x, s_u):
            pair = model.scores(context, t)
            direction = pair.conditional(x) - s_u
            length, moved = jnp.linalg.norm(direction.ravel()), step * jnp.sqrt(x.size)
            move = direction * moved / length
            before = pair.difference(x - move) if sides == 2 else direction
            change = pair.difference(x + move) - before
            return jnp.linalg.norm(change.ravel()) * length / (sides * moved)

        return jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None))(contexts, noises, kept)

    return over_points(part, MESH, (model, noises, kept, t, step), contexts)


model = sj.load("drawings")
folder = zoo.find("drawings")
captions = [c.caption for c in read_captions(folder / "captions.csv")]
contexts = model.encode(captions[: options.prompts])
columns = Columns(model, SETTINGS, mesh=MESH)
noises = columns.noises
t = SETTINGS.timesteps(model.schedule)[0]
kept = jax.jit(lambda model, x: jax.vmap(model.unconditional(t))(x))(model, noises)


def ours_by_difference(step: float, sides: int, contexts=contexts):
    return in_batches(
        lambda c: by_difference(model, noises, kept, c, t, step, sides=sides), contexts
    )


def load():
    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet").float()


def score_of(unet):
    alpha, sigma = float(model.schedule.alpha(t)), float(model.schedule.sigma(t))
    # of a v-prediction, as the bundled model makes it
    return lambda x, c: -x - (alpha / sigma) * unet(x, t, encoder_hidden_states=c).sample


theirs = tuple(map(torch_twin.tensor, (noises, model.empty, contexts)))
few = (*theirs[:2], theirs[2][:TUNED_ON])
differentiable = score_of(torch_twin.prepared(load()))
eager, compiled = map(score_of, torch_twin.quick(load(), compiled=not options.no_compile))


def their_tangents(size: int, data=theirs):
    return torch_twin.by_tangents_in_batches(differentiable, *data, size=size)


def their_difference(score, size: int, sides: int, data=theirs):
    passes = torch_twin.in_passes(score, size, rest=eager)
    return torch_twin.by_difference(passes, *data, step=STEPS[sides], sides=sides)


facts = timing.header()
sizes = {
    "tangents": timing.quickest(
        {size: functools.partial(their_tangents, size, few) for size in SIZES["tangents"]},
        what="PyTorch tangents in passes of",
    ),
    "differences": timing.quickest(
        {
            size: functools.partial(their_difference, eager, size, 2, few)
            for size in SIZES["differences"]
        },
        what="PyTorch differences in passes of",
    ),
}
# name -> what computes it, and the forward passes and tangents of a prompt at a noise, without
# what is computed once for all prompts
contenders = {
    OURS: (lambda: in_batches(functools.partial(exactly, columns), contexts), 1, 2),
    PUBLISHED: (lambda: torch_twin.published(differentiable, *theirs), 4, 2),
    "PyTorch, best tangents": (lambda: their_tangents(sizes["tangents"]), 3, 2),
}
for sides, name in NAMES.items():
    run = functools.partial(their_difference, eager, sizes["differences"], sides)
    contenders[f"PyTorch, {name}"] = (run, 1 + 2 * sides, 0)
    if not options.no_compile:
        run = functools.partial(their_difference, compiled, sizes["differences"], sides)
        contenders[f"PyTorch, {name}, compiled"] = (run, 1 + 2 * sides, 0)
for sides, name in NAMES.items():
    run = functools.partial(ours_by_difference, STEPS[sides], sides)
    contenders[f"{OURS}, {name}"] = (run, 1 + 2 * sides, 0)

values, first = {}, {}
for name, (run, *_) in contenders.items():
    start = time.perf_counter()
    values[name] = np.asarray(run())
    first[name] = time.perf_counter() - start
exact = values[OURS]
races = timing.race(
    {name: run for name, (run, *_) in contenders.items()}, repeats=options.rounds, warmups=1
)

print(f"\n{len(contexts)} prompts x {options.noises} noises, {options.rounds} rounds")
print(f"{'':40} {'s a prompt':>10} {'/ sharpjax (range)':>22} {'first run s':>12} "
      f"{'passes':>7} {'tangents':>8} {'off by: median':>14} {'largest':>8}")  # fmt: skip
results = {}
for name, (_, forwards, tangents) in contenders.items():
    seconds = np.array(races[name]["seconds"])
    ratio = seconds / races[OURS]["seconds"]
    off = np.abs(values[name] / exact - 1)
    n = options.noises
    results[name] = {
        "seconds": seconds.tolist(), "ratio": ratio.tolist(), "first_run": first[name],
        "forwards": forwards * n, "tangents": tangents * n,
        "median_error": float(np.median(off)), "largest_error": float(off.max()),
    }  # fmt: skip
    versus = f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
    print(f"{name:40} {np.median(seconds) / len(contexts):10.4f} {versus:>22} {first[name]:12.1f} "
          f"{forwards * n:7} {tangents * n:8} {np.median(off):14.1e} {off.max():8.1e}")  # fmt: skip

print("\nHow far a difference is from the exact value (PyTorch, float32), by its step")
print(
    f"{'step':>8} {'central: median':>16} {'largest':>8} {'one-sided: median':>18} {'largest':>8}"
)
agreement = {}
for step in TABLE:
    agreement[step] = {}
    for sides, name in NAMES.items():
        passes = torch_twin.in_passes(eager, sizes["differences"])
        found = torch_twin.by_difference(passes, *few, step=step, sides=sides)
        off = np.abs(np.asarray(found) / exact[: len(few[2])] - 1)
        agreement[step][name] = {"median": float(np.median(off)), "largest": float(off.max())}
    central, one = agreement[step].values()
    print(f"{step:8.0e} {central['median']:16.1e} {central['largest']:8.1e} "
          f"{one['median']:18.1e} {one['largest']:8.1e}")  # fmt: skip
timing.write(
    options.json, {"machine": facts, "passes_of": sizes, "ways": results, "steps": agreement}
)
