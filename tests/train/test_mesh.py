"""The mesh: which clips lie on which device, and which batches can be divided."""

import jax
import numpy as np
import pytest

from adafuse_jax.errors import UserError
from adafuse_jax.train import mesh


@pytest.mark.parametrize("count", [1, 2, 8])
def test_each_device_holds_its_own_clips_in_order(count):
    devices = mesh.make(jax.devices()[:count])
    batch = {"clip": np.arange(16 * 3, dtype=np.uint8).reshape(16, 3), "label": np.arange(16, dtype=np.int32)}
    for key, value in mesh.put(batch, devices).items():
        assert value.dtype == batch[key].dtype
        np.testing.assert_array_equal(value, batch[key])
        rows = 16 // count
        for i, device in enumerate(jax.devices()[:count]):
            (shard,) = [s for s in value.addressable_shards if s.device == device]
            np.testing.assert_array_equal(shard.data, batch[key][i * rows : (i + 1) * rows])


def test_replicated_is_whole_on_every_device():
    placed = jax.device_put(np.arange(5), mesh.replicated(mesh.make()))
    assert [s.device for s in placed.addressable_shards] == jax.devices()
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(5))


def test_all_devices_by_default():
    assert mesh.make().size == len(jax.devices()) == 8


@pytest.mark.parametrize("size", [8, 16, 64])
def test_a_batch_that_devices_can_share(size):
    mesh.check_batch("batch", size, mesh.make())


@pytest.mark.parametrize("size", [1, 7, 12, 65])
def test_a_batch_that_they_cannot(size):
    with pytest.raises(UserError, match=f"^batch: expected a multiple of the 8 devices, found {size}$"):
        mesh.check_batch("batch", size, mesh.make())
    mesh.check_batch("batch", size, mesh.make(jax.devices()[:1]))
