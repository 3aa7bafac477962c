"""Memory that a step, or a call, frees serves the next one."""

import subprocess
import sys

import pytest
from helpers import ROOT

# Pages that the system hands out, of 4 kB at least, while 64 MB are taken and freed three times.
PROGRAM = """
import ctypes, resource, runpy, sys, threading

library, size = ctypes.CDLL(None), 64 << 20
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def step():
    block = library.malloc(size)
    ctypes.memset(block, 1, size)
    library.free(block)

def steps():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        step()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[1] == "keep" and not runpy.run_path("adafuse_jax/memory.py")["keep_freed"]():
    print("cannot")
    sys.exit()
faults = []
thread = threading.Thread(target=steps)
thread.start()
thread.join()
print(*faults)
"""


def faults(how: str) -> str:
    command = [sys.executable, "-c", PROGRAM, how]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_what_is_freed_is_kept():
    kept = faults("keep")
    if kept == "cannot":
        pytest.skip("the C library is not glibc")
    assert int(kept) < 100 < int(faults("give back"))
