"""Memory that a thread reuses for every image."""

from __future__ import annotations

import threading

import numpy as np

_local = threading.local()


#: Larger memory is not kept for the next image, so that the memory for one huge image is freed at once.
MAX_KEPT_BYTES = 64 * 2**20


def scratch(name: str, size: int) -> np.ndarray:
    """Return (size,) uint8 memory of this thread. It is valid until the next call with the same ``name``."""
    if size > MAX_KEPT_BYTES:
        return np.empty(size, dtype=np.uint8)
    held: dict[str, np.ndarray] = _local.__dict__
    memory = held.get(name)
    if memory is None or len(memory) < size:
        memory = held[name] = np.empty(size * 5 // 4, dtype=np.uint8)
    return memory[:size]
