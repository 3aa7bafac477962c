"""Files as torch.save writes them, put together without torch, and as an attacker might."""

import collections
import itertools
import json
import pickle
import struct
import zipfile

import numpy as np

STORAGES = {
    "f4": "FloatStorage",
    "f8": "DoubleStorage",
    "f2": "HalfStorage",
    "i8": "LongStorage",
    "b1": "BoolStorage",
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Raw(bytes):
    """Pickle operations that stand for a value."""


class View:
    """A tensor that shares a storage: `base` (1-d), offset, shape and strides in elements."""

    def __init__(self, base, offset, shape, strides):
        self.base, self.offset, self.shape, self.strides = base, offset, shape, strides


def name(module, attribute):
    """The operation that looks up a class or function."""
    return Raw(pickle.GLOBAL + f"{module}\n{attribute}\n".encode())


def call(function, *arguments):
    """The operations that call it."""
    return Raw(function + _ops(tuple(arguments), None) + pickle.REDUCE)


def pickled(value, storages=None):
    """A pickle of protocol 2; arrays and Views become tensors, whose storages go into `storages`."""
    return pickle.PROTO + b"\x02" + _ops(value, storages) + pickle.STOP


def _ops(value, storages):
    if isinstance(value, Raw):
        return bytes(value)
    if value is None or isinstance(value, bool):
        return {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return pickle.BININT + struct.pack("<i", value)
        data = pickle.encode_long(value)
        return pickle.LONG1 + bytes([len(data)]) + data
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(data)) + data
    if isinstance(value, tuple):
        return pickle.MARK + b"".join(_ops(v, storages) for v in value) + pickle.TUPLE
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + b"".join(_ops(v, storages) for v in value) + pickle.APPENDS
    if isinstance(value, dict):
        start = pickle.EMPTY_DICT
        if isinstance(value, collections.OrderedDict):
            start = name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
        items = itertools.chain.from_iterable(value.items())
        return start + pickle.MARK + b"".join(_ops(v, storages) for v in items) + pickle.SETITEMS
    if isinstance(value, np.ndarray | np.generic):
        value = np.asarray(value)
        steps = tuple(s // value.itemsize for s in np.ascontiguousarray(value).strides) if value.ndim else ()
        value = View(np.ascontiguousarray(value).reshape(-1), 0, value.shape, steps)
    return _tensor(value, storages)


def _tensor(view, storages):
    base = view.base
    key = next((k for k, other in storages.items() if other is base), str(len(storages)))
    storages[key] = base
    kind = "BFloat16Storage" if base.dtype.name == "bfloat16" else STORAGES[base.dtype.str[1:]]
    reference = _ops(("storage", name("torch", kind), key, "cpu", base.size), None) + pickle.BINPERSID
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        Raw(reference), view.offset, tuple(view.shape), tuple(view.strides), False, collections.OrderedDict(),
    )  # fmt: skip


def save(value, path, legacy=False):
    """Writes a file as torch.save does."""
    storages = {}
    data = pickled(value, storages)
    if legacy:
        sizes = {"protocol_version": 1001, "little_endian": True}
        parts = [pickled(LEGACY_MAGIC), pickled(1001), pickled(sizes), data, pickled(list(storages))]
        parts += [struct.pack("<q", base.size) + base.tobytes() for base in storages.values()]
        path.write_bytes(b"".join(parts))
    else:
        archive(path, data, storages)


def archive(path, data, storages, **entries):
    """The zip format around a pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/byteorder", "little")
        for key, base in storages.items():
            file.writestr(f"archive/data/{key}", base.tobytes())
        for entry, content in entries.items():
            file.writestr(entry, content)
        file.writestr("archive/version", "3\n")


def safetensors(path, header, data=b""):
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
