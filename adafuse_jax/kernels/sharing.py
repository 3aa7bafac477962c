"""Native calls on several devices, each with images of its own."""

from collections.abc import Callable

import jax
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec


def by_image(call: Callable[..., jax.Array], axes: str) -> Callable[..., jax.Array]:
    """`call` divided by its axis n; without this XLA would have each device compute all of it.

    Args:
        call: of two arrays of four axes.
        axes: their names and those of the result, as "n h w i, a b i o -> n p q o". Where the result has no
            n, it is the sum over the devices. No other axis is divided.
    """
    arguments, result = axes.split(" -> ")
    divided = [term.split()[0] == "n" for term in (*arguments.split(", "), result)]
    others = dict.fromkeys(name for name in axes if name.isalpha() and name != "n")

    def partition(mesh, shapes, _):
        spec = shapes[0].sharding.spec
        devices = spec[0] if spec else None
        by, whole = (NamedSharding(mesh, PartitionSpec(d, None, None, None)) for d in (devices, None))
        shardings = [by if images else whole for images in divided]
        summed = devices is not None and not divided[-1]
        lowered = (lambda *arrays: lax.psum(call(*arrays), devices)) if summed else call
        return mesh, lowered, shardings[-1], tuple(shardings[:-1])

    shared = custom_partitioning(call)
    shared.def_partition(partition=partition, sharding_rule=axes, need_replication_factors=tuple(others))
    return sequential_vmap(shared)
