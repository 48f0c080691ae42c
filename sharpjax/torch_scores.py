r"""Scores that live in PyTorch: values, tangents and transposes by callbacks to the host.

    score = sharpjax.from_torch(function)

gives what every estimator takes, a function of one example.  Under `jax.vmap` the callback gets
all examples at once.  It is slow: every evaluation leaves the compiled program, and PyTorch's
forward mode has no fused attention, so that attention runs by its plain formula there; where it
fails (it does of group norms behind such an attention), tangents are two backward passes.

Three primitives, each at points $x$ with leading batch axes: the value $f(x)$, the tangent
$J(x) v$ and its transpose $J(x)^T w$.  The tangent is linear in $v$ and its transpose is the third,
which is linear in $w$ and has the second for a transpose: so `jax.linearize`, `jax.vjp` and
Lanczos work.  Derivatives of second order, of $J$ in $x$, are not taken.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.tree_util import Partial

from sharpjax._types import Array, Score

logger = logging.getLogger(__name__)


class _Function:
    """What is called on the host; compared by identity, so that it can be static."""

    def __init__(self, function: Callable[[Any], Any], device: str):
        self.function, self.device, self.forwards = function, device, True
        self.checked: set[Any] = set()
        self.of_training = _of_training(function)

    def check_mode(self) -> None:
        """A module's layers that draw at random or look at the whole batch are in evaluation mode.

        Raises:
            ValueError: one is in training mode.
        """
        for name, module in self.of_training:
            if module.training:
                raise ValueError(
                    f"from_torch takes a module in evaluation mode: {name or 'it'} is a "
                    f"{type(module).__name__} in training mode; call .eval() first"
                )

    def check(self, shape: tuple[int, ...], dtype: Any) -> None:
        """Ask for values at two points, once a shape: inside a program an error is a page long.

        Raises:
            ValueError: PyTorch fails, gives something else than a tensor of this shape, draws at
                random, mixes examples, or forgets what its values depend on.
        """
        import torch

        self.check_mode()
        if (shape, dtype) in self.checked:
            return
        points = np.random.default_rng(0).standard_normal((2, *shape)).astype(dtype)
        alone, again, both = (self._tried(torch, one) for one in (points[:1], points[:1], points))
        if not _alike(alone, again):
            raise ValueError(
                "a PyTorch score must be a function: asked twice at one point it gave two values; "
                "call .eval() on what drops at random, and draw nothing"
            )
        if not _alike(alone, both[:1]):
            raise ValueError(
                "a PyTorch score must take each example of a batch by itself: one gives another "
                "value beside a second; call .eval() on batch norms, and take norms, means and the "
                "like over all axes but the first"
            )
        if not _alike(*both) and self._forgets(torch, points):
            raise ValueError(
                "a PyTorch score forgets what its values depend on, so that every derivative would "
                "be 0: leave out .detach(), torch.no_grad() and torch.inference_mode()"
            )
        self.checked.add((shape, dtype))

    def _forgets(self, torch: Any, points: np.ndarray) -> bool:
        """Whether no gradient leads from the value back to the point."""
        x = torch.tensor(points, device=self.device)
        if not x.is_floating_point():
            return False
        y = self.function(x.requires_grad_())
        return not y.requires_grad or torch.autograd.grad(y.sum(), x, allow_unused=True)[0] is None

    def _tried(self, torch: Any, points: np.ndarray) -> Any:
        shape = points.shape
        try:
            found = self.value(torch, torch.tensor(points, device=self.device))
        except Exception as error:
            raise ValueError(
                f"a PyTorch score fails at a batch {shape} of {points.dtype} on {self.device}, its "
                f"examples along the first axis: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, torch.Tensor):
            raise ValueError(
                f"a PyTorch score must give a tensor, got {type(found).__name__}; wrap it, such "
                "as in lambda x: network(x).sample"
            )
        if tuple(found.shape) != shape:
            raise ValueError(
                f"a PyTorch score must give the shape that it gets, {shape}, got "
                f"{tuple(found.shape)}"
            )
        return found

    def __call__(self, kind: str, batch_ndim: int, *operands: Any) -> np.ndarray:
        import torch

        self.check_mode()
        x = np.asarray(operands[0])
        shape = x.shape[batch_ndim:]
        tensors = [
            # XLA may lay an array out in another order, and PyTorch's norms then fail under jvp
            torch.tensor(np.ascontiguousarray(one).reshape(-1, *shape), device=self.device)
            for one in operands
        ]
        found = getattr(self, kind)(torch, *tensors)
        if tuple(found.shape) != tuple(tensors[0].shape):
            raise ValueError(
                f"a PyTorch score must give the shape that it gets, {tuple(tensors[0].shape)}, got "
                f"{tuple(found.shape)}"
            )
        return found.detach().cpu().numpy().astype(x.dtype).reshape(x.shape)

    def value(self, torch: Any, x: Any) -> Any:
        with torch.no_grad():
            return self.function(x)

    def tangent(self, torch: Any, x: Any, v: Any) -> Any:
        with _plain_attention(torch):
            if self.forwards:
                try:
                    return torch.func.jvp(self.function, (x,), (v,))[1]
                except (RuntimeError, NotImplementedError) as error:
                    self.forwards = False
                    logger.info("PyTorch has no forward mode for this network: %s", error)
            # J v is what J^T w, linear in w, has for a derivative, taken at w = 0
            x = x.clone().requires_grad_()
            y = self.function(x)
            w = torch.zeros_like(y, requires_grad=True)
            (back,) = torch.autograd.grad(y, x, w, create_graph=True)
            return torch.autograd.grad(back, w, v)[0]

    def transpose(self, torch: Any, x: Any, w: Any) -> Any:
        return torch.func.vjp(self.function, x)[1](w)[0]


def _of_training(function: Any) -> list[tuple[str, Any]]:
    """The layers of a module that are other functions while it is trained."""
    import torch

    if not isinstance(function, torch.nn.Module):
        return []
    kinds = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._BatchNorm)
    return [
        (name, module)
        for name, module in function.named_modules()
        if isinstance(module, kinds) and getattr(module, "p", True)
    ]


def _alike(one: Any, other: Any) -> bool:
    """To 1%, which rounding of half precision keeps; what is not finite says nothing."""
    off, size = (one - other).norm().item(), max(one.norm().item(), other.norm().item())
    return not np.isfinite(off) or off <= 1e-2 * size


def _plain_attention(torch: Any) -> Any:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)


def from_torch(function: Callable[[Any], Any], *, device: str = "cpu") -> Score:
    """A score, or any map of an example to another of its shape, that is written in PyTorch.

    Args:
        function: a module or function of a batch `(n, *shape)` to `(n, *shape)`, each example by
            itself; in evaluation mode, and made of operations that `torch.func` can differentiate.
        device: where PyTorch computes.

    Returns:
        A function of one example, as every estimator takes it; a pytree without leaves.

    Raises:
        ImportError: PyTorch is not installed.
        TypeError: what is given cannot be called.
        ValueError: a module in training mode that draws at random or looks at the whole batch; and,
            of the score where it is first asked at a shape, if PyTorch fails there, gives something
            else than a tensor of that shape, draws at random, mixes examples or has no derivative.

    >>> import torch
    >>> score = from_torch(lambda x: -x / 4)  # of N(0, 4 I)
    >>> import sharpjax as sj
    >>> float(sj.curvature.trace(score, jnp.ones(3), method="exact").value)
    -0.75
    """
    if not callable(function):
        raise TypeError(f"from_torch takes a module or a function, got {type(function).__name__}")
    of = _Function(function, device)
    of.check_mode()
    return Partial(_Score(of))


class _Score:
    def __init__(self, of: _Function):
        self.of = of

    def __call__(self, x: Array) -> Array:
        """The value at one example, or at several under `jax.vmap`."""
        x = jnp.asarray(x)
        self.of.check(x.shape, x.dtype)
        return _value.bind(x, of=self.of, batch_ndim=0)


_value, _tangent, _transpose = (
    Primitive(f"torch_{kind}") for kind in ("value", "tangent", "transpose")
)


def _on_the_host(kind: str, *operands: Array, of: _Function, batch_ndim: int) -> Array:
    """One more axis in front of the batch, so that there is always one."""
    shape = jax.ShapeDtypeStruct(operands[0].shape, operands[0].dtype)
    call = functools.partial(of, kind, batch_ndim)
    return jax.pure_callback(call, shape, *operands)


def _in_front(
    primitive: Primitive, operands: Any, axes: Any, *, of: _Function, batch_ndim: int
) -> tuple[Array, int]:
    """The rule of `jax.vmap`: the new axis first, what has none repeated."""
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    moved = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, axes, strict=True)
    ]
    return primitive.bind(*moved, of=of, batch_ndim=batch_ndim + 1), 0


for _kind, _primitive in (("value", _value), ("tangent", _tangent), ("transpose", _transpose)):
    _primitive.def_impl(
        jax.jit(functools.partial(_on_the_host, _kind), static_argnames=("of", "batch_ndim"))
    )
    _primitive.def_abstract_eval(lambda *operands, of, batch_ndim: operands[0])
    mlir.register_lowering(
        _primitive, mlir.lower_fun(functools.partial(_on_the_host, _kind), multiple_results=False)
    )
    batching.primitive_batchers[_primitive] = functools.partial(_in_front, _primitive)


def _value_jvp(primals: Any, tangents: Any, **params: Any) -> Any:
    (x,), (v,) = primals, tangents
    return _value.bind(x, **params), _tangent.bind(x, ad.instantiate_zeros(v), **params)


def _linear_jvp(primitive: Primitive, primals: Any, tangents: Any, **params: Any) -> Any:
    (x, v), (x_dot, v_dot) = primals, tangents
    if type(x_dot) is not ad.Zero:
        raise NotImplementedError(
            "second derivatives of a score from PyTorch are not taken: its tangents depend on the "
            "point, and PyTorch is asked for values, tangents and transposes alone"
        )
    out = primitive.bind(x, v, **params)
    return out, primitive.bind(x, ad.instantiate_zeros(v_dot), **params)


def _linear_transpose(other: Primitive, cotangent: Any, x: Any, v: Any, **params: Any) -> Any:
    if type(cotangent) is ad.Zero:
        return None, ad.Zero(v.aval)
    return None, other.bind(x, cotangent, **params)


ad.primitive_jvps[_value] = _value_jvp
for _one, _other in ((_tangent, _transpose), (_transpose, _tangent)):
    ad.primitive_jvps[_one] = functools.partial(_linear_jvp, _one)
    ad.primitive_transposes[_one] = functools.partial(_linear_transpose, _other)
