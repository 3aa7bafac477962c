"""8 virtual CPU devices for the sharding tests, and where the shared golden cases lie."""

import os

# Before jax starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "")
if "host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def give_back():
    """Many tests run in one process, which is not to keep all that each of them frees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adafuse_jax.memory.keep_freed", lambda: False)
        yield


@pytest.fixture(scope="session")
def golden():
    """The module `golden_lib` of ../shared/golden: rebuilds weights and inputs of the golden cases."""
    folder = SHARED / "golden"
    if not (folder / "golden_lib.py").exists():
        pytest.skip(f"no golden cases at {folder}")
    sys.path.insert(0, str(folder))
    try:
        import golden_lib
    finally:
        sys.path.remove(str(folder))
    return golden_lib


@pytest.fixture(scope="session")
def golden_units(golden):
    """(meta, arrays) of the unit cases."""
    return golden.load("units")


@pytest.fixture(scope="session")
def clips():
    """The folder of real clips."""
    folder = SHARED / "clips"
    if not folder.exists():
        pytest.skip(f"no real clips at {folder}")
    return folder


@pytest.fixture(scope="session")
def native():
    """Native code, where this machine can make it."""
    from adafuse_jax.kernels import build

    if not build.load():
        pytest.skip("no native code on this machine: it has no C++ compiler that can make it")
