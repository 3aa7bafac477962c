"""Files of torch.save, read without torch and without running what they hold.

Such a file is a pickle, which may call anything. Here an allow-list stands for the classes and functions that
PyTorch puts around tensors; a pickle that asks for another is refused by its name. Both formats are read: the
zip archive (torch 1.6 and later) and the row of pickles before it ("legacy").
"""

import collections
import dataclasses
import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import ml_dtypes
import numpy as np

from adafuse_jax.errors import UserError

MAX_BYTES = 4 << 30  # of all tensors of a file together
_MAX_PICKLE = 64 << 20  # bytes; that of a ResNet-101's state dict has 0.1 MB
_MAX_PARTS, _MAX_DEPTH = 1_000_000, 20  # of what the pickle holds
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Refused(Exception):
    """Why a file isn't read."""


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A row of numbers in the file; `size` counts them."""

    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def of(self, data: bytes) -> np.ndarray:
        """The tensor, given its storage's bytes; a copy of its own."""
        values = np.frombuffer(data, self.storage.dtype)
        steps = [step * values.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps, writeable=False)
        return np.array(view)


def read(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """What a file of torch.save holds: nested dicts, lists, numbers and texts, tensors as numpy arrays.

    Args:
        path: of the file.
        max_bytes: that all tensors together may take in memory.

    Raises:
        UserError: for a file that is broken, too large, or asks for anything but tensors.
    """
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                return _read_zip(file, max_bytes)
            file.seek(0)
            return _read_legacy(file, max_bytes)
    except OSError as error:
        raise UserError(f"weights {path}: expected a file, found: {error.strerror or error}") from error
    except Refused as error:
        raise UserError(f"weights {path}: {error}") from None
    except Exception as error:  # a broken pickle or archive can raise nearly any
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"weights {path}: expected a file of torch.save, found a broken one: {reason}"
        ) from None


def _read_zip(file: BinaryIO, max_bytes: int) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise Refused(f"expected an archive of torch.save with one data.pkl, found {len(roots)}")
        (root,) = roots
        order = archive.read(root + "byteorder") if root + "byteorder" in entries else b"little"
        if order != b"little":
            raise Refused(f"expected little-endian numbers, found {order[:20]!r}")

        def load(name: str, limit: int) -> bytes:
            if name not in entries:
                raise Refused(f"expected the archive's entry {name!r}, found none")
            if entries[name].file_size > limit:
                raise Refused(f"expected at most {limit} bytes in {name!r}, found {entries[name].file_size}")
            return archive.read(entries[name])

        found = _Unpickler(io.BytesIO(load(root + "data.pkl", _MAX_PICKLE))).load()

        def storage(wanted: _Storage) -> bytes:
            size = wanted.size * wanted.dtype.itemsize
            data = load(f"{root}data/{wanted.key}", size)
            if len(data) != size:
                raise Refused(f"expected {size} bytes in storage {wanted.key!r}, found {len(data)}")
            return data

        return _filled(found, storage, max_bytes)


def _read_legacy(file: BinaryIO, max_bytes: int) -> dict[str, Any]:
    limited = _Limited(file, _MAX_PICKLE)
    if file.read(1) != b"\x80":
        raise Refused("expected a file of torch.save, found something else")
    file.seek(0)
    if _Unpickler(limited).load() != _LEGACY_MAGIC:
        raise Refused("expected a file of torch.save, found another pickle")
    _Unpickler(limited).load()  # the version of the protocol
    _Unpickler(limited).load()  # sizes of C's integers
    unpickler = _Unpickler(limited)
    found = unpickler.load()
    keys = _container(_Unpickler(limited).load(), list)
    places = {}
    length = os.fstat(file.fileno()).st_size
    for key in keys:
        if not isinstance(key, str) or key not in unpickler.storages:
            raise Refused("expected the keys of the storages that the tensors use, found others")
        (size,) = struct.unpack("<q", file.read(8))
        wanted = unpickler.storages[key]
        if size != wanted.size:
            raise Refused(f"expected {wanted.size} numbers in storage {key[:40]!r}, found {size}")
        places[key] = file.tell()
        end = file.tell() + size * wanted.dtype.itemsize
        if end > length:
            raise Refused(f"expected {end} bytes, found {length}: the file is cut off")
        file.seek(end)

    def storage(wanted: _Storage) -> bytes:
        if wanted.key not in places:
            raise Refused(f"expected the numbers of storage {wanted.key!r}, found none")
        file.seek(places[wanted.key])
        return file.read(wanted.size * wanted.dtype.itemsize)

    return _filled(found, storage, max_bytes)


class _Limited:
    """A file of which pickles may take but so many bytes."""

    def __init__(self, file: BinaryIO, limit: int):
        self._file, self._left = file, limit

    def _take(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise Refused(f"expected a pickle of at most {_MAX_PICKLE} bytes, found more")
        return data

    def read(self, size: int) -> bytes:
        return self._take(self._file.read(min(size, self._left + 1)))

    def readline(self) -> bytes:
        return self._take(self._file.readline(self._left + 1))


def _plain_key(key: Any) -> Any:
    # Nothing else is hashed: nested tuples that share their parts take for ever.
    if not isinstance(key, str | int):
        raise Refused(f"expected texts or numbers as keys, found {type(key).__name__}")
    return key


# What a pickle of plain containers, texts, numbers and tensors consists of.
_OPERATIONS = b"".join(
    (
        pickle.PROTO + pickle.FRAME + pickle.STOP + pickle.MARK + pickle.POP_MARK,
        pickle.BINPUT + pickle.LONG_BINPUT + pickle.MEMOIZE + pickle.BINGET + pickle.LONG_BINGET,
        pickle.NONE + pickle.NEWTRUE + pickle.NEWFALSE + pickle.BINFLOAT,
        pickle.BININT + pickle.BININT1 + pickle.BININT2 + pickle.LONG1,
        pickle.BINUNICODE + pickle.SHORT_BINUNICODE + pickle.BINSTRING + pickle.SHORT_BINSTRING,
        pickle.EMPTY_TUPLE + pickle.TUPLE + pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3,
        pickle.EMPTY_LIST + pickle.APPEND + pickle.APPENDS,
        pickle.EMPTY_DICT + pickle.SETITEM + pickle.SETITEMS,
        pickle.GLOBAL + pickle.STACK_GLOBAL + pickle.REDUCE + pickle.BINPERSID + pickle.BUILD,
    )
)


# The unpickler in Python: the one in C allocates whatever a hostile pickle names as the index of a memo.
class _Unpickler(pickle._Unpickler):
    """Makes plain containers, and `_Tensor`s for tensors."""

    dispatch: ClassVar = {code: pickle._Unpickler.dispatch[code] for code in _OPERATIONS}

    def __init__(self, file):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        raise Refused(
            f"expected tensors in plain containers, found {module[:80]}.{name[:80]}, which is refused"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise Refused("expected the reference of a storage, found something else")
        dtype, key, _, size = pid[1:5]
        if len(pid) > 5 and pid[5] is not None:
            raise Refused("expected whole storages, found a view of one (torch before 0.4)")
        if not (isinstance(dtype, np.dtype) and isinstance(key, str) and _count(size)):
            raise Refused("expected a storage's type, key and size, found something else")
        made = _Storage(key, dtype, size)
        if self.storages.setdefault(key, made) != made:
            raise Refused(f"expected one size and type of storage {key[:40]!r}, found two")
        return made

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _container(self.stack[-1], dict)[_plain_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        target = _container(self.stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_plain_key(key)] = value

    def load_append(self) -> None:
        value = self.stack.pop()
        _container(self.stack[-1], list).append(value)

    def load_appends(self) -> None:
        items = self.pop_mark()
        _container(self.stack[-1], list).extend(items)

    def load_build(self) -> None:
        self.stack.pop()  # attributes, as a state dict's `_metadata`: not wanted

    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]] = load_setitem, load_setitems
    dispatch[pickle.APPEND[0]], dispatch[pickle.APPENDS[0]] = load_append, load_appends
    dispatch[pickle.BUILD[0]] = load_build


def _container(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise Refused(f"expected a {kind.__name__} to fill, found {type(value).__name__}")
    return value


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    shape, strides = tuple(shape), tuple(strides)
    if not isinstance(storage, _Storage) or not all(map(_count, (offset, *shape, *strides))):
        raise Refused("expected a tensor's storage, offset, shape and strides, found something else")
    if len(shape) != len(strides) or len(shape) > 32:
        raise Refused(f"expected a stride for each of at most 32 axes, found {len(shape)} and {len(strides)}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise Refused(
            f"expected a tensor within its storage of {storage.size} numbers, found one up to {last}"
        )
    return _Tensor(storage, min(offset, storage.size), shape, strides)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    return {_plain_key(key): value for key, value in _container(items, list | tuple)}


_ALLOWED: Mapping[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
}


def _filled(found: Any, storage: Callable[[_Storage], bytes], max_bytes: int) -> dict[str, Any]:
    """The containers with arrays in place of `_Tensor`s; each storage is read once."""
    if not isinstance(found, dict):
        raise Refused(f"expected a dict of tensors, found {type(found).__name__}")
    tensors: dict[int, _Tensor] = {}
    _collect(found, tensors)
    storages = {t.storage.key: t.storage.size * t.storage.dtype.itemsize for t in tensors.values()}
    total = sum(t.bytes for t in tensors.values()) + max(storages.values(), default=0)
    if total > max_bytes:
        raise Refused(f"expected tensors of at most {max_bytes} bytes, found {total}")
    by_storage = collections.defaultdict(list)
    for tensor in tensors.values():
        by_storage[tensor.storage].append(tensor)
    arrays = {}
    for one, views in by_storage.items():
        data = storage(one)
        arrays |= {id(view): view.of(data) for view in views}
    return _replaced(found, arrays)


def _collect(value: Any, tensors: dict[int, _Tensor], depth: int = 0, seen: int = 0) -> int:
    """Notes all tensors; returns how many parts were seen, which a pickle of a few bytes can make endless."""
    if depth > _MAX_DEPTH or seen > _MAX_PARTS:
        raise Refused(f"expected at most {_MAX_PARTS} parts, nested at most {_MAX_DEPTH} deep, found more")
    seen += 1
    if isinstance(value, _Tensor):
        tensors[id(value)] = value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            seen = _collect(part, tensors, depth + 1, seen)
    return seen


def _replaced(value: Any, arrays: dict[int, np.ndarray]) -> Any:
    if isinstance(value, _Tensor):
        return arrays[id(value)]
    if isinstance(value, dict):
        return {key: _replaced(part, arrays) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(part, arrays) for part in value)
    return value
