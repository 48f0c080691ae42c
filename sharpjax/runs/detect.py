"""A detection run: statistics of every condition, resumable, on any number of devices and hosts.

Results go to `results.jsonl`, one fsynced line per condition, so a killed run goes on where it
stopped.  A batch that is not whole on disk is computed again whole: the same program on the same
numbers gives the same bits, whenever the run was killed.

Of n processes (`jax.distributed`) with a directory in common, process i takes
`conditions[i::n]` on its own devices and writes `results.i.jsonl`.  They exchange nothing while
they compute; at the end they wait for each other and read all results.
"""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sharpjax._types import Array
from sharpjax.checkpoints.sharding import replicated
from sharpjax.conditional import ConditionalModel, digest
from sharpjax.detection.compute import Columns
from sharpjax.detection.oracle import TrainingSet, exact_columns
from sharpjax.detection.settings import DetectSettings
from sharpjax.detection.statistics import STATISTICS
from sharpjax.mesh.devices import check_own, wait_for_all
from sharpjax.mesh.loops import check_mesh
from sharpjax.rundir.files import append_lines
from sharpjax.rundir.run import Run

SECONDS_NAME = "seconds.jsonl"


def detect(
    model: ConditionalModel,
    conditions: Sequence[str],
    directory: str | Path,
    settings: DetectSettings,
    *,
    fingerprint: str | None = None,
    training_set: TrainingSet | None = None,
    labels: np.ndarray | None = None,
    batch_size: int = 4,
    mesh: Mesh | None = None,
) -> list[dict[str, Any]]:
    """Compute the statistics of `conditions`, or finish a run that was stopped.

    A run may be finished on other devices and by another number of processes than began it.

    Args:
        model: any conditional model.
        conditions: names or prompts that the model can encode; one may stand there twice.
        directory: of the run.
        settings: what to compute.
        fingerprint: of the model, which a run goes on with alone; `None`: a digest of its arrays.
        training_set: if the model's is known, the exact-score oracle is computed at the same
            points, for the statistics of the first step and the traces.
        labels: the training set's number of each of `conditions`; needed with it.
        batch_size: conditions at a time; changes the speed, and the numbers by rounding.
        mesh: devices of this process to use, along an axis "points", which splits the batches, an
            axis "probes", which shares the probes of a trace, or both. The numbers are those of one
            device, to rounding.

    Returns:
        One record per condition, in the order given and the same in all processes: `index`,
        `condition`, `network` and `oracle`, which map `statistic@t` to the values at each
        noise (of statistics with `parts`, all of these). Where the network gave NaN or infinite
        values, `failed` says of what, in place of `network`.  `pd.json_normalize(records)` is the
        table of them, a column `network.statistic@t` each.

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
    fingerprint = fingerprint or digest(model)
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
    able = [name for name, entry in STATISTICS.items() if not entry.unconditional]
    lacking = [name for name in settings.statistics if name not in able]
    if lacking and not model.has_unconditional:
        raise ValueError(
            f"{', '.join(lacking)} cannot be computed: this model has no unconditional score; "
            f"choose --statistics {','.join(able)}"
        )
    settings.names(model.schedule)
    model.schedule.alpha(np.array(settings.trace_timesteps))  # checks the range
    index, count = jax.process_index(), jax.process_count()
    run = Run.claim(
        directory,
        "detect",
        {
            "model": fingerprint,
            "conditions": hashlib.sha256(json.dumps(conditions).encode()).hexdigest(),
            "num_conditions": len(conditions),
            "oracle": training_set is not None,
            **dataclasses.asdict(settings),
        },
        key=["index"],
        fields=["condition"],
        process=index if count > 1 else None,
    )
    _check_records(run, conditions)
    # By the list and not by what is left of it, which processes may see at different times.
    share = list(range(index, len(conditions), count))
    batch_size = min(batch_size, max(len(share), 1))
    if mesh is not None:  # once, not with every batch
        model, training_set = replicated((model, training_set), mesh)
    compute = Columns(model, settings, mesh=mesh)

    def batch(rows: Sequence[int], missing: list[int]) -> Iterator[dict[str, Any]]:
        padded = np.resize(rows, batch_size)  # a full last batch: one compilation
        network, states = compute(_encode(model, [conditions[i] for i in padded]))
        columns = {"network": network}
        if training_set is not None:
            columns["oracle"] = exact_columns(
                training_set, model.schedule, jnp.asarray(labels)[padded],
                compute.noises, states, settings=settings, mesh=mesh,
            )  # fmt: skip
        found = {
            who: {name: np.asarray(values[name]) for name in compute.names if name in values}
            for who, values in columns.items()
        }
        for i in missing:
            at = list(rows).index(i)
            one = {
                who: {name: v[at] for name, v in values.items()} for who, values in found.items()
            }
            yield {"index": i, "condition": conditions[i]} | finite(one)

    batches = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
    run.work("detecting", batches, batch)
    if compute.seconds:  # what every part took: not with the results, which are the same each time
        line = {"batch_size": batch_size, "seconds": compute.seconds}
        append_lines(run.folder / SECONDS_NAME, [line])
    if count > 1:
        wait_for_all("detect")
        run.read()
        _check_records(run, conditions)
        if absent := [name for i, name in enumerate(conditions) if i not in run.done]:
            raise FileNotFoundError(
                f"{run.folder} lacks the results of {len(absent)} of {len(conditions)} conditions "
                f"({absent[0]!r}), though all {count} processes are done: is it one directory "
                "that all of them share?"
            )
    return [run.done[i] for i in range(len(conditions))]


def _encode(model: ConditionalModel, conditions: list[str]) -> Array:
    with warnings.catch_warnings():  # of a prompt that is too long: `check` announced it
        warnings.simplefilter("ignore", UserWarning)
        return model.encode(conditions)


def finite(columns: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Of a record: JSON has no NaN, and a mean over a value that is wrong would hide it."""
    bad = [name for name, v in columns["network"].items() if not np.isfinite(v).all()]
    if bad:
        return {"failed": f"{', '.join(bad)} not finite"}
    return {who: {name: v.tolist() for name, v in found.items()} for who, found in columns.items()}


def _check_records(run: Run, conditions: Sequence[str]) -> None:
    for place, record in run.done.items():
        known = place in range(len(conditions)) and conditions[place] == record["condition"]
        if not known or not {"network", "failed"} & record.keys():
            raise ValueError(
                f"{run.folder}: record {place} of {record['condition']!r} is not of this run"
            )
