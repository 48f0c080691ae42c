r"""A denoising training loop: any prediction type, EMA, checkpoints that resume exactly.

The loss is the mean over pixels, examples and uniform timesteps of
:math:`\|f_\theta(\alpha_t x_0 + \sigma_t \epsilon, t, c) - y\|^2`, with the target ``y`` that the
schedule's ``prediction_type`` names (Ho et al. 2020, arXiv:2006.11239, for the noise).  Every draw
of step ``k`` comes from ``fold_in(seed, k)``, so a run that is killed and resumed equals one that
was not, bit for bit.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sharpjax.progress import progress
from sharpjax.rundir import append_lines, claim, read_lines, write_text
from sharpjax.schedules import Schedule

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What defines a training run; a checkpoint of other settings is refused.

    Attributes:
        steps: optimiser steps.
        batch_size: examples a step.
        learning_rate: AdamW's peak, reached after ``warmup`` steps, then a cosine to zero.
        ema: decay of the averaged weights, ramped up as ``(1 + k) / (10 + k)``.
        condition_dropout: fraction of examples trained with the null condition.
        clip: largest global gradient norm.
        seed: of weights, batches, timesteps and noise.
    """

    steps: int = 2800
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.0
    ema: float = 0.999
    condition_dropout: float = 0.2
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("ema", "condition_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with warm-up, cosine decay and gradient clipping."""
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, min(self.warmup, self.steps // 2), self.steps
        )
        return optax.chain(
            optax.clip_by_global_norm(self.clip), optax.adamw(rate, weight_decay=self.weight_decay)
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Data:
    """A training set on the device: ``images (n, ...)``, and a table of each condition's images.

    ``members`` is ``(num_conditions, largest set)``, rows padded by repetition of valid indices;
    ``sizes`` is ``(num_conditions,)``; ``groups`` names the group whose loss a condition is
    reported in.
    """

    images: jax.Array
    members: jax.Array
    sizes: jax.Array
    groups: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def create(cls, images: np.ndarray, conditions: np.ndarray, groups: tuple[str, ...]) -> "Data":
        """From images and the condition of each, an index into ``groups``.

        Raises:
            ValueError: images and conditions do not fit, or a condition has no image.
        """
        conditions = np.asarray(conditions)
        if conditions.shape != np.shape(images)[:1]:
            raise ValueError(
                f"images and conditions must be equally many, got {np.shape(images)[:1]} and "
                f"{conditions.shape}"
            )
        if not np.array_equal(np.unique(conditions), np.arange(len(groups))):
            raise ValueError(
                f"every condition in 0..{len(groups) - 1} needs an image and there may be no "
                f"other, got {np.unique(conditions).tolist()}"
            )
        sizes = np.bincount(conditions, minlength=len(groups))
        rows = [np.resize(np.flatnonzero(conditions == c), sizes.max()) for c in range(len(groups))]
        return cls(jnp.asarray(images), jnp.asarray(np.stack(rows)), jnp.asarray(sizes), groups)


def _draw(data: Data, key: jax.Array, settings: Settings, num_train_timesteps: int):
    """One batch: images, labels (null = number of conditions), timesteps, noise, conditions."""
    keys = jax.random.split(key, 6)
    n, null = settings.batch_size, data.members.shape[0]
    condition = jax.random.randint(keys[0], (n,), 0, null)
    member = jax.random.randint(keys[1], (n,), 0, data.sizes[condition])
    x0 = data.images[data.members[condition, member]]
    dropped = jax.random.bernoulli(keys[2], settings.condition_dropout, (n,))
    # stratified timesteps: each is uniform, together they cover the range evenly
    strata = (jnp.arange(n) + jax.random.uniform(keys[3], (n,))) / n
    # (n - 1 + u) / n rounds to one in float32 when u is within a few units of one
    t = jnp.minimum((strata * num_train_timesteps).astype(jnp.int32), num_train_timesteps - 1)
    t = jax.random.permutation(keys[4], t)
    labels = jnp.where(dropped, null, condition)
    return x0, labels, t, jax.random.normal(keys[5], x0.shape), condition


@functools.partial(
    jax.jit, static_argnames=("graph", "settings", "sharding"), donate_argnames=("state",)
)
def _step(state, data: Data, schedule: Schedule, key, *, graph, settings: Settings, sharding):
    step = state["step"]
    x0, labels, t, noise, condition = _draw(
        data, jax.random.fold_in(key, step), settings, schedule.num_train_timesteps
    )
    x = jax.vmap(schedule.add_noise)(x0, noise, t)
    target = jax.vmap(schedule.target)(x0, noise, t)
    x, t, labels, target = jax.lax.with_sharding_constraint((x, t, labels, target), sharding)

    def loss(params):
        predicted = nnx.merge(graph, params)(x, t, class_labels=labels)
        each = jnp.mean((predicted - target) ** 2, axis=tuple(range(1, x.ndim)))
        return each.mean(), each

    grads, each = jax.grad(loss, has_aux=True)(state["params"])
    updates, optimizer = settings.optimizer().update(grads, state["optimizer"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    decay = jnp.minimum(settings.ema, (1.0 + step) / (10.0 + step))
    ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state["ema"], params)
    new = {"params": params, "ema": ema, "optimizer": optimizer, "step": step + 1}
    return new, each, condition


def train(
    model: nnx.Module,
    data: Data,
    schedule: Schedule,
    directory: str | Path,
    settings: Settings,
    *,
    checkpoint_every: int = 100,
) -> nnx.Module:
    """Train ``model`` on ``data``; continue from ``directory`` if a run was started there.

    Losses per group are appended to ``losses.jsonl``; the state goes to ``checkpoints/`` every
    ``checkpoint_every`` steps and at the end.

    Returns:
        The model with its averaged (EMA) weights.

    Raises:
        ValueError: ``directory`` holds a run with other settings (the message lists them).
        FileExistsError: ``directory`` holds something that is not a training run.
    """
    folder = _claim(Path(directory), settings, model, data, schedule)
    graph, params = nnx.split(model)
    state = {
        # copies, because every step donates its state and the caller keeps the model
        "params": jax.tree.map(jnp.copy, params),
        "ema": jax.tree.map(jnp.copy, params),
        "optimizer": settings.optimizer().init(params),
        "step": jnp.zeros((), jnp.int32),
    }
    key = jax.random.key(settings.seed)
    # Data parallel over the host's devices, as many as divide the batch.
    num_devices = math.gcd(settings.batch_size, len(jax.devices()))
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("batch",))
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(folder.absolute() / "checkpoints", options=options) as manager:
        first = manager.latest_step()
        if first is not None:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            state = manager.restore(first, args=ocp.args.StandardRestore(abstract))
            logger.info("resuming %s at step %d", folder, first)
        state = jax.device_put(state, whole)
        start = int(state["step"])
        log = _LossLog(folder / "losses.jsonl", data.groups, start)
        with progress("training", total=settings.steps, done=start) as bar:
            for step in range(start, settings.steps):
                state, each, condition = _step(
                    state, data, schedule, key, graph=graph, settings=settings, sharding=split
                )
                log.add(np.asarray(each), np.asarray(condition))
                bar.advance(note=f"loss {float(each.mean()):.4f}")
                done = step + 1
                if done % checkpoint_every == 0 or done == settings.steps:
                    # losses first: a checkpoint never promises losses that were not written
                    log.write(done)
                    manager.save(done, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
    return nnx.merge(graph, state["ema"])


class _LossLog:
    """Mean loss per group since the last line, one JSON line per checkpoint."""

    def __init__(self, path: Path, groups: tuple[str, ...], start: int):
        self.path = path
        self.names = sorted(set(groups), key=groups.index)
        self.group = np.array([self.names.index(g) for g in groups])
        # lines after the checkpoint are recomputed
        kept = [line for line in read_lines(path) if line["step"] <= start]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._reset()

    def _reset(self) -> None:
        self.sums, self.counts = np.zeros(len(self.names)), np.zeros(len(self.names))
        self.started = time.perf_counter()
        self.steps = 0

    def add(self, losses: np.ndarray, conditions: np.ndarray) -> None:
        np.add.at(self.sums, self.group[conditions], losses)
        np.add.at(self.counts, self.group[conditions], 1)
        self.steps += 1

    def write(self, step: int) -> None:
        seconds = (time.perf_counter() - self.started) / self.steps
        means = self.sums / np.maximum(self.counts, 1)
        line: dict[str, Any] = {"step": step, "loss": self.sums.sum() / self.counts.sum()}
        line |= {"groups": dict(zip(self.names, means.round(6).tolist(), strict=True))}
        line |= {"seconds_per_step": round(seconds, 4)}
        append_lines(self.path, [line])
        self._reset()


def _claim(
    folder: Path, settings: Settings, model: nnx.Module, data: Data, schedule: Schedule
) -> Path:
    """Make the directory, or check that it belongs to this very run."""
    wanted = dataclasses.asdict(settings) | {
        "model": model.config,
        "schedule": schedule.to_config(),
        "images": list(data.images.shape),
        "images_sha256": hashlib.sha256(np.asarray(data.images).tobytes()).hexdigest(),
        "conditions": len(data.groups),
    }
    return claim(folder, wanted, what="training")
