"""All devices as one mesh: the batch is divided among them, everything else is on each."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from adafuse_jax.errors import UserError

AXIS = "batch"


def make(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices`, by default all of them."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), devices=devices, axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_clip(mesh: Mesh) -> NamedSharding:
    """Leading axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def check_batch(name: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises UserError unless the devices can share each of `parts` of a batch evenly."""
    if batch_size % (mesh.size * parts):
        times = f" times {parts} parts" if parts > 1 else ""
        raise UserError(f"{name}: expected a multiple of the {mesh.size} devices{times}, found {batch_size}")


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch on the devices, of the blocks that the processes give."""
    sharding = by_clip(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def processes() -> dict[str, int]:
    """Which of the job's processes this is, and how many there are, as the pipeline wants to know it."""
    return {"shard_index": jax.process_index(), "shard_count": jax.process_count()}
