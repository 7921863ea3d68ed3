"""Choose between decoding threads and decoding processes, from measured times. Nothing is measured here."""

from __future__ import annotations

from typing import NamedTuple

#: Processes are chosen only if they give this factor of the images/s of threads or more. They need seconds to start and
#: memory for an interpreter each, and the times are not exact.
CLEARLY = 1.1


class DecodeTimes(NamedTuple):
    """Measured seconds per image. tests/bench/decode_processes.py measures all of them."""

    decode: float
    """CPU time of a decoding thread."""
    lock: float
    """The part of ``decode`` in which the thread holds Python's global interpreter lock."""
    consumer: float
    """Time of the consumer, such as a forward pass on the GPU, if batches are always ready."""
    launch: float = 0.0
    """The part of ``consumer`` in which the consumer's thread needs the lock, to start GPU kernels."""
    task: float = 5e-6
    """Time that the consumer's thread needs to send an image to a process, as part of a task."""


class CrewChoice(NamedTuple):
    """The number of threads or processes. One of the numbers is 0."""

    threads: int
    processes: int


def rate_of(times: DecodeTimes, threads: int, processes: int, cores: int) -> float:
    """Return the largest images/s at which the consumer gets its batches.

    The lock is a server with one place. The consumer's launches take as long as they take in the share of the lock that
    decoding threads leave. Processes need no lock, but the consumer's thread serves them.
    """
    low, high = 0.0, 1.0 / max(times.consumer, 1e-9)
    for _ in range(50):
        rate = (low + high) / 2
        left = 1.0 - rate * times.lock if threads else 1.0
        needed = times.task if processes else 0.0
        main = rate * (times.launch / left + needed) if left > 0 else float("inf")  # share of the consumer's time
        fits = main <= 1 and rate * times.decode <= min(threads + processes, max(cores - main, 0.0))
        low, high = (rate, high) if fits else (low, rate)
    return low


def threads_for(times: DecodeTimes, cores: int) -> int:
    """Return the smallest number of decoding threads with which the consumer gets the most images/s.

    More threads than needed only take the lock from the consumer more often.
    """
    best = rate_of(times, cores, 0, cores)
    return next(count for count in range(1, cores + 1) if rate_of(times, count, 0, cores) >= 0.99 * best)


def choose_crew(times: DecodeTimes, cores: int) -> CrewChoice:
    """Return the number of threads, or of processes if the lock is the limit and processes are clearly faster."""
    threads = threads_for(times, cores)
    slow, fast = rate_of(times, threads, 0, cores), rate_of(times, 0, cores, cores)
    if fast < CLEARLY * slow:
        return CrewChoice(threads, 0)
    enough = (count for count in range(1, cores + 1) if rate_of(times, 0, count, cores) >= 0.99 * fast)
    return CrewChoice(0, next(enough))
