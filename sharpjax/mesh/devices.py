"""The devices of this process, and the processes of a run.

On CPU, XLA shows one device whose convolutions use one core only. So a CPU is made into one device
a core, which has to be said before JAX starts a backend: before the first array.
"""

import os
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.sharding import Mesh

from sharpjax._checks import positive_integer
from sharpjax.mesh.loops import POINTS

# A process that is silent for so long is taken for dead, and JAX aborts the others.
HEARTBEAT_SECONDS = 30
ARRIVAL_SECONDS = 300  # how long processes wait at the start for those that are missing
_A_WEEK = 7 * 24 * 3600 * 1000  # in milliseconds


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def split_cpu(num_devices: int | None = None) -> None:
    """Make the CPU into `num_devices` devices, at most and by default one a core.

    Does nothing where their number is fixed already: by the environment (`JAX_NUM_CPU_DEVICES`,
    `--xla_force_host_platform_device_count` in `XLA_FLAGS`), or because a backend has started.

    Raises:
        ValueError: `num_devices` is not a positive integer.
    """
    cores = num_cores()
    wanted = cores if num_devices is None else positive_integer("devices", num_devices)
    if _is_forced():
        return
    try:
        jax.config.update("jax_num_cpu_devices", min(wanted, cores))
    except RuntimeError:  # a backend has started
        return


def _is_forced() -> bool:
    flag = "xla_force_host_platform_device_count"
    return "JAX_NUM_CPU_DEVICES" in os.environ or flag in os.environ.get("XLA_FLAGS", "")


def local_mesh(num_devices: int | None = None, *, axis: str = POINTS) -> Mesh | None:
    """The first `num_devices` devices of this process along an axis; None for one device.

    Args:
        num_devices: all by default.
        axis: its name.

    Raises:
        ValueError: not a positive integer, or more than there are.

    >>> import jax
    >>> local_mesh(1) is None
    True
    """
    present = jax.local_devices()
    count = positive_integer("devices", len(present) if num_devices is None else num_devices)
    if count > len(present):
        if present[0].platform != "cpu":
            advice = f"ask for at most {len(present)}, or make more visible to this process"
        elif _is_forced():
            advice = "XLA_FLAGS or JAX_NUM_CPU_DEVICES fix their number; ask for fewer, or raise it"
        else:
            advice = (
                f"on CPU the command line makes one a core, and this process may use {num_cores()};"
                " ask for fewer, or set JAX_NUM_CPU_DEVICES to have more than cores"
            )
        kinds = ", ".join(sorted({device.device_kind for device in present}))
        raise ValueError(
            f"{count} devices were asked for, this process has {len(present)} ({kinds}): {advice}"
        )
    return Mesh(np.array(present[:count]), (axis,)) if count > 1 else None


def check_own(mesh: Mesh) -> None:
    """Let a mesh pass if this process can feed all of its devices alone.

    Raises:
        ValueError: it has devices of other processes.
    """
    foreign = sum(device.process_index != jax.process_index() for device in mesh.devices.flat)
    if foreign:
        raise ValueError(
            f"the mesh has {foreign} devices of other processes; make it of this process's own, "
            "jax.local_devices(): work is shared over processes without a mesh"
        )


def join(coordinator: str, num_processes: int, index: int) -> None:
    """Make this process number `index` of `num_processes`, before JAX starts a backend.

    If one of them dies, JAX aborts the others, at the latest `HEARTBEAT_SECONDS` later. It does so
    from a thread of its own, past all handlers of exceptions: what is to be said is said before.

    Args:
        coordinator: `HOST:PORT`; process 0 listens there.
        num_processes: how many there are.
        index: which of them this is, from 0.

    Raises:
        ConnectionError: process 0 cannot listen there.
    """
    # JAX would catch SIGTERM to tell of preemptions, which nobody here asks for.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            index,
            cluster_detection_method="deactivate",  # Slurm would be given one device a process
            initialization_timeout=ARRIVAL_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except RuntimeError as error:
        raise ConnectionError(
            f"cannot join the other processes at {coordinator}: {error}"
        ) from error


def wait_for_all(what: str) -> None:
    """Wait until every process of the run is here.

    By the coordination service, which notices a death, and not by a collective: those on CPU give
    up after 30 seconds, and shares of work may differ by more.

    Raises:
        ConnectionError: a process has died.
    """
    try:
        client: Any = distributed.global_state.client  # there: the caller is one of several
        client.wait_at_barrier(f"sharpjax {what}", _A_WEEK)
    except RuntimeError as error:
        raise ConnectionError(
            "another process of this run has ended before its share was done; what is finished is "
            "on disk, and the same commands go on from there"
        ) from error
