"""Threads that decode, shared by all loaders of a process with the same number of threads."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

_lock = threading.Lock()
#: (process, number of threads) → the pool and the number of loaders that use it. A forked process has no threads, so
#: it gets pools of its own.
_pools: dict[tuple[int, int], tuple[ThreadPoolExecutor, int]] = {}


def borrow_pool(threads: int) -> ThreadPoolExecutor:
    """Return a pool of ``threads`` threads. Loaders that are used in turn, for training and validation, share it."""
    key = os.getpid(), threads
    with _lock:
        pool, users = _pools.get(key, (None, 0))
        pool = pool or ThreadPoolExecutor(threads, thread_name_prefix="decode")
        _pools[key] = pool, users + 1
        return pool


def give_back_pool(pool: ThreadPoolExecutor) -> None:
    """Declare that a loader no longer needs the pool. Its threads end with the last loader."""
    with _lock:
        key = next((key for key, (other, _) in _pools.items() if other is pool), None)
        if key is None or key[0] != os.getpid():
            return
        users = _pools[key][1] - 1
        if users:
            _pools[key] = pool, users
            return
        del _pools[key]
    pool.shutdown(wait=True, cancel_futures=True)
