"""Decode batches in advance, in a given order, with threads whose decoders release the GIL.

    MicroBatch ─→ BatchTransform ─→ tasks of some rows ─ threads: read, decode ─→ PinnedBuffer
          ─ after the last task: copy to the device on a side stream ─→ device: crop and resize ─→ Batch

A MicroBatch selects the samples, a Source reads their bytes, and a BatchTransform makes pixels. faults.py handles
damaged images. With ``processes``, other processes read and decode (processes.py), so that decoding does not take the
GIL from the thread that uses the batches. Without it there are no worker processes, no shared memory and no pickling.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from shards.errors import UserError
from toolkit.data.loader.buffers import PinnedBuffer
from toolkit.data.loader.faults import FaultPolicy, Faults
from toolkit.data.loader.processes import ProcessCrew
from toolkit.data.loader.threads import ThreadCrew
from toolkit.data.loader.timing import LoaderTimer
from toolkit.data.loader.work import Crew, Decoder, Source, Work
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import Transforms
from toolkit.device.transfer import to_device


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
    """Decode up to ``prefetch`` micro-batches in advance. Run only one ``batches()`` at a time."""

    def __init__(
        self,
        source: Source,
        threads: int,
        prefetch: int,
        *,
        device: torch.device | str = "cpu",
        policy: FaultPolicy | None = None,
        fields: Callable[[int], Any] | None = None,
        processes: int = 0,
    ) -> None:
        """``fields``: a function of a sample, called in the thread that decodes it. Its results are in Batch.fields.

        processes: number of processes that decode instead of ``threads``, on Linux. Batches are the same. Source,
        transforms and fields must be picklable. Raises UserError if they are not, or if this is not Linux.
        """
        self.source, self.threads, self.prefetch, self.fields = source, threads, prefetch, fields
        self.device = torch.device(device)
        self.timer = LoaderTimer()
        self.faults = Faults(policy or FaultPolicy(), len(source))
        self.closed = False
        self._owner = os.getpid()
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        decoder = Decoder(source, self.faults, fields)
        kind, width = (ProcessCrew, processes) if processes else (ThreadCrew, threads)
        self._crew: Crew = kind(width, decoder, self.timer, self.device, stream)
        self._buffers = [self._crew.buffer() for _ in range(prefetch + 1)]

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
                if os.getpid() != self._owner:  # a fork has no threads, and its results would be taken from the parent
                    what = "a loader cannot be used in a fork of the process that made it"
                    raise UserError("option-conflict", f"{what}: make a loader in each process")
                while len(queue) < self.prefetch and (micro_batch := next(pending, None)) is not None:
                    queue.append(self._start(micro_batch, transforms, epoch, free.popleft()))
                if not queue:
                    return
                started = time.perf_counter()
                work = queue[0]
                self._crew.finish(work)
                self.timer.add(waited=time.perf_counter() - started)
                queue.popleft()
                self.faults.check()
                try:
                    yield work
                finally:  # also if the caller stops here: the device may still read the buffer
                    self.timer.add(copied=work.buffer.release())
                    free.append(work.buffer)
        finally:
            if os.getpid() == self._owner:
                self._crew.drop(list(queue))  # the next call uses the same buffers

    def _start(self, micro_batch: MicroBatch, transforms: Transforms, epoch: int, buffer: PinnedBuffer) -> Work:
        work = Work(
            micro_batch=micro_batch,
            transform=transforms(micro_batch),
            buffer=buffer,
            indices=micro_batch.indices.copy(),
            valid=micro_batch.valid.copy(),
        )
        self._crew.start(work, buffer.reserve(work.transform.size), transforms, epoch)
        return work

    def close(self) -> None:
        """Give the threads back, or end the processes. Threads end with their last loader. Further calls do nothing."""
        if not self.closed:
            self.closed = True
            self._crew.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def targets_of(micro_batch: MicroBatch, reader: ShardReader) -> torch.Tensor:
    """Return the (n, G) float32 targets of the samples of a micro-batch."""
    return torch.from_numpy(reader.targets_of(micro_batch.indices)).float()
