"""Make forward passes on a CPU faster: the process keeps freed memory for its next allocation.

By default, glibc returns a freed block of 32 MB or more to the operating system. The activations of a layer are often
that large, so the system clears and maps new memory for every layer. On two cores, a forward pass of
ResNet50 on batches of 64 took half the time when freed memory was kept (tests/bench/predict.py --stacks forward). But
the memory of the process never shrinks.
"""

from __future__ import annotations

import ctypes
import os

#: Options of mallopt() in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
#: Environment variables that configure malloc. If a user sets one of them, this module changes nothing.
SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Make malloc keep freed memory. Return False if that fails, or if a variable of SETTINGS is in the environment."""
    if any(name in os.environ for name in SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
