"""Brings remote shards to the node's cache in the order in which the plan needs them, a little ahead of the readers.

    plan ─→ shards in order of need ─ threads: fetch, never more than ``ahead`` past what was read last ─→ cache

Readers say when a pass over shards begins, and which shard they are at. A shard that is not there in time is fetched by
whoever reads it. One process per node prefetches for all of its ranks: they read the same shards at the same time.
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

#: Shards that are fetched at the same time.
THREADS = 4
#: Seconds after which a shard that found no room is tried again.
RETRY = 0.05
#: Seconds for which closing waits for what is being fetched.
LEAVE = 1.0


class Prefetcher:
    """Fetches shards in threads of its own, from the first pass that begins until ``close``."""

    def __init__(self, store: RemoteShards, shards: Sequence[Shard], threads: int = THREADS) -> None:
        self._store, self._shards = store, shards
        # Numbers of shards: of the pass under way, then the first of the next one.
        self._visits: list[int] = []
        self._places: dict[int, int] = {}  # in the visits, of the shards of the pass under way
        self._ahead = self._taken = 0
        self._reached = -1
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, name=f"prefetch-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def begin(self, numbers: Sequence[int], following: Sequence[int], ahead: int) -> None:
        """Readers begin a pass over these shards, and will go on with the ``following`` ones.

        ahead: how many are fetched past the one that was reached last. What is there already costs a look.
        """
        with self._changed:
            self._visits = [*numbers, *following[:ahead]]
            self._places = {number: place for place, number in enumerate(numbers)}
            self._ahead, self._taken, self._reached = ahead, 0, -1
            self._changed.notify_all()

    def reached(self, number: int) -> None:
        """A reader holds this shard. Cheap where that is nothing new."""
        place = self._places.get(number, -1)
        if place > self._reached:
            with self._changed:
                self._reached = max(self._reached, place)
                self._changed.notify_all()

    def close(self) -> None:
        """Stop. A request that is under way is let go of: it ends by itself, and nobody waits for it."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        until = time.monotonic() + LEAVE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while (number := self._next()) is not None:
            self._fetch(number)

    def _next(self) -> int | None:
        """The next shard as soon as it is due; None at the end."""

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
                if 0 <= self._places.get(number, -1) <= self._reached:
                    return  # its readers see to it themselves
                with self._changed:
                    self._changed.wait(RETRY)
            except Abandoned:
                return
            except UserError as error:  # whoever needs the shard fails with it; perhaps nobody will
                log.warning("not fetched ahead: %s", error)
                return


def pass_of(order: Order, count: int, epoch: int, position: int) -> list[int]:
    """Numbers of shards in the order in which the rest of an epoch, from ``position`` on, needs them.

    All ``count`` of them, in their own order, where every read may be of any.
    """
    turn = order.shard_order(epoch, position)
    return list(range(count)) if turn is None else turn.tolist()


def check_room(store: RemoteShards, shards: Sequence[Shard], window: int | None, lead: int) -> None:
    """Raise UserError if the cache's limit is too low for training: shards would be fetched again and again.

    ``window`` None: every read may be of any shard, so all must fit. Else two windows: the one that is read, and the
    next, which comes meanwhile; more where loaders read further ahead than a window. ``lead``: by how many samples.
    """
    limit = store.cache.options.limit
    sizes = sorted((shard.bytes for shard in shards), reverse=True)
    if window is None:
        need, what = sum(sizes), f"data.order global reads all {len(shards)} training shards all the time:"
        remedy = "use --data.order window"
    else:
        windows = 2 + lead // (window * max(1, min(shard.samples for shard in shards)))
        need = sum(sizes[: windows * window])
        what = f"{windows} windows of {window} shards, as many as are needed at a time, are up to"
        remedy = "lower --data.window"
    if limit and need > limit:
        gib = f"{need / 2**30:.2f} GiB, more than --cache-limit ({limit / 2**30:.2f} GiB)"
        raise UserError("option-conflict", f"{what} {gib}; {remedy}, or raise the limit")
