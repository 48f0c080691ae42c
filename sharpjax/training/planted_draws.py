"""Which example a training on planted drawings sees next."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._reprs import one_line
from sharpjax.datasets.planted_drawings import Caption, PlantedDrawings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PlantedDraws:
    """Captions by their numbers of draws; of each its fixed image with probability `q`, else fresh.

    Attributes:
        captions: `(n,)` the captions that are drawn, as numbered among all.
        below: `(n,)` probability of an earlier one, ascending from 0.
        repeated: `(n,)` probability of the fixed image.
        fixed: `(n,)` its number among the planted ones; 0 where there is none.
        pools: `(n, largest)` drawings of the fresh draws.
        sizes: `(n,)` how many there are.
        group: `(n,)` index into `groups`.
        groups: whose losses are reported apart.
    """

    captions: jax.Array
    below: jax.Array
    repeated: jax.Array
    fixed: jax.Array
    pools: jax.Array
    sizes: jax.Array
    group: jax.Array
    groups: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    __repr__ = one_line

    @classmethod
    def create(cls, planted: PlantedDrawings) -> "PlantedDraws":
        """Of all captions that are drawn at all."""
        drawn = np.flatnonzero([c.draws > 0 for c in planted.captions])
        captions = [planted.captions[i] for i in drawn]
        share = np.cumsum([c.draws for c in captions]) / sum(c.draws for c in captions)
        place = {caption: number for number, caption in enumerate(planted.planted.tolist())}
        names = [_group(caption) for caption in captions]
        groups = tuple(dict.fromkeys(names))
        return cls(
            captions=jnp.asarray(drawn),
            below=jnp.asarray(np.concatenate([[0], share[:-1]]), jnp.float32),
            repeated=jnp.array([c.q for c in captions]),
            fixed=jnp.array([place.get(i, 0) for i in drawn.tolist()]),
            pools=jnp.asarray(planted.pools[drawn]),
            sizes=jnp.asarray(planted.sizes[drawn]),
            group=jnp.array([groups.index(name) for name in names]),
            groups=groups,
        )

    def draw(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rows of captions, drawings of a fresh draw, and whether it is the fixed image, `(n,)`."""
        keys = jax.random.split(key, 3)
        # one draw from each n-th of the captions' probability, so that a batch is a fair sample
        quantile = (jnp.arange(n) + jax.random.uniform(keys[0], (n,))) / n
        row = jnp.searchsorted(self.below, quantile, side="right") - 1
        member = jax.random.randint(keys[1], (n,), 0, self.sizes[row])
        repeats = jax.random.uniform(keys[2], (n,)) < self.repeated[row]
        return row, self.pools[row, member], repeats


def _group(caption: Caption) -> str:
    """As losses are reported: planted kinds by level, the others by breadth."""
    if caption.kind == "general":
        return f"general {caption.breadth}"
    if caption.kind == "hot":
        return f"hot {caption.like}"
    share = f" q={caption.q:g}" if caption.kind == "mixed" else ""
    return f"{caption.kind}{share} x{caption.level}"
