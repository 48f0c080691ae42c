r"""`T5EncoderModel`: the long text encoder of Stable Diffusion 3.

Architecture: Raffel et al. 2020 (arXiv:1910.10683): a pre-norm transformer without biases, whose
attention is not scaled and has a learned bias by distance, the same in all layers; with the gated
feed-forward of version 1.1 (Shazeer 2020, arXiv:2002.05202).  Tested number for number against the
PyTorch module of transformers.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharpjax.checkpoints.configuration import UNUSED_BY_TEXT_ENCODERS, check
from sharpjax.networks.network import Network, check_choices

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gated-gelu": functools.partial(jax.nn.gelu, approximate=True),
}


def buckets(n: int, *, num_buckets: int, max_distance: int) -> np.ndarray:
    """Which bias two places have, `(n, n)`: of the query's row and the key's column.

    Half of the buckets are for keys that come later.  Of each half the first half are distances
    themselves, the others grow as the logarithm until `max_distance`.
    """
    later = np.arange(n)[None] - np.arange(n)[:, None]
    half = num_buckets // 2
    distance, exact = np.abs(later), half // 2
    ratio = np.log(np.maximum(distance, 1) / exact) / math.log(max_distance / exact)
    far = np.minimum(exact + (ratio * (half - exact)).astype(int), half - 1)
    return np.where(later > 0, half, 0) + np.where(distance < exact, distance, far)


class T5LayerNorm(nnx.Module):
    """`scale x / sqrt(mean x^2 + eps)`, the mean in float32."""

    def __init__(self, width: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape out."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        return self.scale[...] * (wide * jax.lax.rsqrt(square + self.eps)).astype(x.dtype)


def _linear(c_in: int, c_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(c_in, c_out, use_bias=False, rngs=rngs)


class _Attention(nnx.Module):
    def __init__(
        self, width: int, *, num_heads: int, head_dim: int, num_buckets: int | None, rngs: nnx.Rngs
    ):
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.q, self.k, self.v = (_linear(width, inner, rngs) for _ in range(3))
        self.o = _linear(inner, width, rngs)
        if num_buckets is not None:
            self.relative_attention_bias = nnx.Embed(num_buckets, num_heads, rngs=rngs)

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """`(b, n, width)` and `(heads, n, n)`, shape of the first out."""
        q, k, v = (
            layer(x).reshape(*x.shape[:2], self.num_heads, -1) for layer in (self.q, self.k, self.v)
        )
        logits = jnp.einsum("bnhd,bmhd->bhnm", q, k).astype(jnp.float32) + bias
        weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        return self.o(jnp.einsum("bhnm,bmhd->bnhd", weights, v).reshape(*x.shape[:2], -1))


class _SelfAttentionLayer(nnx.Module):
    def __init__(self, attention: _Attention, norm: T5LayerNorm):
        self.SelfAttention, self.layer_norm = attention, norm

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class _Dense(nnx.Module):
    def __init__(self, width: int, hidden: int, kind: str, *, rngs: nnx.Rngs):
        self.kind = kind
        if kind == "relu":
            self.wi = _linear(width, hidden, rngs)
        else:
            self.wi_0, self.wi_1 = (_linear(width, hidden, rngs) for _ in range(2))
        self.wo = _linear(hidden, width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        act = _ACTIVATIONS[self.kind]
        return self.wo(act(self.wi(x)) if self.kind == "relu" else act(self.wi_0(x)) * self.wi_1(x))


class _FeedForwardLayer(nnx.Module):
    def __init__(self, dense: _Dense, norm: T5LayerNorm):
        self.DenseReluDense, self.layer_norm = dense, norm

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.DenseReluDense(self.layer_norm(x))


class _Block(nnx.Module):
    def __init__(self, attention: _SelfAttentionLayer, feed_forward: _FeedForwardLayer):
        self.layer = nnx.List([attention, feed_forward])

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        return self.layer[1](self.layer[0](x, bias))


class _Stack(nnx.Module):
    def __init__(self, blocks: list[_Block], norm: T5LayerNorm):
        self.block, self.final_layer_norm = nnx.List(blocks), norm


class T5EncoderModel(Network):
    """transformers' `T5EncoderModel` in flax NNX: same configuration, same numbers.

    Keyword arguments are keys of `config.json` with the same defaults.  There is no mask of
    padding: Stable Diffusion 3 uses none.

    Raises:
        ValueError: a `feed_forward_proj` that this port does not have, or buckets that are none.

    >>> model = T5EncoderModel(vocab_size=9, d_model=8, d_kv=4, d_ff=16, num_layers=1,
    ...     num_heads=2, rngs=nnx.Rngs(0))
    >>> model(jnp.array([[3, 1, 0]])).shape
    (1, 3, 8)
    """

    IGNORED_CONFIG = UNUSED_BY_TEXT_ENCODERS | {
        "classifier_dropout", "decoder_start_token_id", "dense_act_fn", "dropout_rate",
        "eos_token_id", "is_gated_act", "n_positions", "num_decoder_layers", "output_past",
        "scale_decoder_outputs",
    }  # fmt: skip

    def __init__(
        self,
        *,
        vocab_size: int = 32128,
        d_model: int = 512,
        d_kv: int = 64,
        d_ff: int = 2048,
        num_layers: int = 6,
        num_heads: int = 8,
        relative_attention_num_buckets: int = 32,
        relative_attention_max_distance: int = 128,
        layer_norm_epsilon: float = 1e-6,
        feed_forward_proj: str = "relu",
        rngs: nnx.Rngs,
    ):
        self._remember(locals())
        check_choices(("feed_forward_proj", feed_forward_proj, _ACTIVATIONS))
        count, most = relative_attention_num_buckets, relative_attention_max_distance
        check(
            count >= 4 and count % 4 == 0 and most > count // 4,
            "relative_attention_num_buckets must be a multiple of 4, and "
            f"relative_attention_max_distance more than a quarter of it, got {count} and {most}",
        )
        check(num_layers >= 1, f"num_layers must be at least 1, got {num_layers}")
        self.num_buckets, self.max_distance = count, most
        self.shared = nnx.Embed(
            vocab_size, d_model, embedding_init=nnx.initializers.normal(1.0), rngs=rngs
        )

        def norm() -> T5LayerNorm:
            return T5LayerNorm(d_model, layer_norm_epsilon)

        def block(first: bool) -> _Block:
            attention = _Attention(
                d_model,
                num_heads=num_heads,
                head_dim=d_kv,
                num_buckets=count if first else None,
                rngs=rngs,
            )
            dense = _Dense(d_model, d_ff, feed_forward_proj, rngs=rngs)
            return _Block(_SelfAttentionLayer(attention, norm()), _FeedForwardLayer(dense, norm()))

        self.encoder = _Stack([block(i == 0) for i in range(num_layers)], norm())

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        """`(batch, n)` ids to `(batch, n, d_model)`; an id outside the vocabulary gives NaN."""
        ids = jnp.asarray(input_ids)
        # indexing alone would take -1 for the last row
        table = self.shared.embedding[...]
        x = table.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        which = buckets(ids.shape[1], num_buckets=self.num_buckets, max_distance=self.max_distance)
        blocks = self.encoder.block
        first: Any = blocks[0].layer[0]
        bias = first.SelfAttention.relative_attention_bias(jnp.asarray(which))
        bias = bias.astype(jnp.float32).transpose(2, 0, 1)
        for one in blocks:
            x = one(x, bias)
        return self.encoder.final_layer_norm(x)
