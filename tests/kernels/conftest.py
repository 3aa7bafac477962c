"""Native code, where this machine can make it."""

import pytest

from adafuse_jax.kernels import build


@pytest.fixture(scope="session")
def native():
    if not build.load():
        pytest.skip("no native code on this machine: it has no C++ compiler that can make it")
