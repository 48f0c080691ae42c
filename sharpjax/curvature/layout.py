"""Convolutions in the one layout that XLA's CPU backend runs fast inside a loop."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core as jex

from sharpjax._types import Array
from sharpjax.curvature.programs import evaluate


def channels_last(function: Callable[[Array], Any], like: Array) -> Callable[[Array], Any]:
    """The function of one array, with every convolution in the layout `NHWC, HWIO -> NHWC`.

    Inside a loop XLA's CPU backend runs a convolution of any other layout by a naive kernel, many
    times slower (github.com/jax-ml/jax/issues/12868), and the transpose of a convolution has
    another layout: without this a cotangent of a network costs many tangents. Other backends
    choose layouts themselves, and so does a program without a loop.
    """
    if jax.default_backend() != "cpu":
        return function
    program, shape = jax.make_jaxpr(function, return_shape=True)(like)
    treedef: Any = jax.tree.structure(shape)
    return lambda v: treedef.unflatten(_evaluate(program, [v]))


def _evaluate(program: jex.ClosedJaxpr, arguments: list[Array]) -> list[Any]:
    def bind(equation: jex.JaxprEqn, inputs: list[Any]) -> list[Any] | None:
        if equation.primitive.name == "conv_general_dilated":
            return [_channels_last_convolution(*inputs, **equation.params)]
        if equation.primitive.name == "jit":
            return _evaluate(equation.params["jaxpr"], inputs)
        return None

    return evaluate(program.jaxpr, program.consts, arguments, bind=bind)


def _channels_last_convolution(
    x: Array, kernel: Array, *, dimension_numbers: jax.lax.ConvDimensionNumbers, **params: Any
) -> Array:
    # Each spec names the axes in the order (batch, feature, *space), or (out, in, *space).
    batch, feature, *space = dimension_numbers.lhs_spec
    k_out, k_in, *k_space = dimension_numbers.rhs_spec
    o_batch, o_feature, *o_space = dimension_numbers.out_spec
    last = x.ndim - 1
    between = range(1, last)
    out: Array = jax.lax.conv_general_dilated_p.bind(
        x.transpose(batch, *space, feature),
        kernel.transpose(*k_space, k_in, k_out),
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            lhs_spec=(0, last, *between),
            rhs_spec=(last, last - 1, *range(last - 1)),
            out_spec=(0, last, *between),
        ),
        **params,
    )
    order = (o_batch, *o_space, o_feature)
    return out.transpose([order.index(axis) for axis in range(out.ndim)])
