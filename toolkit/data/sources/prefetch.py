"""Prefetch remote shards into the cache of the node, in the order of use, before they are read.

A pass is one reading of a split from its start to its end, such as an epoch. Readers call ``begin`` for a pass and
``reached`` for each shard that they open. Threads fetch the next ``ahead`` shards after the last opened shard. A reader
fetches a missing shard itself. One process per node prefetches for all ranks of the node, because all these ranks read
the same shards at about the same time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from shards.dataset.cache_options import NoRoom
from shards.dataset.manifest import Shard
from shards.dataset.store import RemoteShards
from shards.errors import UserError
from shards.storage.retrying_read import Abandoned
from toolkit.data.sampling.shuffle import Order

log = logging.getLogger(__name__)

#: Number of shards that are fetched at the same time.
THREADS = 4
#: Seconds before a shard is tried again when the cache is full.
RETRY = 0.05
#: Seconds that ``close`` waits for requests in progress.
CLOSE_SECONDS = 1.0


class Prefetcher:
    """Fetch shards in separate threads, from the first ``begin`` until ``close``."""

    def __init__(self, store: RemoteShards, shards: Sequence[Shard], threads: int = THREADS) -> None:
        self._store, self._shards = store, shards
        # Numbers of shards: first all shards of the current pass, then the first shards of the next pass.
        self._visits: list[int] = []
        self._positions: dict[int, int] = {}  # number of a shard of the current pass → its index in _visits
        self._ahead = self._taken = 0
        self._reached = -1
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, name=f"prefetch-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def begin(self, numbers: Sequence[int], following: Sequence[int], ahead: int) -> None:
        """Prefetch the shards ``numbers`` for one reading of a split. The next reading begins with ``following``.

        ahead: number of shards to fetch after the last shard that a reader has opened. Cached shards are skipped.
        """
        with self._changed:
            self._visits = [*numbers, *following[:ahead]]
            self._positions = {number: position for position, number in enumerate(numbers)}
            self._ahead, self._taken, self._reached = ahead, 0, -1
            self._changed.notify_all()

    def reached(self, number: int) -> None:
        """Record that a reader has opened the shard. Later calls for the same shard are fast."""
        position = self._positions.get(number, -1)
        if position > self._reached:
            with self._changed:
                self._reached = max(self._reached, position)
                self._changed.notify_all()

    def close(self) -> None:
        """Stop prefetching. Wait for requests in progress, but at most CLOSE_SECONDS. Slower requests end later."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        until = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while (number := self._next()) is not None:
            self._fetch(number)

    def _next(self) -> int | None:
        """Wait until the next shard should be fetched. Return the number of the shard, or None after ``close``."""

        def due() -> bool:
            return self._stop.is_set() or self._taken < min(len(self._visits), self._reached + self._ahead + 1)

        with self._changed:
            self._changed.wait_for(due)
            if self._stop.is_set():
                return None
            self._taken += 1
            return self._visits[self._taken - 1]

    def _fetch(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                self._store.prefetch(self._shards[number], self._stop)
                return
            except NoRoom:
                if 0 <= self._positions.get(number, -1) <= self._reached:
                    return  # a reader has already opened this shard
                with self._changed:
                    self._changed.wait(RETRY)
            except Abandoned:
                return
            except UserError as error:  # only a warning, because a reader that needs the shard raises the error
                log.warning("a shard could not be prefetched: %s", error)
                return


def pass_of(order: Order, count: int, epoch: int, position: int) -> list[int]:
    """Return the shards to read after the first ``position`` samples of the epoch, in the order of use.

    With data.order global, samples come from all shards at any time. The result is then 0 to ``count`` - 1.
    """
    turn = order.shard_order(epoch, position)
    return list(range(count)) if turn is None else turn.tolist()


def check_room(store: RemoteShards, shards: Sequence[Shard], window: int | None, lead: int) -> None:
    """Raise UserError if the cache is too small for the shards that training needs at the same time.

    window: number of shards in a group whose samples are shuffled together. The current and the next group must fit.
    With data.order global, ``window`` is None, and all shards must fit.
    lead: number of samples that the loaders read in advance. If this number is large, more groups must fit.
    """
    limit = store.cache.options.limit
    sizes = sorted((shard.bytes for shard in shards), reverse=True)
    if window is None:
        need, what = sum(sizes), f"data.order global needs all {len(shards)} training shards at the same time:"
        remedy = "use --data.order window"
    else:
        windows = 2 + lead // (window * max(1, min(shard.samples for shard in shards)))
        need = sum(sizes[: windows * window])
        what = f"{windows} windows of {window} shards, which are needed at the same time, have up to"
        remedy = "lower --data.window"
    if limit and need > limit:
        gib = f"{need / 2**30:.2f} GiB, more than --cache-limit ({limit / 2**30:.2f} GiB)"
        raise UserError("option-conflict", f"{what} {gib}; {remedy}, or raise the limit")
