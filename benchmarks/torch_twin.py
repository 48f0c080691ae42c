"""The PyTorch side of the benchmarks: the same weights and score, and its ways to derivatives.

Forward mode needs two things of PyTorch 2.13 here: contiguous inputs of group normalization, whose
derivative fails otherwise, and attention written out, because the fused kernel has no derivative.
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
from sharpjax.models import from_pretrained
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


def hessian_score_difference(
    score: Callable, x: torch.Tensor, labels: torch.Tensor, null: int
) -> torch.Tensor:
    """`|H_D s_D|` of a batch of conditions, `(n,)`, as the paper's public code computes it.

    A pass of the paired batch for s_D, then a tangent of the paired batch in direction (s_D, s_D).
    """
    n = len(labels)
    paired = torch.cat([torch.full_like(labels, null), labels])
    points = x.expand(2 * n, -1, -1, -1).contiguous()
    with torch.no_grad():
        unconditional, conditional = score(points, paired).chunk(2)
    difference = (conditional - unconditional).repeat(2, 1, 1, 1)
    _, tangent = jvp(lambda points: score(points, paired), points, difference)
    h_u, h_c = tangent.chunk(2)
    return (h_c - h_u).flatten(1).norm(dim=1)
