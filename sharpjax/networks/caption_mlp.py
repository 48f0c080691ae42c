"""A denoiser of vectors by captions, without convolutions: minutes of training on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharpjax.networks.layers import embedding_table, layer_norm, silu, timestep_features
from sharpjax.networks.network import Network

_FEATURES = 128  # of the timestep


class CaptionMLP(Network):
    """Residual layers of a vector, each with gain, shift and gate from timestep and caption.

    A caption is the sum of its words' embeddings, so that what a word means is learned from every
    caption that has it; a label is the number of a caption, the last label none.  It stands where a
    class-conditional `UNet2DModel` does.

    Args:
        in_channels: numbers of a vector `(in_channels, 1, 1)`.
        out_channels: the same.
        sample_size: 1.
        words: of each caption the numbers of its words, from 0.
        num_class_embeds: captions and one.
        width: of the residual layers.
        depth: how many.
        rngs: of the initial weights.

    Raises:
        ValueError: sizes that contradict each other.

    >>> network = CaptionMLP(in_channels=4, out_channels=4, words=((0,), (0, 1)),
    ...     num_class_embeds=3, width=8, depth=1, rngs=nnx.Rngs(0))
    >>> network(jnp.ones((2, 4, 1, 1)), jnp.int32(7), jnp.array([1, 2])).shape
    (2, 4, 1, 1)
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        sample_size: int = 1,
        words: tuple[tuple[int, ...], ...],
        num_class_embeds: int,
        width: int = 768,
        depth: int = 4,
        rngs: nnx.Rngs,
    ):
        words = tuple(tuple(row) for row in words)
        if sample_size != 1 or in_channels != out_channels:
            raise ValueError(
                "sample_size must be 1 and out_channels as in_channels, got "
                f"{sample_size}, {out_channels} and {in_channels}"
            )
        if num_class_embeds != len(words) + 1 or not all(words):
            raise ValueError(
                f"num_class_embeds must be one more than the {len(words)} captions of at least one "
                f"word each, got {num_class_embeds}"
            )
        self._remember(locals())
        vocabulary = 1 + max(max(row) for row in words)
        self.words = embedding_table(vocabulary, width, rngs=rngs)
        self.time = nnx.Linear(_FEATURES, width, rngs=rngs)
        self.condition = nnx.Linear(width, width, rngs=rngs)
        self.entry = nnx.Linear(in_channels, width, rngs=rngs)
        self.layers = nnx.List([_Layer(width, rngs=rngs) for _ in range(depth)])
        self.norm = layer_norm(width, rngs=rngs)
        self.exit = nnx.Linear(width, out_channels, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def _captions(self) -> tuple[np.ndarray, np.ndarray]:
        """`(captions + 1, most words)` numbers of words, padded by 0, and which of them are."""
        words = (*self.config["words"], ())
        most = max(map(len, words))
        table = np.array([[*row, *[0] * (most - len(row))] for row in words])
        return table, np.arange(most) < np.array([[len(row)] for row in words])

    def __call__(self, x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        """`(n, channels, 1, 1)`, timesteps `()` or `(n,)` and labels `(n,)` to the prediction."""
        table, there = self._captions()
        words = self.words(jnp.asarray(table)[labels]) * jnp.asarray(there)[labels][..., None]
        time = timestep_features(jnp.broadcast_to(t, (len(x),)), _FEATURES)
        condition = silu(self.time(time.astype(x.dtype)) + words.sum(axis=-2))
        condition = silu(self.condition(condition))
        h = self.entry(x[..., 0, 0])
        for layer in self.layers:
            h = layer(h, condition)
        return self.exit(silu(self.norm(h)))[..., None, None]


class _Layer(nnx.Module):
    """`h + gate * W2 silu(W1 ((1 + gain) norm(h) + shift))`."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = layer_norm(width, rngs=rngs)
        self.modulate = nnx.Linear(width, 3 * width, rngs=rngs)
        self.first = nnx.Linear(width, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, h: jax.Array, condition: jax.Array) -> jax.Array:
        gain, shift, gate = jnp.split(self.modulate(condition), 3, axis=-1)
        inner = self.first((1 + gain) * self.norm(h) + shift)
        return h + gate * self.second(silu(inner))
