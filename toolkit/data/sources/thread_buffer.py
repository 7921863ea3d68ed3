"""Memory that a thread uses again for every image."""

from __future__ import annotations

import threading

import numpy as np

_local = threading.local()


#: Larger memory is not kept: one huge picture would hold it for as long as the thread lives.
MAX_KEPT_BYTES = 64 * 2**20


def scratch(name: str, size: int) -> np.ndarray:
    """(size,) uint8 of this thread, under ``name``; its content lasts until the next call with that name."""
    if size > MAX_KEPT_BYTES:
        return np.empty(size, dtype=np.uint8)
    held: dict[str, np.ndarray] = _local.__dict__
    memory = held.get(name)
    if memory is None or len(memory) < size:
        memory = held[name] = np.empty(size * 5 // 4, dtype=np.uint8)
    return memory[:size]
