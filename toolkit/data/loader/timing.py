"""Measure the times of the loader, and describe the bottleneck of an epoch in one line."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields
from typing import NamedTuple

#: If training waits for data for less than this share of the time, data is not the bottleneck.
FINE = 0.05


@dataclass
class Times:
    """Seconds and counts, added up over threads."""

    waited: float = 0.0
    """Time that the training loop waited for batches."""
    decode: float = 0.0
    """Wall time in which threads read and decode. Crop and resize are included if they run on the CPU."""
    decode_cpu: float = 0.0
    """CPU time that threads use to read and decode. Waiting for the disk or for a core is not included."""
    copied: float = 0.0
    """Time of copies to the device."""
    samples: int = 0
    bytes_read: int = 0

    def __sub__(self, earlier: Times) -> Times:
        return Times(**{f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)})


@dataclass
class LoaderTimer:
    """Times, added up over all threads."""

    times: Times = field(default_factory=Times)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **values: float) -> None:
        with self._lock:
            for name, value in values.items():
                setattr(self.times, name, getattr(self.times, name) + value)

    def snapshot(self) -> Times:
        with self._lock:
            return self.times - Times()


class Bottleneck(NamedTuple):
    """What limits the speed of training."""

    cause: str
    line: str
    """A line with the share of the time that training waited, and a remedy if data is the bottleneck."""


def bottleneck(times: Times, seconds: float, threads: int, cores: int, accelerator: str) -> Bottleneck:
    """Return the bottleneck of training.

    seconds: training time. threads, cores: decoding threads and cores of this process. accelerator: GPU or CPU.
    """
    share = times.waited / seconds if seconds > 0 else 0.0
    if share < FINE:
        line = f"waiting for data takes {share:.1%} of the time: the {accelerator} is the limit"
        return Bottleneck("device", line)
    busy, working = times.decode / seconds, times.decode_cpu / seconds
    start = f"waiting for data takes {share:.0%} of the time: "
    if times.copied / seconds > 0.5:
        return Bottleneck(
            "copy",
            f"{start}the copy to the device is the limit ({times.copied / seconds:.0%} of the time); build the shards "
            f"with a smaller --short-side, or set --data.geometry cpu",
        )
    if working < 0.5 * busy and working < 0.5 * cores:
        rate = times.bytes_read / seconds / 1e6
        return Bottleneck(
            "reading",
            f"{start}reading is the limit ({threads} threads read only {rate:.0f} MB/s); copy the shards to a local "
            f"disk, or set --data.order window",
        )
    if busy < 0.7 * threads:
        line = f"{start}batches are late although threads are idle; set a higher --data.prefetch"
        return Bottleneck("prefetch", line)
    return Bottleneck(
        "decoding",
        f"{start}decoding is the limit ({working:.1f} of {cores} cores are busy); build the shards with a smaller "
        f"--short-side, or {f'set --data.workers {cores}' if threads < cores else 'give the job more cores'}",
    )
