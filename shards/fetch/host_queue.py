"""The order of the links: hosts take turns, and a slow one with many links holds nobody else up."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable

from shards.fetch.links import Link


class HostQueue:
    """Hands out links so that no host has more than ``per_host`` of them in work."""

    def __init__(self, links: Iterable[Link], per_host: int) -> None:
        self._per_host = per_host
        self._active: Counter[str] = Counter()
        self._waiting: dict[str, list[Link]] = {}
        for link in links:
            self._waiting.setdefault(link.host, []).append(link)
        for waiting in self._waiting.values():
            waiting.reverse()  # links are taken from the end
        #: Hosts that have both a link waiting and a free place, in turn.
        self._ready = deque(self._waiting)
        self._changed = asyncio.Condition()

    async def take(self) -> Link | None:
        """The next link, once a host has a free place; None when all have been taken."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ready or not self._waiting)
            if not self._ready:
                return None
            host = self._ready.popleft()
            link = self._waiting[host].pop()
            self._active[host] += 1
            if not self._waiting[host]:
                del self._waiting[host]
            elif self._active[host] < self._per_host:
                self._ready.append(host)
            if not self._waiting:
                self._changed.notify_all()  # there will be no more: whoever waits can go home
            return link

    async def done(self, link: Link) -> None:
        """Give the link's place back to its host."""
        async with self._changed:
            if link.host in self._waiting and self._active[link.host] == self._per_host:
                self._ready.append(link.host)
                self._changed.notify()
            self._active[link.host] -= 1
            if not self._active[link.host]:
                del self._active[link.host]
