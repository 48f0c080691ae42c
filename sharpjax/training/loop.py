"""The training loop: any task, averaged weights, checkpoints that resume exactly.

Every draw of step `k` comes from `fold_in(seed, k)`, so a run that is killed and resumed equals
one that was not, bit for bit.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import math
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sharpjax.rundir.files import append_lines, read_lines, within, write_text
from sharpjax.rundir.progress import progress
from sharpjax.rundir.run import Run
from sharpjax.training.convolutions import with_fast_kernel_gradients

_Module = TypeVar("_Module", bound=nnx.Module)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What defines a training run; a checkpoint of other settings is refused.

    Attributes:
        steps: optimiser steps.
        batch_size: examples a step.
        learning_rate: AdamW's peak, reached after `warmup` steps.
        decay: last fraction of the steps after the warm-up, in which it falls to zero by a cosine.
        ema: decay of the averaged weights, ramped up as `(1 + k) / (10 + k)`.
        clip: largest global gradient norm.
        seed: of weights and of every batch.
    """

    steps: int = 2800
    batch_size: int = 64
    learning_rate: float = 1e-3
    decay: float = 1.0
    warmup: int = 200
    weight_decay: float = 0.0
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("weight_decay", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must lie in (0, 1], got {self.decay}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with warm-up, cosine decay and gradient clipping."""
        warmup = min(self.warmup, self.steps // 2)
        falling = max(round(self.decay * (self.steps - warmup)), 1)
        rate = optax.join_schedules(
            [
                optax.linear_schedule(0.0, self.learning_rate, warmup),
                optax.constant_schedule(self.learning_rate),
                optax.cosine_decay_schedule(self.learning_rate, falling),
            ],
            [warmup, self.steps - falling],
        )
        return optax.chain(
            optax.clip_by_global_norm(self.clip), optax.adamw(rate, weight_decay=self.weight_decay)
        )


class Task(Protocol):
    """What is learned: a pytree that makes batches, and the loss of each example of one."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups whose losses are reported apart."""

    def batch(self, key: jax.Array, n: int) -> tuple[Any, jax.Array]:
        """`n` examples (arrays with a leading axis `n`), and the group of each, `(n,)`.

        A function of the key alone, which is what makes a resumed run the same run.
        """

    def losses(self, model: Any, batch: Any) -> jax.Array:
        """The loss of each example, `(n,)`."""

    def identity(self) -> dict[str, Any]:
        """JSON values that tell this task from another: data, schedule, options."""


def digest(arrays: Any) -> str:
    """SHA-256 of all arrays of a tree: which data, which network."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


@functools.partial(
    jax.jit, static_argnames=("graph", "settings", "sharding"), donate_argnames=("state",)
)
def _step(
    state: Any, task: Task, key: jax.Array, *, graph: Any, settings: Settings, sharding: Any
) -> tuple[Any, jax.Array, jax.Array]:
    step = state["step"]
    batch, group = task.batch(jax.random.fold_in(key, step), settings.batch_size)
    batch = jax.lax.with_sharding_constraint(batch, sharding)

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        each = task.losses(nnx.merge(graph, params), batch)
        return each.mean(), each

    grads, each = jax.grad(loss, has_aux=True)(state["params"])
    updates, optimizer = settings.optimizer().update(grads, state["optimizer"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    decay = jnp.minimum(settings.ema, (1.0 + step) / (10.0 + step))
    ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state["ema"], params)
    new = {"params": params, "ema": ema, "optimizer": optimizer, "step": step + 1}
    return new, each, group


def train(
    model: _Module,
    task: Task,
    directory: str | Path,
    settings: Settings,
    *,
    checkpoint_every: int = 100,
    keep_every: int | None = None,
    origin: str | None = None,
) -> _Module:
    """Train `model` on `task`; continue from `directory` if a run was started there.

    Losses per group are appended to `losses.jsonl`; the state goes to `checkpoints/` every
    `checkpoint_every` steps and at the end.  The last two are kept, and those of every
    `keep_every` steps, whose averaged weights `averaged` reads.  `origin` is a digest of weights
    that another run ended with, where `model` has those.

    Returns:
        The model with its averaged (EMA) weights.

    Raises:
        ValueError: `directory` holds a run with other settings (the message lists them).
        FileExistsError: `directory` holds something that is not a training run.
        FloatingPointError: the loss stopped being finite.
        OSError: a checkpoint cannot be written; those before it are whole.
    """
    if keep_every is not None and keep_every % checkpoint_every:
        raise ValueError(
            f"keep_every must be a multiple of checkpoint_every={checkpoint_every}, "
            f"got {keep_every}"
        )
    about = {"model": cast(Any, model).config} | task.identity()
    about |= {} if origin is None else {"origin_sha256": origin}
    folder = Run.claim(Path(directory), "training", dataclasses.asdict(settings) | about).folder
    plain, params = nnx.split(model)
    graph, _ = nnx.split(with_fast_kernel_gradients(nnx.clone(model)))
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
    with _checkpoints(folder, keep_every=keep_every) as manager:
        first = manager.latest_step()
        if first is not None:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            state = manager.restore(first, args=ocp.args.StandardRestore(abstract))
            logger.info("resuming %s at step %d", folder, first)
        state, task = jax.device_put((state, task), whole)
        start = int(state["step"])
        log = _LossLog(folder / "losses.jsonl", task.groups, start)
        with progress("training", total=settings.steps, done=start) as bar:
            for step in range(start, settings.steps):
                state, each, group = _step(
                    state, task, key, graph=graph, settings=settings, sharding=split
                )
                loss = float(each.mean())
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss is {loss} at step {step} of {settings.steps}; train with less "
                        f"than learning_rate={settings.learning_rate} in another directory"
                    )
                log.add(np.asarray(each), np.asarray(group))
                bar.advance(note=f"loss {loss:.4f}")
                done = step + 1
                if done % checkpoint_every == 0 or done == settings.steps:
                    # losses first: a checkpoint never promises losses that were not written
                    log.write(done)
                    with _telling_where(folder):
                        _check_space(folder, state)
                        manager.save(done, args=ocp.args.StandardSave(state))
        with _telling_where(folder):
            manager.wait_until_finished()
    return nnx.merge(plain, state["ema"])


def kept_steps(directory: str | Path) -> list[int]:
    """Steps whose checkpoints are there."""
    with _checkpoints(Path(directory)) as manager:
        return sorted(manager.all_steps())


def averaged(model: _Module, directory: str | Path, step: int) -> _Module:
    """The model with the averaged weights of a step that was kept.

    Raises:
        FileNotFoundError: there is no checkpoint of that step; the message lists those there are.
    """
    if step not in (steps := kept_steps(directory)):
        raise FileNotFoundError(f"{directory} keeps no checkpoint of step {step}, but of {steps}")
    graph, params = nnx.split(model)
    path = Path(directory).absolute() / "checkpoints" / str(step) / "default"
    wanted = {"ema": jax.tree.map(ocp.utils.to_shape_dtype_struct, params)}
    arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
    with ocp.PyTreeCheckpointer() as reader:
        state = reader.restore(
            path, args=ocp.args.PyTreeRestore(wanted, arguments, partial_restore=True)
        )
    return nnx.merge(graph, state["ema"])


@contextlib.contextmanager
def _checkpoints(folder: Path, *, keep_every: int | None = None) -> Iterator[ocp.CheckpointManager]:
    options = ocp.CheckpointManagerOptions(max_to_keep=2, keep_period=keep_every)
    manager = ocp.CheckpointManager(within(folder.absolute(), "checkpoints"), options=options)
    try:
        yield manager
    finally:
        # closing waits for a checkpoint under way, and repeats the error of one that broke off
        with _telling_where(folder):
            manager.close()


def _check_space(folder: Path, state: Any) -> None:
    """Refuse to begin a checkpoint that would not fit: one that breaks off is noisy."""
    needed = 1.2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"it takes {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free")


@contextlib.contextmanager
def _telling_where(folder: Path) -> Iterator[None]:
    """Errors of the checkpoint writer as one that says what is lost: nothing before it."""
    try:
        yield
    except Exception as error:
        raise OSError(
            f"cannot write a checkpoint to {folder / 'checkpoints'} (is the disk full?): "
            f"{str(error).splitlines()[0]}; the checkpoints before it are whole, and the same "
            "command goes on from the last"
        ) from error


class _LossLog:
    """Mean loss per group since the last line, one JSON line per checkpoint."""

    def __init__(self, path: Path, groups: tuple[str, ...], start: int):
        self.path = path
        self.names = groups
        # lines after the checkpoint are recomputed
        kept = [line for line in read_lines(path) if line["step"] <= start]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._reset()

    def _reset(self) -> None:
        self.sums, self.counts = np.zeros(len(self.names)), np.zeros(len(self.names))
        self.started = time.perf_counter()
        self.steps = 0

    def add(self, losses: np.ndarray, group: np.ndarray) -> None:
        np.add.at(self.sums, group, losses)
        np.add.at(self.counts, group, 1)
        self.steps += 1

    def write(self, step: int) -> None:
        seconds = (time.perf_counter() - self.started) / self.steps
        line: dict[str, Any] = {"step": step, "loss": self.sums.sum() / self.counts.sum()}
        line["groups"] = {  # null where no example was of the group
            name: round(float(total / count), 6) if count else None
            for name, total, count in zip(self.names, self.sums, self.counts, strict=True)
        }
        line |= {"seconds_per_step": round(seconds, 4), "peak_memory_mb": _peak_memory_mb()}
        append_lines(self.path, [line])
        self._reset()


def _peak_memory_mb() -> int:
    """Largest resident size of this process so far."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kilobytes / (1024 if sys.platform != "darwin" else 1024**2))
