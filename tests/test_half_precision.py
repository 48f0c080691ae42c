"""Networks in bfloat16: what of scores, tangents and statistics is left, by a bound from 2^-8.

A number is rounded to 8 bits, by 2^-9 of it at most, where it is stored: every weight, and every
layer's output.  Both together are at most 2^-8 a layer; layers err independently, so of n of them
a length errs by 2^-8 sqrt(n), a tangent, which goes through each layer beside the values that it is
taken at, by twice that.  Latents, scores and all that is computed from them are float32.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sharpjax import LatentDiffusion
from sharpjax.detection.statistics import score_difference

PROMPTS = ["a cat", "dog dog the cat"]


@functools.partial(jax.jit, static_argnames="t")
def found(model, contexts, x, directions, t):
    """Of each prompt both scores, their tangents, and `score_difference`."""

    def of(given):
        context, v = given
        pair = model.scores(context, t)
        here = pair.linearize(x)
        tangents = here.unconditional_tangent(v), here.conditional_tangent(v)
        length = score_difference(pair, x, linearized=here)
        return (here.unconditional, here.conditional), tangents, length

    return jax.lax.map(of, (contexts, directions))


def lengths(arrays):
    return np.sqrt(np.square(arrays).sum((1, 2, 3)))


@pytest.mark.slow
def test_scores_tangents_and_statistics(stable_diffusion_directory):
    plain, coarse = (
        LatentDiffusion.from_pretrained(stable_diffusion_directory, dtype=dtype)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    x = jax.random.normal(jax.random.key(0), plain.shape)
    contexts = plain.encode(PROMPTS)
    scores, *_ = found(plain, contexts, x, jnp.stack([x, x]), 981)
    along = scores[1] - scores[0]  # of each prompt
    exact = found(plain, contexts, x, along, 981)
    half = found(coarse, coarse.encode(PROMPTS), x, along, 981)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}

    layers = [path for path, _ in nnx.to_flat_state(nnx.state(plain.unet, nnx.Param))]
    bound = 2**-8 * np.sqrt(sum(path[-1] == "kernel" for path in layers))
    for times, mine, other in ((1, half[0], exact[0]), (2, half[1], exact[1])):
        for one, true in zip(mine, other, strict=True):  # unconditional, conditional
            errors = lengths(one - true) / lengths(true)
            assert (errors > 2**-12).all()  # it is computed in bfloat16
            assert (errors < times * bound).all()
    # a difference errs by what both err by: by much of itself, where it is small beside them
    allowed = bound * sum(map(lengths, exact[0]))
    assert (np.abs(half[2] - exact[2]) < allowed).all()
    hessians = [lengths(conditional - unconditional) for _, (unconditional, conditional), _ in
                (half, exact)]  # fmt: skip
    allowed = 2 * bound * sum(map(lengths, exact[1]))
    assert (np.abs(hessians[0] - hessians[1]) < allowed).all()
