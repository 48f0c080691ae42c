r"""How a network attends to a text otherwise than it was trained to.

Some cures of memorization reach into the cross-attention.  With the logits $l_{qi}$ of a head, of
pixel $q$ and token $i$, they sample under

$$
l'_{qi} = a_i\, c_i\, l_{qi}, \qquad l'_{qi} = -\infty \text{ of tokens that are not seen,}
$$

$a_i$ a factor of the token's own, and $c_i$ that of a *spike*, a token that stands out: where
$z_i = (m_i - \bar m)/\mathrm{sd}(m) > \tau$ with $m_i = \max_q l_{qi}$, mean and (unbiased)
standard deviation over all tokens but the first, which is never one.  Spikes are looked for head by
head, on the way down and in the middle of a UNet, at every evaluation.

It is an argument of the network, so that tangents, batches and `jit` treat it as any other.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax._types import Array

_EPS = 1e-6  # of a standard deviation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextAttention:
    """An intervention in the cross-attention of `UNet2DConditionModel`, an example a row.

    Attributes:
        scale: `(n, tokens)` factor of each token's logits; 1 leaves them.
        seen: `(n, tokens)` booleans: False leaves a token out, of the unconditional branch too.
        spike_scale: `(n,)` factor of the logits of spikes; 1 leaves them.
        spike_threshold: `(n,)` of `z`; infinite where none is looked for.
    """

    scale: Array
    seen: Array
    spike_scale: Array
    spike_threshold: Array

    @classmethod
    def create(
        cls,
        n: int,
        tokens: int,
        *,
        scale: Any = 1.0,
        seen: Any = True,
        spike_scale: float = 1.0,
        spike_threshold: float = math.inf,
    ) -> "TextAttention":
        """The same for `n` examples; what is left out leaves the attention as it is.

        Args:
            n: examples.
            tokens: of a text.
            scale: a number, `(tokens,)` or `(n, tokens)`.
            seen: likewise, booleans; at least one of each text.
            spike_scale: of the logits of spikes.
            spike_threshold: of `z`.

        Raises:
            ValueError: of another shape, not finite, or a text of which nothing is seen.
        """
        factors = jnp.asarray(scale, jnp.float32)
        visible = jnp.asarray(seen, bool)
        for name, value in (("scale", factors), ("seen", visible)):
            if value.shape not in ((), (tokens,), (n, tokens)):
                raise ValueError(
                    f"{name} must be one value or have shape ({tokens},) or ({n}, {tokens}), "
                    f"got {value.shape}"
                )
        visible = jnp.broadcast_to(visible, (n, tokens))
        finite = jnp.isfinite(factors).all() & math.isfinite(spike_scale)
        if not finite or math.isnan(spike_threshold):
            raise ValueError("factors must be finite, and spike_threshold a number")
        if not visible.any(axis=1).all():
            raise ValueError("of every text at least one token must be seen")
        return cls(
            jnp.broadcast_to(factors, (n, tokens)),
            visible,
            jnp.full(n, spike_scale, jnp.float32),
            jnp.full(n, spike_threshold, jnp.float32),
        )

    @property
    def plain(self) -> "TextAttention":
        """Of branches that are left as they are, but for the tokens that no branch sees."""
        return TextAttention(
            jnp.ones_like(self.scale),
            self.seen,
            jnp.ones_like(self.spike_scale),
            jnp.full_like(self.spike_threshold, jnp.inf),
        )

    @property
    def without_spikes(self) -> "TextAttention":
        """On the way up, where no spikes are looked for."""
        none = jnp.full_like(self.spike_threshold, jnp.inf)
        return dataclasses.replace(self, spike_threshold=none)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttendedText:
    """A text `(n, tokens, width)` and how it is attended to: a context as the plain text is."""

    tokens: Array
    attention: TextAttention

    @property
    def on_the_way_up(self) -> "AttendedText":
        """After the middle of a UNet."""
        return AttendedText(self.tokens, self.attention.without_spikes)


def attention_to_text(q: Array, k: Array, v: Array, how: TextAttention) -> Array:
    """`sharpjax.networks.attention.attention` with changed logits; a text is short: held whole.

    Args:
        q: queries `(batch, n, heads, d)`.
        k: keys `(batch, tokens, heads, d)`.
        v: values, as the keys.
        how: of each example.
    """
    wide = jnp.promote_types(q.dtype, jnp.float32)  # no less, and what it is if that is more
    logits = jnp.einsum(
        "bqhd,bkhd->bhqk", q / math.sqrt(q.shape[-1]), k, preferred_element_type=wide
    )
    of_tokens = how.scale[:, None, None], how.seen[:, None, None]
    spikes = _spikes(jax.lax.stop_gradient(logits), how.spike_threshold)
    factor = jnp.where(spikes, how.spike_scale[:, None, None, None], 1.0)
    logits = jnp.where(of_tokens[1], logits * factor * of_tokens[0], -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def _spikes(logits: Array, threshold: Array) -> Array:
    """`(b, heads, 1, tokens)`: which stand out, of `(b, heads, pixels, tokens)`."""
    largest = logits.max(axis=2, keepdims=True)
    others = largest[..., 1:]
    mean = others.mean(axis=-1, keepdims=True)
    spread = jnp.std(others, axis=-1, keepdims=True, ddof=1)
    z = (largest - mean) / (spread + _EPS)
    return (z > threshold[:, None, None, None]).at[..., 0].set(False)
