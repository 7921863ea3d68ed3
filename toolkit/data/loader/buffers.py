"""Reusable memory for decoded batches.

For a GPU, a buffer has pinned host memory and memory on the device. The thread that decodes the last image of a batch
starts the copy to the device on a side stream. The copy overlaps with the previous training step. The training stream
waits for the event at the end of the copy. Decoding processes write to host memory that they share with this process.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from shards.errors import UserError, one_line

GROWTH = 1.25  # batches differ in size, and some extra memory avoids most later allocations


class PinnedBuffer:
    """Memory for one batch on the host and, for a GPU, on the device.

    The main thread calls ``reserve``. Threads or processes write. After the last row, ``start_copy`` is called. The
    main thread calls ``on_device``, queues all work that reads the buffer, and then calls ``release``.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.host = torch.empty(0, dtype=torch.uint8)
        self.device_memory = self.host
        self._used: Any = None
        self._events: tuple[Any, Any] | None = None
        self._lent: weakref.ref[np.ndarray] | None = None

    def reserve(self, size: int) -> np.ndarray:
        """Return (size,) uint8 host memory to write to. Waits until the previous copy from this memory has ended."""
        if self._events is not None:
            self._events[1].synchronize()
        kept = self._lent is not None and self._lent() is not None  # a tensor of an earlier batch still exists
        self._lent = None
        if size > len(self.host) or kept:
            if self.cuda:
                torch.cuda.synchronize(self.device)  # rare; queued work on the device may still use the old memory
            # Other threads copy into this memory, so it must never be an inference tensor.
            with torch.inference_mode(False):
                self.host = self._allocate(int(size * GROWTH))
                self.device_memory = torch.empty_like(self.host, device=self.device) if self.cuda else self.host
        return self.host.numpy()[:size]

    def _allocate(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.cuda)

    def start_copy(self, size: int, stream: Any) -> None:
        """Start the copy to the device on ``stream``. Do nothing on a CPU."""
        if not self.cuda:
            return
        started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            if self._used is not None:
                stream.wait_event(self._used)
            started.record(stream)
            self.device_memory[:size].copy_(self.host[:size], non_blocking=True)
            ended.record(stream)
        self._events = started, ended

    def on_device(self, size: int) -> torch.Tensor:
        """Return the first ``size`` bytes of the buffer as uint8 on the device. Use them on the current CUDA stream.

        On a CPU, later batches do not overwrite the bytes while a tensor of them exists.
        """
        if self._events is not None:
            torch.cuda.current_stream(self.device).wait_event(self._events[1])
        elif self.device.type == "cpu":
            memory = self.host.numpy()[:size]  # the tensors of this memory keep the array, so its end is their end
            self._lent = weakref.ref(memory)
            return torch.from_numpy(memory)
        else:
            return self.host[:size].to(self.device)
        return self.device_memory[:size]

    def release(self) -> float:
        """Record that all work on the buffer is queued. Return the copy's duration in seconds, or 0 if unknown."""
        if self._events is None:
            return 0.0
        self._used = torch.cuda.Event()
        self._used.record(torch.cuda.current_stream(self.device))
        started, ended = self._events
        return started.elapsed_time(ended) / 1000.0 if ended.query() else 0.0


class SharedBuffer(PinnedBuffer):
    """A buffer whose host memory is shared with decoding processes.

    The memory is an anonymous file (memfd), so nothing in ``/dev/shm`` is used and nothing is left behind. It is freed
    when no process maps it.
    """

    def __init__(self, device: torch.device, number: int, share: Callable[[int, int, int], None]) -> None:
        """``share(number, file, size)`` passes new memory to the processes. The file is closed after it returns."""
        super().__init__(device)
        self.number, self._share = number, share

    def _allocate(self, size: int) -> torch.Tensor:
        try:
            file = os.memfd_create("decoded-batch")
        except OSError as error:
            what = f"the memory of a batch cannot be shared with decoding processes ({one_line(error)})"
            raise UserError("environment", f"{what}; raise the limit of open files (ulimit -n)") from None
        try:
            os.ftruncate(file, size)
            memory = np.frombuffer(mmap.mmap(file, size), dtype=np.uint8)
            self._share(self.number, file, size)
        finally:
            os.close(file)
        if self.cuda:
            pin(memory, self.device)
        return torch.from_numpy(memory)


def pin(memory: np.ndarray, device: torch.device) -> None:
    """Pin host memory for copies to a GPU, until the array is freed."""
    cudart: Any = torch.cuda.cudart()
    address = memory.ctypes.data
    with torch.cuda.device(device):
        torch.cuda.check_error(cudart.cudaHostRegister(address, memory.nbytes, 0))

    def unpin() -> None:
        torch.cuda.synchronize(device)  # a copy from this memory may be running
        torch.cuda.check_error(cudart.cudaHostUnregister(address))

    # At the end of the interpreter, the driver unpins all memory itself.
    weakref.finalize(memory, unpin).atexit = False
