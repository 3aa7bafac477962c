"""How the process keeps the memory that it frees."""

import ctypes

# Of glibc's malloc.h. Other C libraries have no `mallopt`, or other numbers for other things.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
    """Lets glibc keep what is freed for the next time, instead of giving it back to the system.

    XLA on the CPU frees the temporaries of a step, or call, at its end. The system hands them out as pages of
    zeros, at the first touch of each: with some 400 MB a step that took a fifth of its processor time. So
    that blocks of this size are kept, all threads share one heap: those that start after this, so that it is
    to be called before JAX finds its devices.

    Returns:
        Whether the C library does it.
    """
    try:
        library = ctypes.CDLL(None)
        if not hasattr(library, "gnu_get_libc_version"):
            return False
        options = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1))
        return all([library.mallopt(*option) == 1 for option in options])
    except (OSError, TypeError):  # TypeError: Windows opens no library None
        return False
