"""Event loop of a download: asyncio tasks take links, save posters and record the result of each link."""

from __future__ import annotations

import asyncio
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from shards.fetch.download import Downloader, Unfetched, open_session
from shards.fetch.journal import Entry
from shards.fetch.links import Link
from shards.fetch.options import FetchOptions
from shards.fetch.poster_store import PosterStore
from shards.inputs.images import BadImage
from shards.inputs.rejections import Rejection
from shards.storage.address_policy import Policy


def download_links(
    links: Sequence[Link],
    options: FetchOptions,
    allowed: Policy,
    store: PosterStore,
    done: Callable[[], object] = lambda: None,
) -> dict[int, Rejection]:
    """Download links to ``store``. Returns the rejections by CSV line. ``done`` is called after each link."""
    rejected: dict[int, Rejection] = {}

    async def fetch_all() -> None:
        """Download all links with a fixed number of workers. One asyncio task per link needs too much memory."""
        # Host names are resolved in one thread pool, and images are checked in another. So neither waits for the other.
        lookups = ThreadPoolExecutor(min(32, options.concurrency), "lookup")
        asyncio.get_running_loop().set_default_executor(lookups)
        queue = HostQueue(links, options.per_host)
        with ThreadPoolExecutor(os.cpu_count() or 1, "poster") as threads:
            async with open_session(options, allowed) as session:
                downloader = Downloader(session, options, allowed)

                async def work() -> None:
                    while (link := await queue.take()) is not None:
                        if rejection := await _download_link(link, downloader, store, options.limits(), threads):
                            rejected[link.line] = rejection
                        done()
                        await queue.done(link)

                tasks = [asyncio.create_task(work()) for _ in range(min(options.concurrency, len(links)))]
                try:
                    await asyncio.gather(*tasks)
                finally:  # cancel all tasks if one has failed (for example, on a full disk) or the user stops the run
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    if links:
        asyncio.run(fetch_all())
    return rejected


async def _download_link(
    link: Link, downloader: Downloader, store: PosterStore, limits: str, threads: ThreadPoolExecutor
) -> Rejection | None:
    """Download, check and save one poster. Returns None, or a rejection if the poster could not be saved."""
    try:
        data = await downloader.fetch(link.url)
        # Decoding needs a core and would block the event loop for all other links.
        await asyncio.get_running_loop().run_in_executor(threads, store.save, link, data)
        return None
    except Unfetched as failure:
        # "private address" is not a final reason: another run may use --allow-private or find a public address.
        settled = not failure.passing and failure.reason != "private address"
        rejection = failure.rejection(link.id)
    except BadImage as bad:
        settled = bad.reason != "bad id"  # another file blocks the path, but may be absent in another run
        rejection = bad.rejection(link.id)
    if settled:
        store.remove(link)
        store.journal.add(Entry(link.id, link.url, rejection.reason, rejection.detail, limits))
    return rejection


class HostQueue:
    """Queue of links. Hosts take turns, with at most ``per_host`` active links each. Slow hosts do not block others."""

    def __init__(self, links: Iterable[Link], per_host: int) -> None:
        self._per_host = per_host
        self._active: Counter[str] = Counter()
        self._waiting: dict[str, list[Link]] = {}
        for link in links:
            self._waiting.setdefault(link.host, []).append(link)
        for waiting in self._waiting.values():
            waiting.reverse()  # links are taken from the end
        #: Hosts with a waiting link and fewer than ``per_host`` active links, in the order of their turns.
        self._ready = deque(self._waiting)
        self._changed = asyncio.Condition()

    async def take(self) -> Link | None:
        """Wait until a host may get another request, and return its next link. None if no links are left."""
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
                self._changed.notify_all()  # no links are left: waiting workers can end
            return link

    async def done(self, link: Link) -> None:
        """Record that a link is no longer active, so that its host may get another request."""
        async with self._changed:
            if link.host in self._waiting and self._active[link.host] == self._per_host:
                self._ready.append(link.host)
                self._changed.notify()
            self._active[link.host] -= 1
            if not self._active[link.host]:
                del self._active[link.host]
