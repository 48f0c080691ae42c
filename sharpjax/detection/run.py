"""A detection run: statistics of every condition, resumable, on any number of devices and hosts.

Results go to ``results.jsonl``, one fsynced line per condition, so a killed run goes on where it
stopped.  Noises and probes depend on the seed and their index only, never on the batch, nor on the
devices that it is split over.

Of n processes (``jax.distributed``) with a directory in common, process i takes
``conditions[i::n]`` on its own devices and writes ``results.i.jsonl``.  They exchange nothing while
they compute; at the end they wait for each other and read all results.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sharpjax._types import Array
from sharpjax.conditional import ConditionalModel
from sharpjax.curvature.loops import check_mesh, over_points
from sharpjax.detection.oracle import TrainingSet
from sharpjax.detection.statistics import STATISTICS
from sharpjax.devices import check_own, wait_for_all
from sharpjax.progress import progress
from sharpjax.rundir import append_lines, claim, read_lines
from sharpjax.sampling import sample

RESULTS_NAME = "results.jsonl"
FIRST_STEP = tuple(name for name, entry in STATISTICS.items() if entry.where == "first")
TRACES = tuple(name for name, entry in STATISTICS.items() if entry.where == "level")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectSettings:
    """What defines the numbers of a detection run.

    Attributes:
        num_noises: initial noises a condition, shared by all conditions.
        trace_noises: how many of these noises the traces are taken at.
        trace_timesteps: where; the state there is reached by DDIM under the condition.
        num_probes: Hutchinson probes a trace, shared by all conditions.
        path_steps: DDIM steps between two trace timesteps.
        seed: of noises and probes.
    """

    num_noises: int = 4
    trace_noises: int = 2
    trace_timesteps: tuple[int, ...] = (981, 800, 600)
    num_probes: int = 4
    path_steps: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_noises", 2), ("trace_noises", 2)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} must be at least {least}, got {getattr(self, name)}: "
                    "one noise has no standard error"
                )
        for name in ("num_probes", "path_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if list(self.trace_timesteps) != sorted(set(self.trace_timesteps), reverse=True):
            raise ValueError(f"trace_timesteps must descend, got {self.trace_timesteps}")

    def names(self, first_step: int) -> tuple[str, ...]:
        """Names of all columns: ``statistic@t``."""
        return tuple(f"{name}@{first_step}" for name in FIRST_STEP) + tuple(
            f"{name}@{t}" for name in TRACES for t in self.trace_timesteps
        )


def detect(
    model: ConditionalModel,
    conditions: Sequence[str],
    directory: str | Path,
    settings: DetectSettings,
    *,
    fingerprint: str,
    training_set: TrainingSet | None = None,
    labels: np.ndarray | None = None,
    batch_size: int = 4,
    mesh: Mesh | None = None,
) -> list[dict[str, Any]]:
    """Compute the statistics of ``conditions``, or finish a run that was stopped.

    A run may be finished on other devices and by another number of processes than began it.

    Args:
        model: any conditional model.
        conditions: distinct names that the model can encode.
        directory: of the run.
        settings: what to compute.
        fingerprint: of the model's weights; a run refuses to go on with another model.
        training_set: if the model's is known, the exact-score oracle is computed at the same
            points.
        labels: the training set's number of each of ``conditions``; needed with it.
        batch_size: conditions at a time; changes the speed only.
        mesh: devices of this process to use, along an axis "points", which splits the batches, an
            axis "probes", which shares the probes of a trace, or both. The numbers are those of one
            device, to rounding.

    Returns:
        One record per condition, in the order given and the same in all processes: ``condition``,
        ``network`` and ``oracle``, which map ``statistic@t`` to the values at each noise.

    Raises:
        ValueError: duplicate or unknown conditions, timesteps out of range, a directory with
            another run in it, a mesh with other axes or with devices of another process.
        FileExistsError: the directory holds something else.
        FileNotFoundError: the processes do not share the directory.
        ConnectionError: another process ended before its share was done. What is finished is on
            disk.
    """
    if len(set(conditions)) != len(conditions):
        raise ValueError("conditions must be distinct")
    if (training_set is None) != (labels is None):
        raise ValueError("training_set and labels go together")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if mesh is not None:
        check_mesh(mesh)
        check_own(mesh)
        mesh = Mesh(mesh.devices, mesh.axis_names)  # shardings are XLA's business: no other types
    encoded = model.encode(conditions)
    first_step = int(model.schedule.timesteps(50)[0])
    model.schedule.alpha(np.array([first_step, *settings.trace_timesteps]))  # checks the range
    folder = claim(
        directory,
        {
            "run": "detect",
            "model": fingerprint,
            "conditions": hashlib.sha256("\n".join(conditions).encode()).hexdigest(),
            "num_conditions": len(conditions),
            "oracle": training_set is not None,
            **dataclasses.asdict(settings),
        },
        what="detect",
    )
    index, count = jax.process_index(), jax.process_count()
    path = folder / (RESULTS_NAME if count == 1 else f"results.{index}.jsonl")
    done = _read_results(folder, path, conditions)
    # By the list and not by what is left of it, which processes may see at different times.
    share = range(index, len(conditions), count)
    todo = [i for i in share if conditions[i] not in done]
    batch_size = min(batch_size, max(len(share), 1))
    if mesh is not None and todo:  # once, not with every batch
        model, training_set = jax.device_put(
            (model, training_set), NamedSharding(mesh, PartitionSpec())
        )
    with progress("detecting", total=len(share), done=len(share) - len(todo)) as bar:
        for start in range(0, len(todo), batch_size):
            rows = todo[start : start + batch_size]
            padded = np.resize(rows, batch_size)  # a full last batch: one compilation
            network, states = _network(
                model, encoded[padded], first_step=first_step, settings=settings, mesh=mesh
            )
            columns = {"network": network}
            if training_set is not None:
                columns["oracle"] = _oracle(
                    training_set, model.schedule, jnp.asarray(labels)[padded], states,
                    first_step=first_step, settings=settings, mesh=mesh,
                )  # fmt: skip
            order = settings.names(first_step)
            columns = {
                who: {name: np.asarray(values[name]) for name in order}
                for who, values in columns.items()
            }
            records = [
                {"condition": conditions[i]}
                | {who: {k: v[j].tolist() for k, v in c.items()} for who, c in columns.items()}
                for j, i in enumerate(rows)
            ]
            append_lines(path, records)
            done |= {record["condition"]: record for record in records}
            bar.advance(len(rows))
    if count > 1:
        wait_for_all("detect")
        done = _read_results(folder, path, conditions)
        if missing := [name for name in conditions if name not in done]:
            raise FileNotFoundError(
                f"{folder} lacks the results of {len(missing)} of {len(conditions)} conditions "
                f"({missing[0]!r}), though all {count} processes are done: is it one directory "
                "that all of them share?"
            )
    return [done[name] for name in conditions]


def result_files(folder: Path) -> list[Path]:
    """What the processes of a run have written."""
    return sorted(folder.glob("results.*jsonl"))


def _read_results(folder: Path, own: Path, conditions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The records of all processes by condition; those of others may be growing meanwhile."""
    done: dict[str, dict[str, Any]] = {}
    for path in result_files(folder):
        for record in read_lines(path, {"condition", "network"}, repair=path == own):
            if record["condition"] not in conditions:
                raise ValueError(f"{path}: {record['condition']!r} is not a condition of this run")
            done.setdefault(record["condition"], record)  # computed twice, they are equal
    return done


def _noises(shape: tuple[int, ...], settings: DetectSettings) -> Array:
    """Initial noises, ``(num_noises, *shape)``; noise ``i`` depends on the seed and ``i`` only."""
    key = jax.random.fold_in(jax.random.key(settings.seed), 0)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(settings.num_noises))
    return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


def _network(model, conditions, *, first_step: int, settings: DetectSettings, mesh: Mesh | None):
    """All columns for a batch of conditions, each ``(batch, noises)``, and the states visited.

    Timesteps are arguments of the compiled parts, so each is compiled once.
    """
    noises = _noises(model.shape, settings)
    values = _first_step(model, conditions, noises, first_step, mesh=mesh)
    columns = {f"{name}@{first_step}": value for name, value in values.items()}

    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    x = jnp.broadcast_to(
        noises[: settings.trace_noises], (len(conditions), settings.trace_noises, *model.shape)
    )
    states, here = [], first_step
    for t in settings.trace_timesteps:
        stops = np.linspace(here, t, settings.path_steps + 1).round().astype(np.int32)
        x, here = (x if t == here else _walk(model, conditions, x, stops, mesh=mesh)), t
        values = _traces(model, conditions, x, t, key, num_probes=settings.num_probes, mesh=mesh)
        columns |= {f"{name}@{t}": value for name, value in values.items()}
        states.append(x)
    return columns, jnp.stack(states, axis=2)


@functools.partial(jax.jit, static_argnames="mesh")
def _first_step(model, conditions, noises, t, *, mesh):
    def part(common, conditions):
        model, noises, t = common

        def one(condition, x):
            pair = model.scores(condition, t)
            here = pair.linearize(x)  # of the three statistics together, 4 evaluations and not 8
            return {
                name: STATISTICS[name].function(pair, x, linearized=here) for name in FIRST_STEP
            }

        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(conditions, noises)

    return over_points(part, mesh, (model, noises, t), conditions)


@functools.partial(jax.jit, static_argnames="mesh")
def _walk(model, conditions, points, timesteps, *, mesh):
    """DDIM under each condition from the first to the last of ``timesteps``."""

    def part(common, batch):
        model, timesteps = common

        def one(condition, x):
            def score_at(x, t):
                return model.scores(condition, t).conditional(x)

            return sample(score_at, x, model.schedule, timesteps=timesteps)

        return jax.vmap(jax.vmap(one, (None, 0)))(*batch)

    return over_points(part, mesh, (model, timesteps), (conditions, points))


@functools.partial(jax.jit, static_argnames=("num_probes", "mesh"))
def _traces(model, conditions, points, t, key, *, num_probes: int, mesh):
    def part(common, batch):
        model, t, key = common
        conditions, points = batch

        def one(condition, index, x):
            pair = model.scores(condition, t)
            probes = jax.random.fold_in(jax.random.fold_in(key, index), t)
            return {
                name: STATISTICS[name].function(pair, x, key=probes, num_probes=num_probes)
                for name in TRACES
            }

        indices = jnp.arange(points.shape[1])
        return jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, 0))(conditions, indices, points)

    return over_points(part, mesh, (model, t, key), (conditions, points))


@functools.partial(jax.jit, static_argnames=("first_step", "settings", "mesh"))
def _oracle(training_set, schedule, conditions, states, *, first_step, settings, mesh):
    """The same columns of the exact score at the same points; its traces are closed forms."""

    def first(training_set, schedule, condition, x):
        pair = training_set.scores(
            condition, alpha=schedule.alpha(first_step), sigma=schedule.sigma(first_step)
        )
        return {f"{name}@{first_step}": STATISTICS[name].function(pair, x) for name in FIRST_STEP}

    def traces(training_set, schedule, condition, visited):
        columns = {}
        for t, x in zip(settings.trace_timesteps, visited, strict=True):
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            everything, own = training_set.densities(condition, alpha=alpha, sigma=sigma)
            dimension = own.effective_dimension(x)
            columns[f"effective_dimension@{t}"] = dimension
            difference = (dimension - everything.effective_dimension(x)) / sigma**2
            columns[f"trace_difference@{t}"] = difference
        return columns

    # One point at a time: a batch of them would hold a copy of the training set each.
    def part(common, batch):
        *known, noises = common

        def per_condition(pair):
            condition, visited = pair
            columns = jax.lax.map(lambda x: first(*known, condition, x), noises)
            return columns | jax.lax.map(lambda x: traces(*known, condition, x), visited)

        return jax.lax.map(per_condition, batch)

    noises = _noises(training_set.images.shape[1:], settings)
    return over_points(part, mesh, (training_set, schedule, noises), (conditions, states))
