"""Memory that stays with the process: on a CPU, what torch frees after one layer it wants back for the next.

glibc gives blocks of 32 MB and more back to the system as soon as they are freed, and asks for them again: every page
of an activation is then cleared and mapped anew in every pass. Told to keep them, a forward pass of ResNet50 on batches
of 64 took half the time on two cores (tests/bench/predict.py --stacks forward). The price: the process stays as large
as it once was.
"""

from __future__ import annotations

import ctypes
import os

#: Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = 2**31 - 1
#: Whoever sets one of these has a mind of their own.
SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let malloc keep what this process frees. Returns whether it does: not without glibc, nor against SETTINGS."""
    if any(name in os.environ for name in SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
