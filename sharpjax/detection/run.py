"""A detection run: statistics of every condition, resumable, on any number of devices and hosts.

Results go to ``results.jsonl``, one fsynced line per condition, so a killed run goes on where it
stopped.  A batch that is not whole on disk is computed again whole: the same program on the same
numbers gives the same bits, whenever the run was killed.

Of n processes (``jax.distributed``) with a directory in common, process i takes
``conditions[i::n]`` on its own devices and writes ``results.i.jsonl``.  They exchange nothing while
they compute; at the end they wait for each other and read all results.
"""

import dataclasses
import functools
import hashlib
import json
import warnings
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
from sharpjax.detection.columns import Columns
from sharpjax.detection.oracle import TrainingSet
from sharpjax.detection.settings import DetectSettings
from sharpjax.detection.statistics import STATISTICS
from sharpjax.devices import check_own, wait_for_all
from sharpjax.progress import progress
from sharpjax.rundir import append_lines, claim, read_lines
from sharpjax.schedules import Schedule

RESULTS_NAME, SECONDS_NAME = "results.jsonl", "seconds.jsonl"


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
        conditions: names or prompts that the model can encode; one may stand there twice.
        directory: of the run.
        settings: what to compute.
        fingerprint: of the model's weights; a run refuses to go on with another model.
        training_set: if the model's is known, the exact-score oracle is computed at the same
            points, for the statistics of the first step and the traces.
        labels: the training set's number of each of ``conditions``; needed with it.
        batch_size: conditions at a time; changes the speed, and the numbers by rounding.
        mesh: devices of this process to use, along an axis "points", which splits the batches, an
            axis "probes", which shares the probes of a trace, or both. The numbers are those of one
            device, to rounding.

    Returns:
        One record per condition, in the order given and the same in all processes: ``index``,
        ``condition``, ``network`` and ``oracle``, which map ``statistic@t`` to the values at each
        noise (those of `guidance_alignment` are its two terms, those of `step_displacement` the
        lengths of all steps). Where the network gave NaN or infinite values, ``failed`` says of
        what, in place of ``network``.  ``pd.json_normalize(records)`` is the table of them, a
        column ``network.statistic@t`` each.

    Raises:
        ValueError: unknown conditions, timesteps out of range, statistics that this model cannot
            give, a directory with another run in it, a mesh with other axes or with devices of
            another process.
        FileExistsError: the directory holds something else.
        FileNotFoundError: the processes do not share the directory.
        OSError: results cannot be written; those before are on disk.
        ConnectionError: another process ended before its share was done. What is finished is on
            disk.
    """
    conditions = list(conditions)
    if not conditions:
        raise ValueError("there is nothing to detect: no conditions")
    if (training_set is None) != (labels is None):
        raise ValueError("training_set and labels go together")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if mesh is not None:
        check_mesh(mesh)
        check_own(mesh)
        mesh = Mesh(mesh.devices, mesh.axis_names)  # shardings are XLA's business: no other types
    model.check(conditions)
    if not model.has_unconditional:
        _check_conditional_alone(settings)
    settings.names(model.schedule)
    model.schedule.alpha(np.array(settings.trace_timesteps))  # checks the range
    folder = claim(
        directory,
        {
            "run": "detect",
            "model": fingerprint,
            "conditions": hashlib.sha256(json.dumps(conditions).encode()).hexdigest(),
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
    share = list(range(index, len(conditions), count))
    batch_size = min(batch_size, max(len(share), 1))
    batches = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
    if mesh is not None:  # once, not with every batch
        model, training_set = jax.device_put(
            (model, training_set), NamedSharding(mesh, PartitionSpec())
        )
    compute = Columns(model, settings, mesh=mesh)
    with progress("detecting", total=len(share), done=sum(i in done for i in share)) as bar:
        for rows in batches:
            missing = [i for i in rows if i not in done]
            if not missing:
                continue
            padded = np.resize(rows, batch_size)  # a full last batch: one compilation
            encoded = _encode(model, [conditions[i] for i in padded])
            network, states = compute(encoded, padded)
            columns = {"network": network}
            if training_set is not None:
                columns["oracle"] = _oracle(
                    training_set, model.schedule, jnp.asarray(labels)[padded],
                    compute.noises(padded), states, settings=settings, mesh=mesh,
                )  # fmt: skip
            found = {
                who: {name: np.asarray(values[name]) for name in compute.names if name in values}
                for who, values in columns.items()
            }
            places = {i: rows.index(i) for i in missing}
            records = [_record(i, conditions[i], found, place) for i, place in places.items()]
            append_lines(path, records)
            done |= {record["index"]: record for record in records}
            bar.advance(len(missing))
    _write_seconds(folder, compute, batch_size)
    if count > 1:
        wait_for_all("detect")
        done = _read_results(folder, path, conditions)
        if absent := [name for i, name in enumerate(conditions) if i not in done]:
            raise FileNotFoundError(
                f"{folder} lacks the results of {len(absent)} of {len(conditions)} conditions "
                f"({absent[0]!r}), though all {count} processes are done: is it one directory "
                "that all of them share?"
            )
    return [done[i] for i in range(len(conditions))]


def _check_conditional_alone(settings: DetectSettings) -> None:
    able = [name for name, entry in STATISTICS.items() if not entry.unconditional]
    if lacking := [name for name in settings.statistics if name not in able]:
        raise ValueError(
            f"{', '.join(lacking)} cannot be computed: this model has no unconditional score; "
            f"choose --statistics {','.join(able)}"
        )


def _encode(model: ConditionalModel, conditions: list[str]) -> Array:
    with warnings.catch_warnings():  # of a prompt that is too long: ``check`` announced it
        warnings.simplefilter("ignore", UserWarning)
        return model.encode(conditions)


def _record(
    index: int, condition: str, columns: dict[str, dict[str, np.ndarray]], place: int
) -> dict[str, Any]:
    """A line of the results; JSON has no NaN, and a mean over one that is wrong would hide it."""
    head: dict[str, Any] = {"index": index, "condition": condition}
    bad = [name for name, v in columns["network"].items() if not np.isfinite(v[place]).all()]
    if bad:
        return head | {"failed": f"{', '.join(bad)} not finite"}
    return head | {
        who: {name: values[place].tolist() for name, values in found.items()}
        for who, found in columns.items()
    }


def result_files(folder: Path) -> list[Path]:
    """What the processes of a run have written."""
    return sorted(folder.glob("results.*jsonl"))


def _read_results(folder: Path, own: Path, conditions: Sequence[str]) -> dict[int, dict[str, Any]]:
    """The records of all processes by index; those of others may be growing meanwhile."""
    done: dict[int, dict[str, Any]] = {}
    for path in result_files(folder):
        for record in read_lines(path, {"index", "condition"}, repair=path == own):
            place = record["index"]
            known = place in range(len(conditions)) and conditions[place] == record["condition"]
            if not known or not {"network", "failed"} & record.keys():
                raise ValueError(
                    f"{path}: record {place} of {record['condition']!r} is not of this run"
                )
            done.setdefault(place, record)  # computed twice, they are equal
    return done


def _write_seconds(folder: Path, compute: Columns, batch_size: int) -> None:
    """What every part took: apart from the results, which are the same each time."""
    if compute.seconds:
        line = {"batch_size": batch_size, "seconds": compute.seconds}
        append_lines(folder / SECONDS_NAME, [line])


@functools.partial(jax.jit, static_argnames=("settings", "mesh"))
def _oracle(
    training_set: TrainingSet,
    schedule: Schedule,
    conditions: Array,
    noises: Array,
    states: Array | None,
    *,
    settings: DetectSettings,
    mesh: Mesh | None,
) -> dict[str, Array]:
    """The same columns of the exact score at the same points; its traces are closed forms."""
    first_step = settings.timesteps(schedule)[0]
    first_names, trace_names = settings.chosen("first"), settings.chosen("level")
    options = {"hessian_score_difference": {"squared": settings.squared}}

    def first(
        training_set: TrainingSet, schedule: Schedule, condition: Array, x: Array
    ) -> dict[str, Array]:
        pair = training_set.scores(
            condition, alpha=schedule.alpha(first_step), sigma=schedule.sigma(first_step)
        )
        return {
            f"{name}@{first_step}": STATISTICS[name].function(pair, x, **options.get(name, {}))
            for name in first_names
        }

    def traces(
        training_set: TrainingSet, schedule: Schedule, condition: Array, visited: Array
    ) -> dict[str, Array]:
        columns: dict[str, Array] = {}
        for t, x in zip(settings.trace_timesteps, visited, strict=True):
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            everything, own = training_set.densities(condition, alpha=alpha, sigma=sigma)
            dimension = own.effective_dimension(x)
            difference = (dimension - everything.effective_dimension(x)) / sigma**2
            values = {"effective_dimension": dimension, "trace_difference": difference}
            columns |= {f"{name}@{t}": values[name] for name in trace_names}
        return columns

    # One point at a time: a batch of them would hold a copy of the training set each.
    def part(common: Any, batch: Any) -> Any:
        def per_condition(own: Any) -> Any:
            condition, noises, visited = own
            columns = jax.lax.map(lambda x: first(common[0], common[1], condition, x), noises)
            if trace_names:
                columns |= jax.lax.map(
                    lambda x: traces(common[0], common[1], condition, x), visited
                )
            return columns

        return jax.lax.map(per_condition, batch)

    shape = training_set.images.shape[1:]
    noises = jnp.broadcast_to(noises, (len(conditions), *noises.shape[-1 - len(shape) :]))
    states = noises if states is None else states
    result: dict[str, Array] = over_points(
        part, mesh, (training_set, schedule), (conditions, noises, states)
    )
    return result
