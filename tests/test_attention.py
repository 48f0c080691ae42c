"""Attention in blocks against the formula in float64: values, tangents, gradients, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.networks.attention import attention


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_formula(q, k, v, dq, dk, dv):
    """Value and derivative of softmax(q k^T / sqrt(d)) v, by hand, in float64."""
    q, k, v, dq, dk, dv = (x.astype(float).swapaxes(1, 2) for x in (q, k, v, dq, dk, dv))
    scale = q.shape[-1] ** -0.5
    logits = scale * q @ k.swapaxes(2, 3)
    slope = scale * (dq @ k.swapaxes(2, 3) + q @ dk.swapaxes(2, 3))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    moved = weights * (slope - (weights * slope).sum(-1, keepdims=True))
    return (weights @ v).swapaxes(1, 2), (moved @ v + weights @ dv).swapaxes(1, 2)


@pytest.mark.parametrize(
    ("batch", "heads", "n", "m"),
    [(1, 2, 64, 77), (3, 1, 600, 700), (1, 2, 1024, 1024), (1, 1, 1031, 1031)],
    ids=["whole", "heads in groups", "blocks", "a prime number of queries"],
)
def test_the_formula(batch, heads, n, m):
    q, k, v = draw(0, batch, n, heads, 8), draw(1, batch, m, heads, 8), draw(2, batch, m, heads, 8)
    along = draw(3, *q.shape), draw(4, *k.shape), draw(5, *v.shape)
    value, tangent = by_formula(q, k, v, *along)
    found = jax.jit(lambda x, dx: jax.jvp(attention, x, dx))((q, k, v), along)
    np.testing.assert_allclose(found[0], value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1], tangent, rtol=1e-3, atol=1e-5)

    weights = draw(6, *q.shape)  # <weights, J along> = <J^T weights, along>
    back = jax.jit(lambda x, w: jax.vjp(attention, *x)[1](w))((q, k, v), weights)
    sides = sum(np.vdot(a, b) for a, b in zip(back, along, strict=True)), np.vdot(weights, tangent)
    np.testing.assert_allclose(*sides, rtol=1e-3)


@pytest.mark.parametrize("n", [4096, 4285], ids=["square", "SD3 at 832 x 1216, with its text"])
def test_the_memory_of_a_tangent_is_that_of_blocks(n):
    """Held whole, the weights of 8 heads are half a gigabyte, and their tangent another."""
    x = (jax.ShapeDtypeStruct((1, n, 8, 40), jnp.float32),) * 3
    compiled = jax.jit(lambda x, dx: jax.jvp(attention, x, dx)).lower(x, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**27
