"""Decode the rows of micro-batches. Threads (threads.py) and processes (processes.py) run the same code."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from toolkit.data.loader.buffers import PinnedBuffer
from toolkit.data.loader.faults import ATTEMPTS, Faults
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sources.errors import Undecodable
from toolkit.data.transforms.batch_transform import BatchTransform, Transforms
from toolkit.data.transforms.jpeg import SwappedSize

#: Smallest and largest number of rows in a task. Small tasks balance the threads, and large ones cost less.
CHUNK = (4, 32)


class Source(Protocol):
    """A source of encoded images, such as a ShardReader or a list of files."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> memoryview:
        """Return the writable bytes of a sample. They are valid until the next read of this thread.

        Raises Undecodable if only this image is missing or damaged. Raises UserError for other errors of reading.
        """

    def where(self, index: int) -> str: ...


@dataclass(kw_only=True)
class Rows:
    """Successive rows of a micro-batch, and the results of decoding them."""

    micro_batch: MicroBatch
    transform: BatchTransform
    indices: np.ndarray
    """(n,) samples of the rows. If a sample of ``micro_batch`` cannot be decoded, its substitute is here instead."""
    valid: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)
    squares: dict[int, np.ndarray | None] = field(default_factory=dict)
    """Row → (S, S, 3) pixels. Only for rows whose pixels are not in the buffer. None means zeros: there is no image."""
    fields: dict[int, Any] = field(default_factory=dict)
    """Row → result of the loader's ``fields``."""


@dataclass(kw_only=True)
class Work(Rows):
    """A micro-batch that is being decoded, or has been decoded."""

    buffer: PinnedBuffer
    futures: list[Future[None]] = field(default_factory=list)
    """The tasks of threads. Empty if processes decode."""
    unfinished: int = 0
    """Number of tasks that have not finished."""
    failure: BaseException | None = None
    """The error of a task of a process."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tasks(self, width: int) -> list[range]:
        """Divide the rows into tasks for ``width`` threads or processes."""
        rows = range(len(self.indices))
        chunk = min(max(len(rows) // (2 * width), CHUNK[0]), CHUNK[1])
        return [rows[start : start + chunk] for start in rows[::chunk]]


class Crew(Protocol):
    """Threads or processes that decode micro-batches for one loader."""

    def buffer(self) -> PinnedBuffer:
        """Return a new buffer for the pixels of one micro-batch."""

    def start(self, work: Work, memory: np.ndarray, transforms: Transforms, epoch: int) -> None:
        """Start to decode ``work`` into ``memory``. The copy to the device starts after the last row."""

    def finish(self, work: Work) -> None:
        """Wait until ``work`` is decoded. Errors, except Undecodable, are passed on."""

    def drop(self, works: list[Work]) -> None:
        """Wait until nothing writes to the buffers of ``works``. Their results are not used."""

    def close(self) -> None:
        """Declare that the loader needs the threads or processes no longer."""


@dataclass(frozen=True)
class Decoder:
    """What is needed to decode any row of a source."""

    source: Source
    faults: Faults
    fields: Callable[[int], Any] | None

    def decode(self, found: Rows, rows: range, memory: np.ndarray, transforms: Transforms, epoch: int) -> int:
        """Decode some rows of ``found`` into ``memory``. Return the number of bytes read."""
        size = 0
        for row in rows:
            size += self._row(found, row, memory, transforms, epoch)
            if self.fields is not None:
                found.fields[row] = self.fields(int(found.indices[row]))
        return size

    def _row(self, found: Rows, row: int, memory: np.ndarray, transforms: Transforms, epoch: int) -> int:
        sample = int(found.indices[row])
        try:
            data = self.source.read(sample)
            try:
                found.transform.row(row, data, memory)
            except SwappedSize:
                found.squares[row] = found.transform.square(row, data)
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
                    found.squares[row] = transforms(one).square(0, data)
                except Undecodable as error:
                    self.faults.report(other, f"{self.source.where(other)} cannot be decoded ({error})")
                    continue
                found.indices[row] = other
                return len(data)
        if found.valid[row]:  # a padding row repeats a sample of another row, which reports the error
            found.errors[row] = problem
        found.valid[row] = False
        found.squares[row] = None
        return 0
