"""Denoising of vectors that were made before: renderings of drawings in a bank of latents."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax._reprs import one_line
from sharpjax.schedules import Schedule
from sharpjax.training.class_denoising import Denoising
from sharpjax.training.loop import digest
from sharpjax.training.planted_draws import PlantedDraws


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BankDenoising(Denoising):
    """Captions are labels, drawn as `PlantedDraws` says.

    Attributes:
        draws: of captions.
        bank: `(k, renderings, *shape)` fresh examples of each component.
        component: `(captions that are drawn, drawings)` the bank's row, -1 where there is none.
        fixed: `(m, *shape)` the repeated examples.
        schedule: its levels and what the network predicts.
        null: the label of no caption.
        caption_dropout: fraction of examples with it.
    """

    draws: PlantedDraws
    bank: jax.Array
    component: jax.Array
    fixed: jax.Array
    schedule: Schedule
    null: int = dataclasses.field(metadata={"static": True})
    caption_dropout: float = dataclasses.field(default=0.1, metadata={"static": True})

    __repr__ = one_line

    @property
    def groups(self) -> tuple[str, ...]:
        """Whose losses are reported apart."""
        return self.draws.groups

    def batch(self, key: jax.Array, n: int) -> tuple[Any, jax.Array]:
        """Noised examples, timesteps, labels and targets; the group of each."""
        keys = jax.random.split(key, 6)
        row, drawing, repeats = self.draws.draw(keys[0], n)
        member = jax.random.randint(keys[1], (n,), 0, self.bank.shape[1])
        fresh = self.bank[self.component[row, drawing], member]
        repeats = repeats.reshape(n, *[1] * (fresh.ndim - 1))
        x0 = jnp.where(repeats, self.fixed[self.draws.fixed[row]], fresh)
        noise = jax.random.normal(keys[2], x0.shape)
        t = jax.random.permutation(keys[4], self.schedule.stratified_timesteps(keys[3], n))
        dropped = jax.random.bernoulli(keys[5], self.caption_dropout, (n,))
        label = jnp.where(dropped, self.null, self.draws.captions[row])
        x, target = self.noised(x0, noise, t)
        return (x, t, label, target), self.draws.group[row]

    def identity(self) -> dict[str, Any]:
        """What tells this task from another."""
        return {
            "task": "denoising of a bank",
            "bank": list(self.bank.shape),
            "data_sha256": digest((self.draws, self.bank, self.component, self.fixed)),
            "schedule": self.schedule.to_config(),
            "caption_dropout": self.caption_dropout,
        }
