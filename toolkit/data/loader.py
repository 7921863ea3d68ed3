"""Batches decoded ahead of time by a pool of threads (Pillow releases the GIL while it decodes and resizes).

The plan says which samples, the source gives their bytes, the transform makes pixels; batches come in plan order.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from shards.errors import UserError
from shards.executor import available_cores
from shards.files import one_line
from toolkit.data.plan import Share
from toolkit.data.transforms import Transform


class Source(Protocol):
    """Where encoded images come from: a ShardReader, or a list of files."""

    def image_bytes(self, index: int) -> bytes: ...

    def where(self, index: int) -> str: ...


@dataclass
class Batch:
    """Decoded samples of one share."""

    images: torch.Tensor
    """(n, S, S, 3) uint8."""
    share: Share
    errors: dict[int, str] = field(default_factory=dict)
    """Row → why its image could not be decoded (its pixels are zero)."""


class Loader:
    """Decodes shares in threads, ``prefetch`` batches ahead. One pool serves any number of passes.

    ``waited`` adds up the seconds that callers spent waiting for a batch.
    """

    def __init__(
        self, source: Source, image_size: int, workers: int, prefetch: int, *, keep_errors: bool = False
    ) -> None:
        self.source, self.size, self.prefetch, self.keep_errors = source, image_size, prefetch, keep_errors
        self.waited = 0.0
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def batches(
        self, shares: Iterable[Share], transforms: Callable[[Share], list[Transform]]
    ) -> Generator[Batch, None, None]:
        """Yield a Batch per share, in order. Raises UserError naming shard, key and offset of a damaged image,
        unless ``keep_errors`` asks for it to be told in ``Batch.errors``."""
        queue: deque[tuple[Batch, list[Future[None]]]] = deque()
        pending = iter(shares)
        try:
            while True:
                while len(queue) < self.prefetch and (share := next(pending, None)) is not None:
                    queue.append(self._submit(share, transforms(share)))
                if not queue:
                    return
                started = time.perf_counter()
                batch, futures = queue.popleft()
                for row, future in enumerate(futures):
                    self._collect(batch, row, future)
                self.waited += time.perf_counter() - started
                yield batch
        finally:
            for _, futures in queue:
                for future in futures:
                    future.cancel()

    def _submit(self, share: Share, transforms: list[Transform]) -> tuple[Batch, list[Future[None]]]:
        images = torch.zeros((len(share.indices), self.size, self.size, 3), dtype=torch.uint8)
        slots = images.numpy()

        def decode(row: int) -> None:
            slots[row] = transforms[row](self.source.image_bytes(int(share.indices[row])))

        return Batch(images, share), [self._pool.submit(decode, row) for row in range(len(transforms))]

    def _collect(self, batch: Batch, row: int, future: Future[None]) -> None:
        error = future.exception()
        if error is None:
            return
        problem = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        if not self.keep_errors:
            place = self.source.where(int(batch.share.indices[row]))
            raise UserError(
                f"{place} cannot be decoded ({problem}); run `posters shards verify` on the set"
            ) from error
        batch.errors[row] = problem

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def decode_threads(configured: int) -> int:
    """Threads for this process: as configured, or the cores of the machine divided by its processes."""
    return configured or max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def targets_of(share: Share, targets: np.ndarray) -> torch.Tensor:
    """(n, G) float32 targets of a share's samples."""
    return torch.from_numpy(targets[share.indices]).float()
