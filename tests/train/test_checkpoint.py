"""Checkpoints come back bit for bit, the right one of them, or with one clear line."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from adafuse_jax.errors import UserError
from adafuse_jax.train import checkpoint
from adafuse_jax.train.checkpoint import Checkpoints, read_meta

META = {"model": "adafuse_tsn_r18", "config": {"decay_epochs": (20.0, 40.0)}, "version": "0.1"}


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt: tuple
    key: jax.Array


def _state(seed=0, features=3):
    rng = np.random.default_rng(seed)
    params = {
        "layer1": {0: {"kernel": jnp.asarray(rng.standard_normal((8, features)), jnp.float32)}},
        "fc": {"kernel": jnp.asarray(rng.standard_normal((features, 2)), jnp.bfloat16)},
    }
    mask = {"layer1": False, "fc": True}
    optimizer = optax.chain(optax.trace(0.9), optax.masked(optax.scale(2.0), mask), optax.scale_by_adam())
    state = optimizer.init(params)
    return State(jnp.int32(seed), params, state, jax.random.key_data(jax.random.key(seed)))


def _same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _steps(directory):
    return sorted(int(p.name) for p in directory.iterdir())


@pytest.fixture
def saved(tmp_path):
    """A run's workdir whose best checkpoint is step 2 and latest step 4."""
    with Checkpoints(tmp_path / checkpoint.FOLDER) as checkpoints:
        for step, top1 in ((1, 0.5), (2, 0.7), (3, 0.6), (4, None)):
            checkpoints.save(step, _state(step), META | {"step": step}, {"index": 8 * step}, top1)
    return tmp_path


def test_round_trip_is_bit_exact(saved):
    with Checkpoints(saved, write=False) as checkpoints:
        step, state, meta, data = checkpoints.restore_latest(_state())
    _same(state, _state(4))
    assert (step, data) == (4, {"index": 32})
    assert meta == META | {"step": 4, "config": {"decay_epochs": [20.0, 40.0]}}  # as JSON holds it


def test_typed_keys_come_back_typed(tmp_path):
    state = {"key": jax.random.key(3), "none": None}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, META, 0)
        found = checkpoints.restore_latest({"key": jax.random.key(0), "none": None}).state
    assert found["key"].dtype == state["key"].dtype
    assert jax.random.bits(found["key"]) == jax.random.bits(state["key"])


def test_keeps_the_best_and_the_latest_two(saved):
    assert _steps(saved / checkpoint.FOLDER) == [2, 3, 4]
    with Checkpoints(saved, write=False) as checkpoints:
        assert checkpoints.restore_best(_state()).step == 2
        _same(checkpoints.restore_best(_state()).state, _state(2))
        assert checkpoints.restore_latest(_state()).step == 4


def test_goes_on_where_it_stopped_and_remembers_the_best(saved):
    with Checkpoints(saved / checkpoint.FOLDER) as checkpoints:
        assert checkpoints.restore_latest(_state()).step == 4
        checkpoints.save(5, _state(5), META, 0, 0.65)
        assert checkpoints.restore_best(_state()).step == 2  # waits for the save under way
        assert checkpoints.restore_latest(_state()).step == 5
        checkpoints.save(6, _state(6), META, 0, 0.7)
        assert checkpoints.restore_best(_state()).step == 6  # of equals the later
        checkpoints.save(7, _state(7), META, 0, float("nan"))
    assert _steps(saved / checkpoint.FOLDER) == [6, 7]
    assert read_meta(saved)["model"] == META["model"]


def test_arrays_may_be_donated_once_save_returns(tmp_path):
    state = {"a": jnp.arange(1 << 20, dtype=jnp.float32)}
    expected = np.array(state["a"])
    step = jax.jit(lambda s: jax.tree.map(lambda a: a * -1, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, META, 0)
        for _ in range(3):
            state = step(state)
        found = checkpoints.restore_latest(state).state
    assert np.array_equal(found["a"], expected)


def test_without_any_top1_the_best_is_the_latest(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_best(_state()) is None
        assert checkpoints.restore_latest(_state()) is None
        for step in (1, 2):
            checkpoints.save(step, _state(step), META | {"step": step}, 0)
    assert _steps(tmp_path) == [1, 2]
    assert read_meta(tmp_path, "best")["step"] == 2


def test_sharded_arrays_come_back_as_asked(tmp_path):
    devices = jax.devices()
    if len(devices) == 1:
        pytest.skip("one device")
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    array = jnp.arange(16.0).reshape(8, 2)
    state = {"split": jax.device_put(array, split), "whole": jax.device_put(array, whole)}

    def asked(a, b):
        return {
            "split": jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=a),
            "whole": jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=b),
        }

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, META, 0)
        for shardings in ((split, whole), (whole, split), (None, None)):
            found = checkpoints.restore_latest(asked(*shardings)).state
            _same(found, state)
            for name, sharding in zip(("split", "whole"), shardings, strict=True):
                assert found[name].sharding == (sharding or jax.sharding.SingleDeviceSharding(devices[0]))


@pytest.mark.parametrize("inside", ["", checkpoint.FOLDER])
def test_meta_is_read_without_the_model(saved, inside):
    assert read_meta(saved / inside)["step"] == 2
    assert read_meta(saved / inside, "latest")["step"] == 4


def test_half_written_checkpoints_are_no_checkpoints(saved):
    half = saved / checkpoint.FOLDER / "9.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "junk").write_text("x")
    assert read_meta(saved, "latest")["step"] == 4
    assert half.exists()  # reading leaves it: another process may be writing it
    with Checkpoints(saved / checkpoint.FOLDER) as checkpoints:
        assert checkpoints.restore_latest(_state()).step == 4
    assert not half.exists()


def _error(call):
    with pytest.raises(UserError) as info:
        call()
    message = str(info.value)
    assert "\n" not in message
    return message


def _restore(workdir, state, **options):
    with Checkpoints(workdir, write=False) as checkpoints:
        return checkpoints.restore_latest(state, **options)


def test_no_checkpoint(tmp_path):
    expected = f"checkpoint {tmp_path}: expected a run's workdir or its checkpoints folder, found"
    assert _error(lambda: read_meta(tmp_path)) == f"{expected} no checkpoint in it"
    assert "no such folder" in _error(lambda: read_meta(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()


def test_checkpoint_of_another_model(saved):
    message = _error(lambda: _restore(saved, _state(), model="adafuse_tsn_r50"))
    assert "expected model 'adafuse_tsn_r50', found 'adafuse_tsn_r18'" in message
    assert _restore(saved, _state(), model="adafuse_tsn_r18").step == 4

    message = _error(lambda: _restore(saved, _state(features=5)))  # fc comes before layer1, opt before params
    assert "opt.0.trace.fc.kernel: expected bfloat16[5, 2], found bfloat16[3, 2]" in message

    fewer, more = _state(), _state()
    del fewer.params["fc"]
    more.params["head"] = jnp.zeros(2)
    assert "params.fc.kernel: expected no such array, found bfloat16[3, 2]" in _error(
        lambda: _restore(saved, fewer)
    )
    assert "params.head: expected float32[2], found no such array" in _error(lambda: _restore(saved, more))

    other = _state().replace(step=jnp.float32(0))  # nothing is cast in silence
    assert "step: expected float32[], found int32[]" in _error(lambda: _restore(saved, other))


@pytest.mark.parametrize("damage", ["cut", "gone"])
@pytest.mark.parametrize(
    "pattern", ["meta/metadata", "data/metadata", "state/_METADATA", "state/manifest.ocdbt", "state/d/*"]
)
def test_damaged_checkpoint(saved, pattern, damage):
    folder = saved / checkpoint.FOLDER / "4"
    (file,) = folder.glob(pattern)
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    message = _error(lambda: _restore(saved, _state()))
    assert message.startswith(
        f"checkpoint {folder}: expected a complete checkpoint, found one that can't be read"
    )


def test_damaged_array_is_found_before_orbax_reads_in_threads(tmp_path):
    """Storage's own error: Orbax's would be of another kind, followed by tracebacks from its threads."""
    state = {name: jax.random.normal(jax.random.key(0), (1 << 16,)) for name in "ab"}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, META, 0)
    file = max((tmp_path / "1" / "state").rglob("d/*"), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1000])
    assert "(ValueError: OUT_OF_RANGE" in _error(lambda: _restore(tmp_path, state))


def test_damaged_top1(saved):
    (saved / checkpoint.FOLDER / "2" / "metrics" / "metrics").write_text("{")
    assert "can't be read" in _error(lambda: read_meta(saved))


def test_a_step_that_is_there_is_not_saved_in_silence(saved):
    with Checkpoints(saved / checkpoint.FOLDER) as checkpoints:
        with pytest.raises(ValueError, match=r"expected a step after 4 .* found 3"):
            checkpoints.save(3, _state(), META, 0)
        with pytest.raises(TypeError, match="JSON"):  # at the call, not later in the background
            checkpoints.save(5, _state(), {"top1": jnp.ones(())}, 0)
