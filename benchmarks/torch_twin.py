"""The PyTorch side of the benchmarks: the same weights and score, and its ways to derivatives.

Forward mode needs two things of PyTorch 2.13 here: contiguous inputs of group normalization, whose
derivative fails otherwise, and attention written out, because the fused kernel has no derivative.
Finite differences need neither, and so may use what makes a forward pass quick (`quick`).
"""

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.utils import logging
from torch.nn.attention import SDPBackend, sdpa_kernel

import sharpjax as sj
from sharpjax import zoo
from sharpjax.checkpoints import from_pretrained
from sharpjax.models.pixel_diffusion import PixelDiffusion

logging.set_verbosity_error()
torch.set_num_threads(len(os.sched_getaffinity(0)))

WIDTHS = {"digits": None, "wider": (64, 112, 112)}


@dataclasses.dataclass(frozen=True)
class Twins:
    """One network, twice.

    Attributes:
        name: a key of `WIDTHS`.
        ours: in JAX.
        theirs: in PyTorch.
    """

    name: str
    ours: PixelDiffusion
    theirs: UNet2DModel

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.theirs.parameters())

    def quick(self, *, compiled: bool) -> "Twins":
        """With a copy of PyTorch's network that is quick in forward passes and has no tangents."""
        copy = UNet2DModel.from_config(self.theirs.config)
        copy.load_state_dict(self.theirs.state_dict())
        return dataclasses.replace(self, theirs=quick(copy, compiled=compiled)[1])

    def score(self, t: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """`(x (n, 1, h, w), labels (n,)) -> scores`, by the formulas of `sharpjax.score`."""
        schedule = self.ours.schedule
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        formula = {
            "epsilon": lambda prediction, x: -prediction / sigma,
            "v_prediction": lambda prediction, x: -x - (alpha / sigma) * prediction,
        }[schedule.prediction_type]

        def score(x, labels):
            return formula(self.theirs(x, t, class_labels=labels).sample, x)

        return score


def load(name: str) -> Twins:
    """The bundled digits' network, or a wider one with PyTorch's random weights (seed 0)."""
    bundled = sj.load("mnist")
    if WIDTHS[name] is None:
        ours, folder = bundled, zoo.find("mnist") / "unet"
        return Twins(name, ours, prepared(UNet2DModel.from_pretrained(folder)))
    config = {**bundled.unet.config, "block_out_channels": WIDTHS[name]}
    torch.manual_seed(0)
    theirs = UNet2DModel(**config)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = dataclasses.replace(bundled, unet=from_pretrained(Path(folder)))
    return Twins(name, ours, prepared(theirs))


def prepared(model: UNet2DModel) -> UNet2DModel:
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return model.eval().requires_grad_(False)


def tensor(array) -> torch.Tensor:
    """A copy of a JAX or NumPy array."""
    return torch.from_numpy(np.array(array))


def jvp(function: Callable, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`(function(x), J v)`."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(function, (x,), (v,))


def tangents(
    function: Callable, x: torch.Tensor, vectors: torch.Tensor, *, chunk_size: int | None = None
) -> torch.Tensor:
    """`J v` of many vectors at one point: `vmap(jvp)`."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        one = lambda v: torch.func.jvp(function, (x,), (v,))[1]
        return torch.func.vmap(one, chunk_size=chunk_size)(vectors)


# The whole Jacobian, (d, d), of a function of one example (1, *shape), or of copies of it.


def by_tangents(function: Callable, x: torch.Tensor, chunk_size: int) -> torch.Tensor:
    basis = torch.eye(x.numel()).reshape(-1, *x.shape)
    return tangents(function, x, basis, chunk_size=chunk_size).flatten(1).T


def by_jacrev(function: Callable, x: torch.Tensor, chunk_size: int) -> torch.Tensor:
    return torch.func.jacrev(function, chunk_size=chunk_size)(x).reshape(x.numel(), x.numel())


def by_backward(function: Callable, x: torch.Tensor, copies: int) -> torch.Tensor:
    """One forward pass of a batch of copies; every backward pass gives as many rows."""
    d = x.numel()
    points = x.repeat(copies, 1, 1, 1).requires_grad_()
    values = function(points)
    rows = torch.empty(d, d)
    basis = torch.eye(d)
    for start in range(0, d, copies):
        wanted = torch.zeros(copies, d)
        chosen = basis[start : start + copies]
        wanted[: len(chosen)] = chosen
        (out,) = torch.autograd.grad(
            values, points, wanted.reshape(values.shape), retain_graph=True
        )
        rows[start : start + copies] = out.flatten(1)[: len(chosen)]
    return rows


# |H_D s_D| of every condition at the same few noises, (conditions, noises).  A score takes points
# and a condition for each of them, `(x (k, *shape), c (k, ...)) -> (k, *shape)`.


def published(
    score: Callable, noises: torch.Tensor, empty: torch.Tensor, conditions: torch.Tensor
) -> torch.Tensor:
    """As the public code of Jeon et al., ICML 2025: one condition after the other.

    A pass of the paired batch for s_D, then a tangent of the paired batch in direction (s_D, s_D).
    """
    n, found = len(noises), []
    points = torch.cat([noises, noises])
    for condition in conditions:
        paired = torch.stack([empty] * n + [condition] * n)
        with torch.no_grad():
            unconditional, conditional = score(points, paired).chunk(2)
        direction = (conditional - unconditional).repeat(2, *[1] * (points.dim() - 1))
        _, tangent = jvp(lambda points, paired=paired: score(points, paired), points, direction)
        h_u, h_c = tangent.chunk(2)
        found.append((h_c - h_u).flatten(1).norm(dim=1))
    return torch.stack(found)


def by_tangents_in_batches(
    score: Callable,
    noises: torch.Tensor,
    empty: torch.Tensor,
    conditions: torch.Tensor,
    *,
    size: int,
) -> torch.Tensor:
    """The best exact way: all conditions in passes of `size` points, s_u once, fused attention
    where nothing is differentiated."""

    def tangent(x, c, v):
        return jvp(lambda x: score(x, c), x, v)[1]

    with torch.no_grad():
        x, c, u, direction = _differences(in_passes(score, size), noises, empty, conditions)
    both = torch.cat([x, x]), torch.cat([c, u]), torch.cat([direction, direction])
    h_c, h_u = in_passes(tangent, size)(*both).chunk(2)
    return (h_c - h_u).flatten(1).norm(dim=1).reshape(len(conditions), len(noises))


def by_difference(
    score: Callable,
    noises: torch.Tensor,
    empty: torch.Tensor,
    conditions: torch.Tensor,
    *,
    step: float,
    sides: int,
) -> torch.Tensor:
    """Approximately: `|s_D(x + m) - s_D(x - m)| |s_D|/(2 |m|)`, `m` along s_D; one-sided
    `|s_D(x + m) - s_D(x)| |s_D|/|m|`.  No derivative, so fused attention everywhere; s_u once.

    Args:
        step: the root mean square of an entry's move, in standard deviations of the noise.
        sides: 2 central, 5 passes a condition and noise, error O(step^2); 1 one-sided, 3 passes,
            O(step).  Rounding adds what grows as 1/step.
    """
    with torch.inference_mode():
        x, c, u, direction = _differences(score, noises, empty, conditions)
        length = direction.flatten(1).norm(dim=1)
        moved = step * noises[0].numel() ** 0.5
        move = direction * (moved / length).reshape(-1, *[1] * (x.dim() - 1))
        points = [x + move, x - move][:sides]
        values = score(torch.cat(points * 2), torch.cat([c] * sides + [u] * sides))
        conditional, unconditional = values.chunk(2)
        differences = (conditional - unconditional).split(len(x))
        change = differences[0] - (differences[1] if sides == 2 else direction)
        found = change.flatten(1).norm(dim=1) * length / (sides * moved)
    return found.reshape(len(conditions), len(noises))


def _differences(
    score: Callable, noises: torch.Tensor, empty: torch.Tensor, conditions: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Every condition at every noise: points, conditions, empty ones, s_D; s_u only once."""
    n, count = len(noises), len(conditions)
    x = noises.repeat(count, *[1] * (noises.dim() - 1))
    c, u = conditions.repeat_interleave(n, 0), empty.expand(n * count, *empty.shape)
    values = score(torch.cat([x, noises]), torch.cat([c, u[:n]]))
    kept = values[-n:].repeat(count, *[1] * (noises.dim() - 1))
    return x, c, u, values[:-n] - kept


def in_passes(function: Callable, size: int, *, rest: Callable | None = None) -> Callable:
    """`function` of any number of rows, `size` at a time; `rest` takes an incomplete last pass, so
    that a compiled function sees one shape only."""

    def of_all(*rows: torch.Tensor) -> torch.Tensor:
        parts = zip(*(each.split(size) for each in rows), strict=True)
        return torch.cat([(function if len(p[0]) == size else rest or function)(*p) for p in parts])

    return of_all


def quick(model: torch.nn.Module, *, compiled: bool = True) -> tuple[Callable, Callable]:
    """What makes forward passes quick: `(model, compiled model)` of one copy in channels-last.

    The second is the first where it is not to be compiled.
    """
    model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return model, torch.compile(model, dynamic=False) if compiled else model
