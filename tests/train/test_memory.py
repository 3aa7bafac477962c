"""The allocator keeps what was freed, once it is told to."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys

import numpy as np

from adafuse_jax.train import memory


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


if sys.argv[1] == "keep":
    assert memory.keep()
before = resident()
del_me = np.ones(25_000_000)
del del_me
print(resident() - before > 150)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not Linux")
@pytest.mark.parametrize(("what", "kept"), [("keep", "True"), ("nothing", "False")])
def test_freed_memory_stays(what, kept):
    done = subprocess.run([sys.executable, "-c", PROGRAM, what], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == kept
