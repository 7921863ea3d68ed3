"""Where the time of an epoch went: counters that the loader keeps, and the one line they amount to."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields

#: Under this share of the time spent waiting, data is not what limits training.
FINE = 0.05


@dataclass
class Times:
    """Seconds and counts, added up over threads."""

    waited: float = 0.0
    """The training loop stood still for a batch."""
    decode: float = 0.0
    """Threads were busy: reading, decoding and, where it is their work, geometry."""
    decode_cpu: float = 0.0
    """CPU time of that; the rest of ``decode`` was spent waiting for the disk or for a core."""
    copied: float = 0.0
    """Copies to the device ran."""
    samples: int = 0
    bytes_read: int = 0

    def __sub__(self, earlier: Times) -> Times:
        return Times(**{f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)})


@dataclass
class LoaderTimer:
    """Times so far; threads add to them."""

    times: Times = field(default_factory=Times)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **values: float) -> None:
        with self._lock:
            for name, value in values.items():
                setattr(self.times, name, getattr(self.times, name) + value)

    def snapshot(self) -> Times:
        """A copy, to take differences from."""
        with self._lock:
            return self.times - Times()


def verdict(times: Times, seconds: float, threads: int, cores: int, accelerator: str) -> str:
    """One line on what limited ``seconds`` of training, and what to do about it if that was data.

    ``threads`` decode in this process, which has ``cores`` to itself; ``accelerator`` is what computes ("GPU", "CPU").
    """
    share = times.waited / seconds if seconds > 0 else 0.0
    if share < FINE:
        return f"data {share:.1%} of the step: the {accelerator} is the limit"
    busy, working = times.decode / seconds, times.decode_cpu / seconds
    head = f"data {share:.0%} of the step: "
    if times.copied / seconds > 0.5:
        return (
            f"{head}the copy to the device is the limit ({times.copied / seconds:.0%} of the time); build the shards "
            f"with a smaller --short-side, or --data.geometry cpu"
        )
    if working < 0.5 * busy and working < 0.5 * cores:
        rate = times.bytes_read / seconds / 1e6
        return (
            f"{head}reading is the limit: {threads} threads wait for {rate:.0f} MB/s; copy the shards to a local disk, "
            f"or --data.order window"
        )
    if busy < 0.7 * threads:
        return f"{head}batches come too late although threads idle; --data.prefetch higher"
    return (
        f"{head}decode is the limit: {working:.1f} of {cores} cores busy; build the shards with a smaller --short-side"
        f"{', or --data.workers ' + str(cores) if threads < cores else ', or give the job more cores'}"
    )
