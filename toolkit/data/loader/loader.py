"""Decode batches in advance, in a given order, with threads whose decoders release the GIL.

    MicroBatch ─→ BatchTransform ─→ tasks of some rows ─ threads: read, decode ─→ PinnedBuffer
          ─ after the last task: copy to the device on a side stream ─→ device: crop and resize ─→ Batch

There are no worker processes, no shared memory and no pickling, so no time is needed to start workers. A MicroBatch
selects the samples, a Source reads their bytes, and a BatchTransform makes pixels. faults.py handles damaged images.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from toolkit.data.loader.buffers import PinnedBuffer
from toolkit.data.loader.faults import ATTEMPTS, FaultPolicy, Faults
from toolkit.data.loader.thread_pool import borrow_pool, give_back_pool
from toolkit.data.loader.timing import LoaderTimer
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sources.errors import Undecodable
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import BatchTransform, Transforms
from toolkit.data.transforms.jpeg import SwappedSize
from toolkit.device.transfer import to_device

#: Smallest and largest number of rows in a thread's task. Small tasks balance the threads, and large ones cost less.
CHUNK = (4, 32)


class Source(Protocol):
    """A source of encoded images, such as a ShardReader or a list of files."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> memoryview:
        """Return the writable bytes of a sample. They are valid until the next read of this thread.

        Raises Undecodable if only this image is missing or damaged. Raises UserError for other errors of reading.
        """

    def where(self, index: int) -> str: ...


@dataclass
class Work:
    """A micro-batch that the threads decode, or have decoded."""

    micro_batch: MicroBatch
    transform: BatchTransform
    buffer: PinnedBuffer
    indices: np.ndarray
    """(n,) samples of the rows. If a sample of ``micro_batch`` cannot be decoded, its substitute is here instead."""
    valid: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)
    squares: dict[int, np.ndarray | None] = field(default_factory=dict)
    """Row → (S, S, 3) pixels. Only for rows whose pixels are not in the buffer. None means zeros: there is no image."""
    fields: dict[int, Any] = field(default_factory=dict)
    """Row → result of the loader's ``fields``."""
    futures: list[Future[None]] = field(default_factory=list)
    unfinished: int = 0
    """Number of tasks that have not finished."""
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Batch:
    """Decoded samples of one micro-batch, on the device."""

    images: torch.Tensor
    """(n, S, S, 3) whole numbers from 0 to 255, uint8 or float. On a GPU, a later batch can overwrite this memory."""
    micro_batch: MicroBatch
    """The samples of ``images``. If an image is damaged, its row has another sample (a substitute) or valid=False."""
    errors: dict[int, str]
    """Row without a decoded image → the reason. Rows with a substitute are not included."""
    fields: dict[int, Any] = field(default_factory=dict)
    """Row → result of the loader's ``fields`` for the sample of the row. Empty if the loader has no ``fields``."""


class Loader(contextlib.AbstractContextManager["Loader"]):
    """Decode up to ``prefetch`` micro-batches in advance, in threads. Run only one ``batches()`` at a time."""

    def __init__(
        self,
        source: Source,
        threads: int,
        prefetch: int,
        *,
        device: torch.device | str = "cpu",
        policy: FaultPolicy | None = None,
        fields: Callable[[int], Any] | None = None,
    ) -> None:
        """``fields``: a function of a sample, called in the thread that decodes it. Its results are in Batch.fields."""
        self.source, self.threads, self.prefetch, self.fields = source, threads, prefetch, fields
        self.device = torch.device(device)
        self.timer = LoaderTimer()
        self.faults = Faults(policy or FaultPolicy(), len(source))
        self._pool = borrow_pool(threads)
        self.closed = False
        self._buffers = [PinnedBuffer(self.device) for _ in range(prefetch + 1)]
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def batches(
        self, micro_batches: Iterable[MicroBatch], transforms: Transforms, epoch: int = 0
    ) -> Generator[Batch, None, None]:
        """Yield a Batch for each micro-batch, in order.

        Raises UserError, with shard, key and offset, if more images are damaged than the fault policy allows. Errors of
        the source's ``read``, except Undecodable, are passed on.
        """
        with contextlib.closing(self.decoded(micro_batches, transforms, epoch)) as works:
            for work in works:
                images = work.transform.images(work.buffer.on_device(work.transform.size))
                for row, square in work.squares.items():
                    images[row] = 0 if square is None else to_device(square, images.device)
                done = replace(work.micro_batch, indices=work.indices, valid=work.valid)
                yield Batch(images, done, work.errors, work.fields)

    def decoded(
        self, micro_batches: Iterable[MicroBatch], transforms: Transforms, epoch: int = 0
    ) -> Generator[Work, None, None]:
        """Yield a Work for each micro-batch, after its buffer is filled and the copy to the device has started."""
        queue: deque[Work] = deque()
        free = deque(self._buffers)
        pending = iter(micro_batches)
        try:
            while True:
                while len(queue) < self.prefetch and (micro_batch := next(pending, None)) is not None:
                    queue.append(self._start(micro_batch, transforms, epoch, free.popleft()))
                if not queue:
                    return
                started = time.perf_counter()
                work = queue[0]
                for future in work.futures:
                    future.result()
                self.timer.add(waited=time.perf_counter() - started)
                queue.popleft()
                self.faults.check()
                try:
                    yield work
                finally:  # also if the caller stops here: the device may still read the buffer
                    self.timer.add(copied=work.buffer.release())
                    free.append(work.buffer)
        finally:
            # Wait for threads that still write to these buffers, because the next call uses the same buffers.
            for work in queue:
                for future in work.futures:
                    future.cancel()
            wait([future for work in queue for future in work.futures])

    def _start(self, micro_batch: MicroBatch, transforms: Transforms, epoch: int, buffer: PinnedBuffer) -> Work:
        transform = transforms(micro_batch)
        memory = buffer.reserve(transform.size)
        work = Work(micro_batch, transform, buffer, micro_batch.indices.copy(), micro_batch.valid.copy())
        rows = range(len(micro_batch.indices))
        chunk = min(max(len(rows) // (2 * self.threads), CHUNK[0]), CHUNK[1])
        starts = rows[::chunk]
        work.unfinished = len(starts)

        def run(start: int) -> None:
            began, began_cpu, size = time.perf_counter(), time.thread_time(), 0
            for row in rows[start : start + chunk]:
                size += self._row(work, row, memory, transforms, epoch)
                if self.fields is not None:
                    work.fields[row] = self.fields(int(work.indices[row]))
            self.timer.add(
                decode=time.perf_counter() - began,
                decode_cpu=time.thread_time() - began_cpu,
                samples=min(chunk, len(rows) - start),
                bytes_read=size,
            )
            with work.lock:
                work.unfinished -= 1
                last = work.unfinished == 0
            if last:
                buffer.start_copy(transform.size, self._stream)

        work.futures = [self._pool.submit(run, start) for start in starts]
        return work

    def _row(self, work: Work, row: int, memory: np.ndarray, transforms: Transforms, epoch: int) -> int:
        """Decode one row. Return the number of bytes read."""
        sample = int(work.indices[row])
        try:
            data = self.source.read(sample)
            try:
                work.transform.row(row, data, memory)
            except SwappedSize:
                work.squares[row] = work.transform.square(row, data)
            return len(data)
        except Undecodable as error:
            problem = str(error)
        self.faults.report(sample, f"{self.source.where(sample)} cannot be decoded ({problem})")
        if self.faults.policy.on_error == "replace":
            for attempt in range(ATTEMPTS):
                other = self.faults.substitute(epoch, sample, attempt)
                one = MicroBatch(np.array([other]), np.array([True]))
                try:
                    data = self.source.read(other)
                    work.squares[row] = transforms(one).square(0, data)
                except Undecodable as error:
                    self.faults.report(other, f"{self.source.where(other)} cannot be decoded ({error})")
                    continue
                work.indices[row] = other
                return len(data)
        if work.valid[row]:  # a padding row repeats a sample of another row, which reports the error
            work.errors[row] = problem
        work.valid[row] = False
        work.squares[row] = None
        return 0

    def close(self) -> None:
        """Give the threads back. They end if no other loader uses them. Further calls do nothing."""
        if not self.closed:
            self.closed = True
            give_back_pool(self._pool)

    def __exit__(self, *_: object) -> None:
        self.close()


def targets_of(micro_batch: MicroBatch, reader: ShardReader) -> torch.Tensor:
    """Return the (n, G) float32 targets of the samples of a micro-batch."""
    return torch.from_numpy(reader.targets_of(micro_batch.indices)).float()
