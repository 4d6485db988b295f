"""Memory that a step frees is kept by its process for the next step (Linux with glibc).

As it is, glibc gives the free end of its heap back to the kernel.  A training step frees hundreds
of megabytes, so the kernel maps and clears every page of them anew in the next one (what it costs:
``aeft bench training``, row `step_memory`).  No result depends on it.
"""

import ctypes
import os
from contextlib import suppress

# The largest block that comes from the heap, as glibc has it at most, and the free end of the heap
# that is given back, here never: variables that a new process reads, codes of mallopt, values.
HEAP_BLOCK = ("MALLOC_MMAP_THRESHOLD_", -3, 32 * 2**20)
FREE_END = ("MALLOC_TRIM_THRESHOLD_", -1, 2**31 - 1)


def keep_freed() -> None:
    """Keep freed memory, in this process and in those that it starts.

    What the variables say already stays.  Without glibc nothing happens.
    """
    for name, code, value in (HEAP_BLOCK, FREE_END):
        if name not in os.environ:
            os.environ[name] = str(value)
            set_option(code, value)


def set_option(code: int, value: int) -> None:
    """``mallopt`` of this process, where the C library has it."""
    with suppress(OSError, TypeError, AttributeError):  # Windows, macOS, another C library
        ctypes.CDLL(None).mallopt(code, value)
