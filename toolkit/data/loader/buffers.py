"""The memory that batches are decoded into: a few slots, used again and again; and how small arrays reach a device.

On a GPU a slot is pinned host memory and a twin on the device. The thread that decodes the last image of a batch starts
the copy on a side stream, so that it runs under the step before; the training stream waits for it by an event.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

GROWTH = 1.25  # batches differ in size: growing a little more than needed soon ends the growing


class PinnedBuffer:
    """Bytes for one batch on the host and, on a GPU, their twin on the device.

    Life of a slot: ``room`` (main thread) → threads write → ``send`` (whoever finishes) → ``on_device`` (main) →
    ``free`` (main, once the work that reads it has been queued).
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.host = torch.empty(0, dtype=torch.uint8)
        self.twin = self.host
        self._used: Any = None
        self._events: tuple[Any, Any] | None = None

    def reserve(self, size: int) -> np.ndarray:
        """(size,) uint8 host memory to write to. Waits for the copy before, which has long ended."""
        if self._events is not None:
            self._events[1].synchronize()
        if size > len(self.host):
            if self.cuda:
                torch.cuda.synchronize(self.device)  # rare: nothing may still read what is about to go
            # Not an inference tensor, whatever the caller is doing: threads outside of inference mode copy into it.
            with torch.inference_mode(False):
                self.host = torch.empty(int(size * GROWTH), dtype=torch.uint8, pin_memory=self.cuda)
                self.twin = torch.empty_like(self.host, device=self.device) if self.cuda else self.host
        return self.host.numpy()[:size]

    def start_copy(self, size: int, stream: Any) -> None:
        """Start the copy to the device on ``stream``; nothing to do on a CPU."""
        if not self.cuda:
            return
        started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            if self._used is not None:
                stream.wait_event(self._used)
            started.record(stream)
            self.twin[:size].copy_(self.host[:size], non_blocking=True)
            ended.record(stream)
        self._events = started, ended

    def on_device(self, size: int) -> torch.Tensor:
        """(size,) uint8 on the device, ready for the current stream."""
        if self._events is not None:
            torch.cuda.current_stream(self.device).wait_event(self._events[1])
        elif self.device.type != "cpu":
            return self.host[:size].to(self.device)
        return self.twin[:size]

    def release(self) -> float:
        """Say that all work that reads the slot has been queued. Returns the seconds the copy took, if known by now."""
        if self._events is None:
            return 0.0
        self._used = torch.cuda.Event()
        self._used.record(torch.cuda.current_stream(self.device))
        started, ended = self._events
        return started.elapsed_time(ended) / 1000.0 if ended.query() else 0.0
