"""Threads that decode. All loaders of a process with the same number of threads share them."""

from __future__ import annotations

import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import torch

from toolkit.data.loader.buffers import PinnedBuffer
from toolkit.data.loader.timing import LoaderTimer
from toolkit.data.loader.work import Decoder, Work
from toolkit.data.transforms.batch_transform import Transforms

#: Reentrant, because the garbage collector can end a crew while its thread holds the lock.
_lock = threading.RLock()
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


def give_back_pool(pool: ThreadPoolExecutor, wait: bool = False) -> None:
    """Declare that a loader no longer needs the pool. Its threads end with the last loader.

    Without ``wait``, return before the threads have ended, because a thread of the pool itself cannot wait for them.
    """
    with _lock:
        key = next((key for key, (other, _) in list(_pools.items()) if other is pool), None)
        if key is None or key[0] != os.getpid():
            return
        users = _pools[key][1] - 1
        if users:
            _pools[key] = pool, users
            return
        del _pools[key]
    pool.shutdown(wait=wait, cancel_futures=True)


class ThreadCrew:
    """The decoding threads of one loader."""

    def __init__(self, threads: int, decoder: Decoder, timer: LoaderTimer, device: torch.device, stream: Any) -> None:
        self._threads, self._decoder, self._timer, self._device, self._stream = threads, decoder, timer, device, stream
        self._pool = borrow_pool(threads)
        self._forgotten = weakref.finalize(self, give_back_pool, self._pool)  # a loader that nobody closed

    def buffer(self) -> PinnedBuffer:
        return PinnedBuffer(self._device)

    def start(self, work: Work, memory: np.ndarray, transforms: Transforms, epoch: int) -> None:
        def run(rows: range) -> None:
            began, began_cpu = time.perf_counter(), time.thread_time()
            size = self._decoder.decode(work, rows, memory, transforms, epoch)
            self._timer.add(
                decode=time.perf_counter() - began,
                decode_cpu=time.thread_time() - began_cpu,
                samples=len(rows),
                bytes_read=size,
            )
            with work.lock:
                work.unfinished -= 1
                last = work.unfinished == 0
            if last:
                work.buffer.start_copy(work.transform.size, self._stream)

        tasks = work.tasks(self._threads)
        work.unfinished = len(tasks)
        work.futures = [self._pool.submit(run, rows) for rows in tasks]

    def finish(self, work: Work) -> None:
        for future in work.futures:
            future.result()

    def drop(self, works: list[Work]) -> None:
        futures = [future for work in works for future in work.futures]
        for future in futures:
            future.cancel()
        wait(futures)

    def close(self) -> None:
        if self._forgotten.detach():
            give_back_pool(self._pool, wait=True)
