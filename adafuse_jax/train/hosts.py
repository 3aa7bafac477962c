"""The processes of a job: how they find each other, what they agree on, and which of them writes.

Every process runs the same command. The devices of all of them form one mesh (`train.mesh`), each reads its
own blocks of the batches (`input.pipeline`), and the first writes what a run leaves; checkpoints are written
together. The workdir and the data lie where all can reach them.
"""

import logging
import os
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from adafuse_jax.errors import UserError
from adafuse_jax.train import faults, mesh

_log = logging.getLogger(__name__)

_FLAGS = ("coordinator", "num_processes", "process_id")
_JAX = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# What tells that a job of several processes was started, and that JAX finds them by itself: tasks of one
# `srun` (not those that an allocation could have), of one `mpirun`, hosts of one TPU slice or of several.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_LISTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
_SLICES = "MEGASCALE_NUM_SLICES"


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None):
    """Joins the other processes of the job, if it has any; to be called before JAX finds its devices.

    Args:
        coordinator: HOST:PORT of the first process; where None, JAX_COORDINATOR_ADDRESS, and so the others
            (JAX_NUM_PROCESSES, JAX_PROCESS_ID). Without any the job is what SLURM, Open MPI or a TPU pod on
            GKE says in the environment, or this process alone; "auto" lets JAX find out in its own ways.
        num_processes: of the job.
        process_id: which of them this is, from 0.

    Raises:
        UserError: where some of the three are missing or impossible, or the others don't answer.
    """
    given = coordinator, num_processes, process_id
    asked = [
        flag if flag is not None else os.environ.get(name) for flag, name in zip(given, _JAX, strict=True)
    ]
    if asked == ["auto", None, None]:
        address = count = index = None
    elif asked != [None] * 3:
        address, count, index = _check(*asked)
    elif _clustered(os.environ):
        address = count = index = None
    else:
        return
    who = "the job's other processes" if address is None else f"{count} processes at {address}"
    _log.info("joining %s; where they don't come, JAX ends this process after 5 minutes", who)
    # The loop stops by itself, all processes after the same step (`Agreement`).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(address, count, index)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"distributed: expected {who}, found {faults.reason(error)}") from error


def _check(address, count, index) -> tuple[str, int, int]:
    for name, variable, value in zip(_FLAGS, _JAX, (address, count, index), strict=True):
        if value is None:
            raise UserError(
                f"--{name} (or {variable}): expected with the others of --{', --'.join(_FLAGS)}, found none"
            )
    try:
        count, index = int(count), int(index)
        port = int(address.rpartition(":")[2])
    except ValueError:
        count = index = port = -1
    if not 0 <= index < count or not 0 < port < 2**16 or ":" not in address:
        raise UserError(
            "distributed: expected --coordinator=HOST:PORT and 0 <= --process_id < --num_processes, found "
            f"{address}, {index} and {count}"
        )
    return address, count, index


def _clustered(environment) -> bool:
    """Whether the environment is that of one process of several."""
    if any(int(environment.get(name) or 1) > 1 for name in (*_COUNTS, _SLICES)):
        return True
    return any("," in environment.get(name, "") for name in _LISTS)


def writes() -> bool:
    """Whether this process is the one that writes what a run leaves."""
    return jax.process_index() == 0


def leave(status: int) -> None:
    """Ends this process at once if it fails and there are others, who then fail too.

    By itself JAX would first wait for them, minutes, while they wait for this one.
    """
    if status and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(name: str) -> None:
    """Waits until all processes get here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def union(indices: Sequence[int], size: int) -> list[int]:
    """All the processes' indices below `size`, sorted; each process must ask."""
    if jax.process_count() == 1:
        return sorted(indices)
    mask = np.zeros(size, bool)
    mask[list(indices)] = True
    return np.flatnonzero(multihost_utils.process_allgather(mask).any(0)).tolist()


class Agreement:
    """The largest number that any of the processes gave, the same to all; for what each sees for itself.

    With one process it is the number given. With several it is that of the call before, so that the devices
    needn't be waited for: all processes must call alike, and learn it one call late, together.

    Args:
        devices: of all processes.
    """

    def __init__(self, devices: Mesh):
        self._devices = devices
        self._largest = jax.jit(jnp.max, out_shardings=mesh.replicated(devices))
        self._before = None

    def __call__(self, number: int) -> int:
        """See the class."""
        if jax.process_count() == 1:
            return number
        before = 0 if self._before is None else int(self._before)
        own = np.full(jax.local_device_count(), number, np.int32)
        self._before = self._largest(mesh.put({"number": own}, self._devices)["number"])
        return before
