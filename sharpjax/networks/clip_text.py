"""`CLIPTextModel`: the text encoder of Stable Diffusion, with and without its projection.

Architecture: Radford et al. 2021 (arXiv:2103.00020), section 2.4: a causal, pre-norm transformer.
Tested number for number against the PyTorch module of transformers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharpjax._reprs import one_line
from sharpjax.checkpoints.configuration import UNUSED_BY_TEXT_ENCODERS
from sharpjax.networks import layers
from sharpjax.networks.layers import layer_norm, silu
from sharpjax.networks.network import Network, check_choices


def _quick_gelu(x: jax.Array) -> jax.Array:
    return silu(1.702 * x) / 1.702  # x sigmoid(1.702 x)


# hidden_act -> function; transformers has several names for the same one
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": _quick_gelu,
    **layers.ACTIVATIONS,
    "gelu_python": layers.ACTIVATIONS["gelu"],
    **dict.fromkeys(
        ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"),
        functools.partial(jax.nn.gelu, approximate=True),
    ),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}

_LEGACY_EOS = 2  # what old versions of transformers wrote, whatever the tokenizer's id is


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoding:
    """What a text model says about `(batch, n)` tokens of width `c`; a pytree.

    Attributes:
        last_hidden_state: `(batch, n, c)` after the final norm: Stable Diffusion's condition.
        pooled: `(batch, c)`, the last layer's normed state at the end-of-text token, or `None`
            when only embeddings were given. Always of the last layer, whatever `clip_skip` is.
        text_embeds: `(batch, projection_dim)`, `pooled` projected into the space shared with
            images; `None` without projection.
        hidden_states: the embeddings and every layer's output, `num_hidden_layers + 1` arrays
            before the final norm, when asked for.
    """

    last_hidden_state: jax.Array
    pooled: jax.Array | None = None
    text_embeds: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None

    __repr__ = one_line


class Embeddings(nnx.Module):
    """Token and position embeddings."""

    def __init__(self, tokens: int, positions: int, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.token_embedding = nnx.Embed(tokens, width, embedding_init=init, rngs=rngs)
        self.position_embedding = nnx.Embed(positions, width, embedding_init=init, rngs=rngs)

    def tokens(self, input_ids: jax.Array) -> jax.Array:
        """`(batch, n)` ids to `(batch, n, c)`; an id outside the vocabulary gives NaN."""
        table = self.token_embedding.embedding[...]
        # indexing alone would take -1 for the last row
        return table.at[input_ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    def __call__(self, token_embeddings: jax.Array) -> jax.Array:
        """Adds the positions."""
        return token_embeddings + self.position_embedding.embedding[: token_embeddings.shape[1]]


class SelfAttention(nnx.Module):
    """Multi-head attention of every token to itself and the tokens before it."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.q_proj = nnx.Linear(width, width, rngs=rngs)
        self.k_proj = nnx.Linear(width, width, rngs=rngs)
        self.v_proj = nnx.Linear(width, width, rngs=rngs)
        self.out_proj = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`(b, n, c)`, same shape out."""
        b, n, c = x.shape
        q, k, v = (
            project(x).reshape(b, n, self.num_heads, c // self.num_heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(out.reshape(b, n, c))


class MLP(nnx.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, hidden_act: str, *, rngs: nnx.Rngs):
        self.act = ACTIVATIONS[hidden_act]
        self.fc1 = nnx.Linear(width, hidden, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`(..., c)`, same shape out."""
        return self.fc2(self.act(self.fc1(x)))


class EncoderLayer(nnx.Module):
    """`x + attention(norm x)`, then `x + mlp(norm x)`."""

    def __init__(self, settings: dict[str, Any], *, rngs: nnx.Rngs):
        width, eps = settings["hidden_size"], settings["layer_norm_eps"]
        self.layer_norm1 = layer_norm(width, eps=eps, rngs=rngs)
        self.self_attn = SelfAttention(width, settings["num_attention_heads"], rngs=rngs)
        self.layer_norm2 = layer_norm(width, eps=eps, rngs=rngs)
        self.mlp = MLP(width, settings["intermediate_size"], settings["hidden_act"], rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`(b, n, c)`, same shape out."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
    """The layers."""

    def __init__(self, settings: dict[str, Any], *, rngs: nnx.Rngs):
        self.layers = nnx.List(
            EncoderLayer(settings, rngs=rngs) for _ in range(settings["num_hidden_layers"])
        )

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """`x` and every layer's output."""
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states


class TextTransformer(nnx.Module):
    """Embeddings, encoder and final norm: what the checkpoints call `text_model`."""

    def __init__(self, settings: dict[str, Any], *, rngs: nnx.Rngs):
        width = settings["hidden_size"]
        self.embeddings = Embeddings(
            settings["vocab_size"], settings["max_position_embeddings"], width, rngs=rngs
        )
        self.encoder = Encoder(settings, rngs=rngs)
        self.final_layer_norm = layer_norm(width, eps=settings["layer_norm_eps"], rngs=rngs)


class CLIPTextModel(Network):
    """transformers' `CLIPTextModel` in flax NNX: same configuration, same arrays, same numbers.

    Keyword arguments are the keys of `config.json` with the same defaults. `projection_dim`
    counts only in `CLIPTextModelWithProjection`.

    Raises:
        ValueError: a size that is not a positive integer, heads that do not divide
            `hidden_size`, or an activation that this port does not have.

    >>> model = CLIPTextModel(vocab_size=100, hidden_size=16, intermediate_size=32,
    ...     num_hidden_layers=2, num_attention_heads=2, eos_token_id=99, rngs=nnx.Rngs(0))
    >>> ids = jnp.array([[98, 5, 7, 99, 99]])
    >>> model(ids).last_hidden_state.shape, model(ids).pooled.shape
    ((1, 5, 16), (1, 16))
    """

    IGNORED_CONFIG = UNUSED_BY_TEXT_ENCODERS
    _PROJECTS = False

    def __init__(
        self,
        *,
        vocab_size: int = 49408,
        hidden_size: int = 512,
        intermediate_size: int = 2048,
        projection_dim: int | None = 512,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 77,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        eos_token_id: int = 49407,
        rngs: nnx.Rngs,
    ):
        settings = self._remember(locals())
        _check(settings)
        if self._PROJECTS and projection_dim is None:
            raise ValueError("projection_dim must be an integer, got None")
        self.text_model = TextTransformer(settings, rngs=rngs)
        if self._PROJECTS:
            self.text_projection = nnx.Linear(
                hidden_size, cast(int, projection_dim), use_bias=False, rngs=rngs
            )

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        *,
        inputs_embeds: jax.Array | None = None,
        clip_skip: int = 0,
        output_hidden_states: bool = False,
    ) -> TextEncoding:
        """Evaluate a batch.

        Args:
            input_ids: `(batch, n)` integers, `n` at most `max_position_embeddings`.
            inputs_embeds: `(batch, n, hidden_size)` token embeddings to use instead of those of
                `input_ids` (which `token_embeddings` gives), for example to optimise them;
                the ids then only say which token is pooled.
            clip_skip: leave the last layers out of `last_hidden_state`, as diffusers does: its
                state is that of the layer `clip_skip` before the last, then normed.
            output_hidden_states: give every layer's output too.

        Returns:
            A `TextEncoding`.

        Raises:
            ValueError: neither ids nor embeddings, a wrong shape or type, too many tokens, an id
                outside the vocabulary (inside `jit`, where values are not known, such an id
                makes the outputs of its example NaN), or `clip_skip` beyond the first layer.
        """
        layers = self.config["num_hidden_layers"]
        if not _is_integer(clip_skip, 0, layers):
            raise ValueError(f"clip_skip must be an integer from 0 to {layers}, got {clip_skip!r}")
        if input_ids is not None:
            input_ids = self._checked_ids(input_ids)
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("pass input_ids or inputs_embeds")
            inputs_embeds = self.text_model.embeddings.tokens(input_ids)
        self._check_embeddings(inputs_embeds, input_ids)

        model = self.text_model
        states = model.encoder(model.embeddings(inputs_embeds))
        normed = model.final_layer_norm(states[-1])
        pooled = None
        if input_ids is not None:
            pooled = jnp.take_along_axis(normed, self._end(input_ids)[:, None, None], axis=1)[:, 0]
        last = model.final_layer_norm(states[-1 - clip_skip]) if clip_skip else normed
        embeds = self.text_projection(pooled) if self._PROJECTS and pooled is not None else None
        return TextEncoding(last, pooled, embeds, tuple(states) if output_hidden_states else None)

    def token_embeddings(self, input_ids: jax.Array) -> jax.Array:
        """`(batch, n)` ids to the `inputs_embeds` of shape `(batch, n, hidden_size)`."""
        return self.text_model.embeddings.tokens(self._checked_ids(input_ids))

    def _end(self, input_ids: jax.Array) -> jax.Array:
        """Positions `(batch,)` of the token to pool."""
        eos = self.config["eos_token_id"]
        # the end of text is the largest id of the original vocabulary, and its first occurrence
        # counts, since it may be the padding too
        return jnp.argmax(input_ids if eos == _LEGACY_EOS else input_ids == eos, axis=-1)

    def _checked_ids(self, input_ids: jax.Array) -> jax.Array:
        vocabulary = self.config["vocab_size"]
        ids = jnp.asarray(input_ids)
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(
                f"input_ids must be integers of shape (batch, n), got {ids.dtype} {ids.shape}"
            )
        if not isinstance(ids, jax.core.Tracer):
            given = np.asarray(input_ids)  # as given: jnp.asarray may have wrapped 64-bit ones
            wrong = given[(given < 0) | (given >= vocabulary)]
            if wrong.size:
                raise ValueError(
                    f"input_ids must be from 0 to {vocabulary - 1} (vocab_size - 1), got {wrong[0]}"
                )
        return ids.astype(jnp.int32)

    def _check_embeddings(self, embeddings: jax.Array, ids: jax.Array | None) -> None:
        width, longest = self.config["hidden_size"], self.config["max_position_embeddings"]
        if jnp.ndim(embeddings) != 3 or embeddings.shape[2] != width:
            raise ValueError(
                f"inputs_embeds must have shape (batch, n, {width}), got {jnp.shape(embeddings)}"
            )
        if not 1 <= embeddings.shape[1] <= longest:
            raise ValueError(
                f"there must be 1 to {longest} tokens (max_position_embeddings), "
                f"got {embeddings.shape[1]}"
            )
        if ids is not None and ids.shape != embeddings.shape[:2]:
            raise ValueError(
                f"input_ids of shape {ids.shape} do not fit inputs_embeds of shape "
                f"{embeddings.shape}"
            )


class CLIPTextModelWithProjection(CLIPTextModel):
    """`CLIPTextModel` and a linear map of `pooled` to `text_embeds`, without bias.

    >>> model = CLIPTextModelWithProjection(vocab_size=100, hidden_size=16, intermediate_size=32,
    ...     num_hidden_layers=1, num_attention_heads=2, projection_dim=8, rngs=nnx.Rngs(0))
    >>> model(jnp.array([[98, 5, 7, 99, 99]])).text_embeds.shape
    (1, 8)
    """

    _PROJECTS = True


def _is_integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _check(settings: dict[str, Any]) -> None:
    """`ValueError` naming key, value and what is allowed."""
    for key, value in settings.items():
        least = 0 if key == "eos_token_id" else 1
        if key in ("hidden_act", "layer_norm_eps") or (key == "projection_dim" and value is None):
            continue
        if not _is_integer(value, least, 2**31 - 1):
            raise ValueError(f"{key} must be an integer from {least} to 2^31 - 1, got {value!r}")
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    if width % heads:
        raise ValueError(f"num_attention_heads={heads} must divide hidden_size, got {width}")
    act, eps = settings["hidden_act"], settings["layer_norm_eps"]
    check_choices(("hidden_act", act, ACTIVATIONS))
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < math.inf:
        raise ValueError(f"layer_norm_eps must be a finite number > 0, got {eps!r}")
