"""Compiles the native code when it is first used, and keeps it for the next time.

Where it can't be compiled or loaded, `load` says why in one line of the log, and callers go on without it.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from adafuse_jax.errors import UserError, unknown

_UNITS = "compact.cc", "direct.cc", "winograd.cc"
_HEADERS = (
    *("common.h", "dots.h", "filter.h", "filtered.h", "levels.h", "minimal.h", "parallel.h", "policy.h"),
    *("products.h", "rows.h", "scratch.h", "stem.h", "tile.h", "tiles.h", "transforms.h", "vectors.h"),
)
SOURCES = tuple(Path(__file__).with_name(name) for name in (*_UNITS, *_HEADERS))
# As XLA and as the sources call what is in them.
HANDLERS = {
    "adafuse_jax_compact_block": "AdafuseCompactBlock",
    "adafuse_jax_stem": "AdafuseStem",
    "adafuse_jax_policy": "AdafusePolicy",
    "adafuse_jax_conv": "AdafuseConv",
    "adafuse_jax_conv_transpose": "AdafuseConvTranspose",
    "adafuse_jax_conv_gradient": "AdafuseConvGradient",
    "adafuse_jax_filter": "AdafuseFilter",
    "adafuse_jax_filter_gradient": "AdafuseFilterGradient",
}
LEVELS = ("best", "baseline", "avx2", "avx512")  # instructions to use; "best" is what the running CPU has
# None names a CPU: the code runs on any of the architecture, and chooses by itself what it can use.
# Loops begin where a line of the cache does: where they happen to lie, some were up to a fifth slower.
FLAGS = ("-std=c++17", "-O3", "-falign-functions=64", "-falign-loops=64", "-shared", "-fPIC", "-pthread")
SECONDS = 300  # for the compiler, which takes about 20

_log = logging.getLogger(__name__)
_lock = threading.Lock()


class BuildError(Exception):
    """Why there is no native code, in one line."""


def load() -> bool:
    """Makes the native code ready: as the FFI targets `HANDLERS` of the CPU.

    Tried once a process; a process that fails says so once.

    Returns:
        Whether it is ready.
    """
    with _lock:
        return _load()


def checked(x: Array, level: str) -> np.int64:
    """The number of a level, for a call of the native code that reads x.

    Raises:
        UserError: for another level than those of `LEVELS`, or x of another type than float32.
        RuntimeError: without native code.
    """
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    if x.dtype != jnp.float32:
        raise UserError(f"x: expected float32, found {x.dtype}")
    if not load():
        raise RuntimeError("compact execution: no native code, see the log")
    return np.int64(LEVELS.index(level))


@functools.cache
def _load() -> bool:
    try:
        library = _library()
    except BuildError as error:
        _log.warning("no native code: %s; training is slower, compact execution computes all (dense)", error)
        return False
    for target, handler in HANDLERS.items():
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, handler)), platform="cpu")
    return True


def compiler() -> list[str]:
    """The command of a C++ compiler: $CXX, or the first of the usual ones.

    Raises:
        BuildError: if there is none.
    """
    wanted = shlex.split(os.environ.get("CXX", ""))
    for command in [wanted] if wanted else [["c++"], ["g++"], ["clang++"]]:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    raise BuildError(f"no C++ compiler, looked for {wanted[0] if wanted else 'c++, g++ and clang++'}")


def key(command: list[str]) -> str:
    """Names what a compiler makes of the sources here: other versions or machines have other names."""
    about = [*command, *FLAGS, _run([*command, "--version"]), jax.lib.__version__, platform.machine()]
    digest = hashlib.sha256("\0".join([*about, platform.system(), *platform.libc_ver()]).encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def cache_folder() -> Path:
    """Where libraries are kept: of this user alone."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # A relative one is to be ignored, says the XDG Base Directory Specification.
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "adafuse_jax"


def _library() -> ctypes.CDLL:
    command = compiler()
    stem = f"native-{key(command)}"
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):  # can't be written to; RuntimeError: no home
        with tempfile.TemporaryDirectory(prefix="adafuse_jax-") as folder:
            return _opened(_compiled(command, Path(folder), stem))  # what is loaded stays when the file goes
    for path in folder.glob(f"{stem}-*.so"):
        if path.stem == f"{stem}-{_digest(path)}":  # opening a damaged one could end the process
            try:
                return _opened(path)
            except BuildError as error:
                _log.info("%s; compiled anew", error)
    return _opened(_compiled(command, folder, stem))


def _compiled(command: list[str], folder: Path, stem: str) -> Path:
    """Compiles into a file of its own, then puts it in place whole: others may build, too."""
    try:
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as fresh_folder:
            fresh = Path(fresh_folder) / f"{stem}.so"
            include = ["-isystem", jax.ffi.include_dir()]
            units = [str(source) for source in SOURCES if source.suffix == ".cc"]  # one library of all
            _run([*command, *FLAGS, *include, *units, "-o", str(fresh)])
            path = folder / f"{stem}-{_digest(fresh)}.so"
            fresh.replace(path)
    except OSError as error:
        raise BuildError(f"the library can't be written: {error}") from error
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _opened(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        for handler in HANDLERS.values():
            getattr(library, handler)
    except (OSError, AttributeError) as error:
        raise BuildError(f"the compiled library can't be loaded: {error}") from error
    return library


def _run(command: list[str]) -> str:
    """What a command prints, in any language's C locale."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"LC_ALL": "C"},
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} took more than {SECONDS} s") from error
    except OSError as error:
        raise BuildError(f"{command[0]} can't be run: {error.strerror}") from error
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line), lines[0] if lines else "nothing said")
        raise BuildError(f"{command[0]} failed: {said.strip()}")
    return done.stdout
