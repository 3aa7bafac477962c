"""The memory of a training process on the CPU: kept from step to step."""

import ctypes
import sys

import jax

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep() -> bool:
    """Lets glibc keep what XLA frees, on the CPU, and says whether it does.

    By default it goes back to the system, which hands it out anew, page by page filled with zeros, at every
    step: a tenth of a step's time (benchmarks/README.md). The process then keeps what it needed at most.
    """
    if not sys.platform.startswith("linux") or jax.default_backend() != "cpu":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(
        mallopt(*option) for option in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    )
