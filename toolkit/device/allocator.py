"""Keep freed memory in the process: on a CPU, torch frees the activations of a layer and allocates them for the next.

glibc returns freed blocks of 32 MB and more to the system at once. Every page of an activation is then cleared and
mapped again in every pass. With freed memory kept, a forward pass of ResNet50 on batches of 64 took half the time on
two cores (tests/bench/predict.py --stacks forward). The cost: the memory of the process never shrinks.
"""

from __future__ import annotations

import ctypes
import os

#: Constants of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = 2**31 - 1
#: Environment variables with which users configure malloc; they take precedence.
SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Make malloc keep freed memory. Return whether it does: False without glibc, or if one of SETTINGS is set."""
    if any(name in os.environ for name in SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
