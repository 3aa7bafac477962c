"""Files of torch.save: read as torch reads them, and nothing but tensors ever read from them."""

import collections
import functools
import pickle
import subprocess
import sys
import zipfile
from importlib import util
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch_files
from torch_files import Raw, View, call, name

from adafuse_jax.errors import UserError
from adafuse_jax.weights import torch_file


def contents():
    """A checkpoint of all kinds of tensors: dtypes, strides, sharing, no axes, no entries."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(60).astype(np.float32)
    return {
        "epoch": 3,
        "best": 0.5,
        "arch": "résnet",
        "steps": [1, 2, None, True, 1 << 40, -7],
        "state_dict": collections.OrderedDict(
            a=rng.standard_normal((4, 5, 3)).astype(np.float32),
            transposed=View(base, 0, (5, 12), (1, 5)),
            part=View(base, 7, (2, 3), (20, 2)),
            repeated=View(base, 2, (4, 3), (0, 1)),
            half=rng.standard_normal(7).astype(np.float16),
            brain=rng.standard_normal((2, 3)).astype(ml_dtypes.bfloat16),
            double=rng.standard_normal(2),
            count=np.array(5),
            flags=np.array([True, False]),
            empty=np.zeros((0, 3), np.float32),
        ),
    }


def expected(value):
    if isinstance(value, View):
        steps = [s * value.base.itemsize for s in value.strides]
        return np.lib.stride_tricks.as_strided(value.base[value.offset :], value.shape, steps)
    return value


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_is_saved_is_read(tmp_path, legacy):
    path, saved = tmp_path / "a.pth", contents()
    torch_files.save(saved, path, legacy)
    found = torch_file.read(path)
    arrays, wanted = found.pop("state_dict"), saved.pop("state_dict")
    assert found == saved
    assert list(arrays) == list(wanted)
    for key, value in wanted.items():
        assert arrays[key].dtype == expected(value).dtype
        np.testing.assert_array_equal(arrays[key], expected(value))
        assert arrays[key].flags.owndata and arrays[key].flags.writeable


_WITH_TORCH = """
import collections, sys, numpy as np, torch
a = torch.randn(4, 5, 3)
state = collections.OrderedDict(
    a=a, transposed=a.permute(2, 0, 1), part=a[1:3, 2], expanded=torch.randn(1, 3).expand(4, 3),
    brain=torch.randn(7).bfloat16(), half=torch.randn(3).half(), count=torch.tensor(3),
    parameter=torch.nn.Parameter(torch.randn(2, 2)), **torch.nn.BatchNorm2d(3).state_dict(prefix="bn."))
torch.save({"state_dict": state}, sys.argv[1], _use_new_zipfile_serialization=sys.argv[2] == "zip")
read = torch.load(sys.argv[1], weights_only=True)["state_dict"]
np.savez(sys.argv[3], **{k: v.detach().float().numpy() for k, v in read.items()})
"""


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_as_torch_reads_it(tmp_path, kind):
    """In a process of its own: torch and jax don't share one here."""
    if util.find_spec("torch") is None:
        pytest.skip("torch isn't installed")
    path, wanted = tmp_path / "a.pth", tmp_path / "wanted.npz"
    subprocess.run([sys.executable, "-c", _WITH_TORCH, path, kind, wanted], check=True)
    found, wanted = torch_file.read(path)["state_dict"], np.load(wanted)
    assert list(found) == wanted.files
    for key in wanted.files:
        np.testing.assert_array_equal(np.asarray(found[key], np.float32), wanted[key])


def hostile(tmp_path):
    """What each tries: (pickle, what the error says)."""
    touch = f"touch {tmp_path / 'pwned'}"
    laughs = pickle.EMPTY_LIST + pickle.BINPUT + b"\0"  # each list holds the one before ten times
    for i in range(18):
        again = (pickle.BINGET + bytes([i])) * 9
        laughs = (
            pickle.EMPTY_LIST + pickle.MARK + laughs + again + pickle.APPENDS + pickle.BINPUT + bytes([i + 1])
        )
    deep_key = b"".join(
        pickle.BINPUT + bytes([i]) + pickle.BINGET + bytes([i]) + pickle.TUPLE2 for i in range(60)
    )
    storage = Raw(
        torch_files._ops(("storage", name("torch", "FloatStorage"), "0", "cpu", 4), None) + pickle.BINPERSID
    )
    rebuild = functools.partial(call, name("torch._utils", "_rebuild_tensor_v2"))
    return {
        "runs a command": (call(name("os", "system"), touch), "posix.system|os.system"),
        "evaluates": (
            call(name("builtins", "eval"), f"open({str(tmp_path / 'pwned')!r}, 'w')"),
            "builtins.eval",
        ),
        "takes an attribute": (name("torch", "load"), "torch.load, which is refused"),
        "a class": (name("argparse", "Namespace"), "argparse.Namespace, which is refused"),
        "extension": (Raw(pickle.EXT1 + b"\x01"), "broken one: KeyError"),
        "new object": (
            Raw(name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.NEWOBJ),
            "broken one",
        ),
        "endless list": ({"a": Raw(laughs)}, "at most 1000000 parts, nested at most 20"),
        "endless key": (
            Raw(pickle.EMPTY_DICT + pickle.EMPTY_TUPLE + deep_key + pickle.NONE + pickle.SETITEM),
            "expected texts or numbers as keys, found tuple",
        ),
        "deep nesting": ({"a": Raw(pickle.EMPTY_TUPLE + pickle.TUPLE1 * 100_000)}, "nested at most 20"),
        "list in itself": (
            {"a": Raw(pickle.EMPTY_LIST + pickle.BINPUT + b"\0" + pickle.BINGET + b"\0" + pickle.APPEND)},
            "nested at most 20",
        ),
        "huge memo": (
            {"a": Raw(pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f")},
            "expected a state|found",
        ),
        "terabytes by stride 0": (
            {"a": rebuild(storage, 0, (1 << 40,), (0,), False, {})},
            "bytes, found 4398046511",
        ),
        "out of its storage": ({"a": rebuild(storage, 2, (3,), (1,), False, {})}, "within its storage of 4"),
        "negative stride": ({"a": rebuild(storage, 3, (3,), (-1,), False, {})}, "offset, shape and strides"),
        "too many axes": ({"a": rebuild(storage, 0, (1,) * 40, (1,) * 40, False, {})}, "at most 32 axes"),
        "storage that isn't there": (
            {
                "a": rebuild(
                    Raw(storage.replace(b"\x01\0\0\x000", b"\x01\0\0\x009")), 0, (4,), (1,), False, {}
                )
            },
            "data/9'?, found none|found others",
        ),
        "no dict": ([1, 2], "expected a dict of tensors, found list"),
        "fills what isn't a list": (
            Raw(pickle.EMPTY_TUPLE + pickle.NONE + pickle.APPEND),
            "expected a list to fill",
        ),
    }


NAMES = list(hostile(Path("x")))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("attack", NAMES)
def test_a_hostile_pickle_is_one_error(tmp_path, attack, legacy):
    value, message = hostile(tmp_path)[attack]
    path = tmp_path / "a.pth"
    numbers = {"0": np.zeros(4, np.float32)}
    if legacy:
        parts = [torch_files.LEGACY_MAGIC, 1001, {}, value]
        keys = ["0"] if b"FloatStorage" in torch_files.pickled(value) else []
        tail = b"\4" + bytes(7) + bytes(16) if keys else b""
        path.write_bytes(b"".join(map(torch_files.pickled, [*parts, keys])) + tail)
    else:
        torch_files.archive(path, torch_files.pickled(value), numbers)
    if attack == "huge memo":  # harmless here, where the memo is a dict
        assert torch_file.read(path) == {"a": None}
        return
    with pytest.raises(UserError, match=message) as error:
        torch_file.read(path)
    assert str(error.value).startswith(f"weights {path}: ")
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert not (tmp_path / "pwned").exists()


def test_a_zip_with_other_entries(tmp_path):
    path = tmp_path / "a.pth"
    torch_files.archive(
        path, torch_files.pickled({"a": 1}), {}, **{"../../escaped": "x", "/tmp/escaped": "x"}
    )
    assert torch_file.read(path) == {"a": 1}  # entries are looked up by name, none is ever unpacked
    assert not (tmp_path.parent.parent / "escaped").exists()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", torch_files.pickled({}))
        file.writestr("b/data.pkl", torch_files.pickled({}))
    with pytest.raises(UserError, match=r"one data\.pkl, found 2"):
        torch_file.read(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(100 << 20))
    with pytest.raises(UserError, match=r"at most 67108864 bytes in 'archive/data\.pkl', found 104857600"):
        torch_file.read(path)


def test_memory_is_capped(tmp_path):
    path = tmp_path / "a.pth"
    torch_files.save({"a": np.zeros(1000, np.float32)}, path)
    with pytest.raises(UserError, match="tensors of at most 4000 bytes, found 8000"):  # with its storage
        torch_file.read(path, max_bytes=4000)
    assert torch_file.read(path, max_bytes=8000)["a"].shape == (1000,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_cut_off_anywhere_is_one_error(tmp_path, legacy):
    path = tmp_path / "a.pth"
    torch_files.save(contents(), path, legacy)
    data = path.read_bytes()
    for share in range(100):
        path.write_bytes(data[: len(data) * share // 100])
        with pytest.raises(UserError) as error:
            torch_file.read(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_any_flipped_byte_gives_arrays_or_one_error(tmp_path, legacy):
    """5,000 files of each kind with a byte, or some, changed at random."""
    path, rng = tmp_path / "a.pth", np.random.default_rng(0)
    small = {
        "state_dict": collections.OrderedDict(a=np.ones((2, 3), np.float32), b=np.array(5)),
        "n": [1, "x"],
    }
    torch_files.save(small, path, legacy)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    read = 0
    for _ in range(5000):
        broken = data.copy()
        places = rng.integers(0, len(data), rng.integers(1, 4))
        broken[places] = rng.integers(0, 256, len(places))
        path.write_bytes(broken.tobytes())
        try:
            found = torch_file.read(path, max_bytes=1 << 20)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            read += 1
            assert isinstance(found, dict)
    assert 0 < read < 5000
