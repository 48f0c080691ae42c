"""`hessian_score_difference` of prompts of the bundled text-to-image model: sharpjax and PyTorch.

    python benchmarks/prompts.py [--prompts 100] [--noises 4] [--rounds 3] [--json PATH]

The whole of what detection does: every prompt at the same few noises. PyTorch's way is that of the
paper's public code: for each prompt a forward pass of the paired batch (empty prompt and prompt, at
all noises), then torch.func.jvp of it in direction (s_D, s_D). Ours is what `sharpjax detect` runs:
batches of prompts on all cores, the unconditional score linearized once for all. Both from encoded
prompts, on the same weights. Needs the test extra (PyTorch).
"""

import argparse
import functools
import json
import time
from pathlib import Path

import timing  # first: it sets the number of CPU devices
import torch_twin

# isort: split
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel

import sharpjax as sj
from sharpjax import zoo
from sharpjax.detection.columns import Columns
from sharpjax.detection.settings import DetectSettings

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--prompts", type=int, default=100)
parser.add_argument("--noises", type=int, default=4)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--json", metavar="PATH", type=Path)
options = parser.parse_args()

FOLDER = zoo.find("openmoji")
SETTINGS = DetectSettings(statistics=("hessian_score_difference",), num_noises=options.noises)


def ours(compute: Columns, contexts) -> np.ndarray:
    """As `detect` does it: batch after batch, the linearization of the first kept."""
    found = []
    for start in range(0, len(contexts), options.batch):
        rows = np.arange(start, start + options.batch) % len(contexts)
        columns, _ = compute(contexts[rows], rows)
        found.append(np.asarray(next(iter(columns.values()))))
    return np.concatenate(found)[: len(contexts)]


def theirs(unet, contexts: torch.Tensor, noises: torch.Tensor, t: int, sigma: float) -> np.ndarray:
    n, found = len(noises), []
    for context in contexts[1:]:
        both = torch.cat([contexts[:1].expand(n, -1, -1), context.expand(n, -1, -1)])

        def score(x, both=both):
            return -unet(x, t, encoder_hidden_states=both).sample / sigma

        x = torch.cat([noises, noises])
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            s_u, s_c = score(x).chunk(2)
            difference = torch.cat([s_c - s_u] * 2)
            _, tangent = torch.func.jvp(score, (x,), (difference,))
            h_u, h_c = tangent.chunk(2)
            found.append((h_c - h_u).flatten(1).norm(dim=1).numpy())
    return np.stack(found)


model = sj.load("openmoji")
captions = [line.split(",")[1] for line in (FOLDER / "captions.csv").read_text().splitlines()[1:]]
contexts = model.encode(captions[: options.prompts])
compute = Columns(model, SETTINGS, mesh=timing.mesh("points"))
unet = torch_twin.prepared(UNet2DConditionModel.from_pretrained(FOLDER, subfolder="unet").float())
t = SETTINGS.timesteps(model.schedule)[0]
their_contexts = torch.tensor(np.concatenate([model.empty[None], contexts]))
their_noises = torch.tensor(np.asarray(compute.noises(np.arange(1))))
contenders = {
    "sharpjax": functools.partial(ours, compute, contexts),
    "PyTorch": functools.partial(
        theirs, unet, their_contexts, their_noises, t, float(model.schedule.sigma(t))
    ),
}
start = time.perf_counter()
values = {"sharpjax": contenders["sharpjax"]()}
compiling = time.perf_counter() - start
seconds: dict[str, list[float]] = {name: [] for name in contenders}
for _ in range(options.rounds):
    for name, function in contenders.items():
        start = time.perf_counter()
        values[name] = function()
        seconds[name].append(time.perf_counter() - start)
largest = np.max(np.abs(values["sharpjax"] / values["PyTorch"] - 1))
ratios = np.divide(seconds["PyTorch"], seconds["sharpjax"])
print(f"{options.prompts} prompts x {options.noises} noises, largest difference {largest:.1e}")
print(f"sharpjax's first run, with compilation: {compiling:.1f} s")
for name, times in seconds.items():
    print(f"{name}: {np.median(times) / options.prompts:.4f} s a prompt (median of {len(times)})")
n = options.noises
for name, forwards in {"sharpjax": n, "PyTorch": 4 * n}.items():
    print(f"{name}: {forwards} forward evaluations and {2 * n} tangents a prompt")
print(f"PyTorch / sharpjax: {np.median(ratios):.2f} [{ratios.min():.2f}, {ratios.max():.2f}]")
if options.json:
    options.json.write_text(
        json.dumps({"seconds": seconds, "ratio": float(np.median(ratios))}, indent=2) + "\n"
    )
