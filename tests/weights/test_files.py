"""Weight files: every format gives the same model, what is saved comes back, broken ones are one error."""

import collections
import json
import pickle
import zipfile

import chex
import ml_dtypes
import numpy as np
import pytest
import torch_files
from flax import nnx
from helpers import filled
from hypothesis import given
from hypothesis import strategies as st

from adafuse_jax import create_model, weights
from adafuse_jax.errors import UserError


def model(seed=0, name="adafuse_tsm_tiny"):
    return filled(lambda: create_model(name, num_classes=5), seed)


def written(path, kind, arrays):
    if kind in ("zip", "legacy"):
        wrapped = {"state_dict": collections.OrderedDict((f"module.{k}", v) for k, v in arrays.items())}
        torch_files.save(wrapped, path, legacy=kind == "legacy")
    elif kind == "npz":
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)
    else:
        weights.save(model(1), path, weights.Card("adafuse_tsm_tiny", 5))
    return path


@pytest.mark.parametrize("kind", ["zip", "legacy", "npz", "safetensors"])
def test_every_format_gives_the_same_model(tmp_path, kind):
    source, loaded = model(1), model()
    path = written(tmp_path / "weights", kind, weights.to_torch(source))
    assert weights.load(loaded, path) is loaded
    chex.assert_trees_all_equal(nnx.state(loaded), nnx.state(source))


@pytest.mark.parametrize("name", ["tsn_tiny", "adafuse_tsm_last_tiny", "lstm_tiny", "cgnet_tiny"])
def test_out_and_in_is_bit_exact(tmp_path, name):
    source, loaded = model(1, name), model(0, name)
    weights.save(source, tmp_path / "a.safetensors")
    weights.load(loaded, tmp_path / "a.safetensors")
    chex.assert_trees_all_equal(nnx.state(loaded), nnx.state(source))


@pytest.mark.parametrize("case", ["ada_r18_tsn_64", "ada_inc_tsn_224", "tsm_r50_64"])
def test_what_is_saved_is_what_the_published_code_loads(tmp_path, golden, case):
    name = {"ada_r18": "adafuse_tsn_r18", "ada_inc": "adafuse_tsn_inc", "tsm_r50": "tsm_r50"}[case[:7]]
    meta, given = golden.load(case)[0], golden.state_dict(case)
    made = nnx.eval_shape(lambda: create_model(name, num_classes=174))
    nnx.update(made, nnx.state(filled(lambda: create_model(name, num_classes=174))))
    weights.from_torch(made, given)
    weights.save(made, tmp_path / "a.safetensors")
    saved = weights.read(tmp_path / "a.safetensors").arrays
    canonical = {weights.published.canonical(key): key for key in given}
    assert saved.keys() == canonical.keys()
    for name, value in saved.items():
        assert [*value.shape] == meta["keys"][canonical[name]]
        assert value.dtype == given[canonical[name]].dtype
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value, given[canonical[name]])


text = st.text(max_size=20)


@given(
    st.builds(
        weights.Card,
        model=text,
        num_classes=st.integers(1, 1000),
        options=st.dictionaries(text, st.integers() | text | st.booleans()),
        data=st.dictionaries(text, st.floats(allow_nan=False) | text),
        class_names=st.lists(text),
        licence=text,
        source=text,
    )
)
def test_a_card_survives(card):
    assert weights.Card.from_json(card.to_json()) == card


def test_a_card_comes_with_its_weights(tmp_path):
    card = weights.Card("adafuse_tsm_tiny", 5, {"tau": 0.5}, {"std": [1, 1, 1]}, class_names=["ä", "b"])
    weights.save(model(), tmp_path / "w", card)
    assert weights.read(tmp_path / "w").card == card


@pytest.mark.parametrize(
    "broken", ["", "[]", "{}", '{"model": 1, "num_classes": 2}', '{"x": 1}', "[" * 100_000]
)
def test_a_broken_card(broken):
    with pytest.raises(UserError, match="card of the weights: ") as error:
        weights.Card.from_json(broken)
    assert "\n" not in str(error.value)


def test_imagenet_nets_start_a_model():
    """Bare names, another task's classifier, Cadene's BatchNorms of shape (1, C), fewer bits."""
    source, made = model(1, "tsn_tiny"), model(0, "adafuse_tsn_tiny")
    given = {}
    for key, value in weights.to_torch(source).items():
        bare = key.removeprefix("base_model.").replace("new_fc", "last_linear")
        bare = bare.replace("downsample0", "downsample.0").replace("downsample1", "downsample.1")
        value = value[None] if ".bn" in key and value.ndim == 1 else value
        given[bare] = value.astype(ml_dtypes.bfloat16) if "conv2" in key else value
    given["last_linear.weight"], given["last_linear.bias"] = np.zeros((1000, 64), "f4"), np.zeros(1000, "f4")
    before = {key: value.copy() for key, value in weights.to_torch(made).items()}
    with pytest.raises(UserError, match=r"missing \S*policy_net.*last_linear\.weight: expected \(5, 64\)"):
        weights.from_torch(made, given)
    with pytest.raises(UserError, match=r"2 keys don't fit .*last_linear.weight: expected \(5, 64\)"):
        weights.from_torch(made, given, ["policy"])
    weights.from_torch(made, given, ["policy", "head"])
    for key, value in weights.to_torch(made).items():
        if "policy_net" in key or "gate_fc" in key or "new_fc" in key:
            wanted = before[key]
        else:
            wanted = weights.to_torch(source)[key]
            wanted = wanted.astype(ml_dtypes.bfloat16).astype("f4") if "conv2" in key else wanted
        np.testing.assert_array_equal(value, wanted, err_msg=key)


def test_a_group_that_may_be_missing_is_taken_where_it_fits():
    source, made = model(1), model()
    weights.from_torch(made, weights.to_torch(source), ["policy", "head"])
    chex.assert_trees_all_equal(nnx.state(made), nnx.state(source))
    with pytest.raises(UserError, match=r"unknown group to be missing 'heads' \(did you mean 'head'"):
        weights.from_torch(made, weights.to_torch(source), ["heads"])


def test_numbers_that_are_no_weights():
    given = weights.to_torch(model()) | {"new_fc.bias": np.arange(5)}
    with pytest.raises(UserError, match=r"new_fc\.bias: expected \(5,\), found int64 \(5,\)"):
        weights.from_torch(model(), given)


def safetensors_of(path):
    weights.save(model(name="tsn_tiny"), path, weights.Card("tsn_tiny", 5))
    return path.read_bytes()


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "longer than the file": b"\xff\xff\xff\xff\0\0\0\0{}",
    "longer than memory": b"\xff" * 7 + b"\x7f{}",
    "no JSON": b"\2\0\0\0\0\0\0\0{]",
    "deep": (20_000).to_bytes(8, "little") + b'{"a":' + b"[" * 19_995,
    "shape beyond the data": {"a": ENTRY | {"shape": [1 << 40]}},
    "offsets beyond the file": {"a": ENTRY | {"shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
    "negative shape": {"a": ENTRY | {"shape": [-2]}},
    "overlapping": {"a": ENTRY, "b": ENTRY},
    "unknown type": {"a": ENTRY | {"dtype": "PICKLE"}},
    "card that isn't one": {"__metadata__": {"adafuse_jax": "x"}, "a": ENTRY},
}


@pytest.mark.parametrize("kind", HEADERS)
def test_hostile_safetensors(tmp_path, kind):
    path, header = tmp_path / "a.safetensors", HEADERS[kind]
    if isinstance(header, bytes):
        path.write_bytes(header)
    else:
        torch_files.safetensors(path, header, bytes(8))
    with pytest.raises(UserError) as error:
        weights.read(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def npz_of(path):
    with open(path, "wb") as file:
        np.savez(file, a=np.ones((3, 2), "f4"), b=np.arange(3.0))
    return path.read_bytes()


@pytest.mark.parametrize("make", [safetensors_of, npz_of])
def test_cut_off_anywhere(tmp_path, make):
    path = tmp_path / "a"
    data = make(path)
    for share in range(100):
        path.write_bytes(data[: len(data) * share // 100])
        with pytest.raises(UserError) as error:
            weights.read(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [safetensors_of, npz_of])
def test_flipped_bytes(tmp_path, make):
    """Arrays or one error; of a safetensors file mostly in its header."""
    path, rng = tmp_path / "a", np.random.default_rng(0)
    data = np.frombuffer(make(path), np.uint8)
    for i in range(1000):
        broken = data.copy()
        broken[rng.integers(0, min(len(data), 600 if i % 2 else len(data)))] = rng.integers(0, 256)
        path.write_bytes(broken.tobytes())
        try:
            weights.read(path, max_bytes=1 << 20)
        except UserError as error:
            assert "\n" not in str(error)


def test_an_npz_that_runs_code(tmp_path):
    class Bad:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    path = tmp_path / "a.npz"
    np.savez(path, a=np.array([Bad()], object))
    assert not (tmp_path / "pwned").exists() or (tmp_path / "pwned").unlink() is None
    with pytest.raises(
        UserError, match="expected an npz of arrays, found a broken one: ValueError: Object arrays"
    ):
        weights.read(path)
    assert not (tmp_path / "pwned").exists()


def test_memory_of_an_npz_is_capped(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(1 << 20, "f4"))
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="expected arrays of at most 1048576 bytes, found 4194432"):
        weights.read(path, max_bytes=1 << 20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a file, found: No such file or directory"),
        (b"", "expected a file of torch.save, found"),
        (b"hello, this is text", "expected a file of torch.save, found something else"),
        (pickle.dumps({"a": 1}), "expected a file of torch.save, found another pickle"),
    ],
)
def test_what_is_no_file_of_weights(tmp_path, content, message):
    path = tmp_path / "a"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        weights.read(path)


def test_a_zip_of_other_things(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as file:
        file.writestr("readme.txt", "hi")
    with pytest.raises(UserError, match=r"one data\.pkl, found 0"):
        weights.read(tmp_path / "a")


def test_a_checkpoint_without_a_state_dict(tmp_path):
    torch_files.save({"epoch": 3, "optimizer": {"x": 1}}, tmp_path / "a")
    with pytest.raises(UserError, match="expected a state dict of tensors, found epoch, optimizer"):
        weights.read(tmp_path / "a")


def test_weights_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="expected a place to write to, found: "):
        weights.save(model(), tmp_path / "file" / "w")


def test_json_in_the_metadata_is_plain(tmp_path):
    """Others can read the card with any safetensors library."""
    weights.save(model(), tmp_path / "w", weights.Card("adafuse_tsm_tiny", 5))
    data = (tmp_path / "w").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["adafuse_jax"])["model"] == "adafuse_tsm_tiny"
