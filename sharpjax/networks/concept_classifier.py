"""A small network that says which concept a picture shows: the judge of prompt fidelity."""

import jax
import jax.numpy as jnp
from flax import nnx

from sharpjax.networks.layers import conv, group_norm, silu
from sharpjax.networks.network import Network

_GROUPS = 8
_EPS = 1e-6


class ConceptClassifier(Network):
    """Residual blocks, each at half the size of the one before, and a mean over what is left.

    Args:
        labels: names of the concepts, in the order of the logits.
        in_channels: of the pictures.
        block_out_channels: of each block, multiples of 8.

    Raises:
        ValueError: fewer than two labels, the same one twice, or channels that are not such.

    >>> judge = ConceptClassifier(labels=("star", "moon"), block_out_channels=(8, 16),
    ...     rngs=nnx.Rngs(0))
    >>> judge(jnp.zeros((5, 3, 64, 64))).shape
    (5, 2)
    """

    def __init__(
        self,
        *,
        labels: tuple[str, ...],
        in_channels: int = 3,
        block_out_channels: tuple[int, ...] = (32, 64, 128, 256),
        rngs: nnx.Rngs,
    ):
        labels, channels = tuple(labels), tuple(block_out_channels)
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise ValueError(f"labels must be two or more different names, got {labels!r:.80}")
        if not channels or any(c < 1 or c % _GROUPS for c in channels):
            raise ValueError(
                f"block_out_channels must be positive multiples of {_GROUPS}, got {channels}"
            )
        self._remember(locals())
        self.blocks = nnx.List(
            _Block(c_in, c_out, rngs=rngs)
            for c_in, c_out in zip((in_channels, *channels), channels, strict=False)
        )
        self.norm = group_norm(channels[-1], _GROUPS, eps=_EPS, rngs=rngs)
        self.classify = nnx.Linear(channels[-1], len(labels), rngs=rngs)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the concepts, in the order of the logits."""
        return self.config["labels"]

    def __call__(self, images: jax.Array) -> jax.Array:
        """`(n, channels, height, width)` with pixels in [-1, 1] to logits `(n, labels)`."""
        x = images.transpose(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return self.classify(silu(self.norm(x)).mean((1, 2)))


class _Block(nnx.Module):
    """A strided convolution, and a residual one."""

    def __init__(self, c_in: int, c_out: int, *, rngs: nnx.Rngs):
        self.down = conv(c_in, c_out, stride=2, rngs=rngs)
        self.norm1 = group_norm(c_out, _GROUPS, eps=_EPS, rngs=rngs)
        self.conv1 = conv(c_out, c_out, rngs=rngs)
        self.norm2 = group_norm(c_out, _GROUPS, eps=_EPS, rngs=rngs)
        self.conv2 = conv(c_out, c_out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.down(x)
        h = self.conv1(silu(self.norm1(x)))
        return x + self.conv2(silu(self.norm2(h)))


@nnx.jit
def probabilities(classifier: ConceptClassifier, images: jax.Array) -> jax.Array:
    """Of each label, `(n, labels)`."""
    return jax.nn.softmax(classifier(jnp.clip(images, -1, 1)))
