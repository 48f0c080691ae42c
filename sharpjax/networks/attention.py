"""Attention whose matrix of weights is never held whole where it would be large.

At 64 x 64 latents a layer of Stable Diffusion weighs 4,096 x 4,096 pairs of pixels in each of 8
heads: half a gigabyte an image, written and read several times, and kept for every layer by a
linearization.  Large attentions therefore run over blocks of queries that fit a cache (or, on an
accelerator, a fair share of its memory), and the weights of a block are computed again, not kept,
when tangents or gradients want them.  Queries are independent: there is nothing to combine.
"""

import math

import jax
import jax.numpy as jnp

# bytes of float32 weights in one block
_BLOCK_BYTES = {"cpu": 2**22}
_ACCELERATOR_BYTES = 2**30


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    r"""Softmax attention, $\mathrm{softmax}(q k^T/\sqrt{d})\, v$, the softmax in float32.

    Args:
        q: queries `(batch, n, heads, d)`.
        k: keys `(batch, m, heads, d)`.
        v: values, as the keys.

    Returns:
        `(batch, n, heads, d)`.

    >>> q, k = jnp.ones((1, 5, 2, 3)), jnp.ones((1, 7, 2, 3))
    >>> attention(q, k, k).shape
    (1, 5, 2, 3)
    """
    b, n, heads, d = q.shape
    m = k.shape[1]
    budget = _BLOCK_BYTES.get(jax.default_backend(), _ACCELERATOR_BYTES)
    if 4 * b * heads * n * m <= budget:
        return jax.nn.dot_product_attention(q, k, v)

    # as many whole heads as fit a block; of one that does not fit, as many queries
    together = _largest_divisor(b * heads, budget // (4 * n * m))
    blocks = math.ceil(n / max(budget // (4 * together * m), 1))
    rows = math.ceil(n / blocks)  # n may be a prime: the last block is filled up with zeros
    q, k, v = (
        x.transpose(0, 2, 1, 3).reshape(-1, together, x.shape[1], d)  # (groups, heads, n, d)
        for x in (q, k, v)
    )

    def group(qkv: jax.Array) -> jax.Array:
        q, k, v = qkv
        q = jnp.pad(q, ((0, 0), (0, blocks * rows - n), (0, 0)))
        q = q.reshape(together, blocks, rows, d).swapaxes(0, 1)
        out = jax.lax.map(lambda block: _block(block, k, v), q)
        return out.swapaxes(0, 1).reshape(together, blocks * rows, d)[:, :n]

    out = jax.lax.map(group, (q, k, v)).reshape(b, heads, n, d)
    return out.transpose(0, 2, 1, 3)


@jax.checkpoint
def _block(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`(heads, rows, d)` queries to all `(heads, m, d)` keys and values.

    Weights lie keys by queries, so that a maximum over keys runs along the processor's lanes and
    not across them. Their sum is one more row of the product with the values, `v^T` with ones.
    """
    logits = jnp.einsum(
        "hmd,hnd->hmn", k, q / math.sqrt(q.shape[-1]), preferred_element_type=jnp.float32
    )
    # any shift gives the same softmax, so the largest logit needs no derivative
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(1, keepdims=True)))
    v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    out = jnp.einsum("hmd,hmn->hdn", v, weights.astype(v.dtype), preferred_element_type=jnp.float32)
    return (out[:, :-1] / out[:, -1:]).swapaxes(1, 2).astype(v.dtype)


def _largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`; 1 if there is none."""
    return next((size for size in range(min(number, most), 0, -1) if number % size == 0), 1)
