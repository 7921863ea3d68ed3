"""The event loop of a download: workers that take links, bring posters in and note what became of each."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shards.fetch.download import Downloader, Unfetched, open_session
from shards.fetch.host_queue import HostQueue
from shards.fetch.journal import Entry, EntryLog
from shards.fetch.links import Link
from shards.fetch.options import FetchOptions
from shards.fetch.poster_store import PosterStore
from shards.inputs.images import BadImage
from shards.inputs.metadata import Rejection
from shards.storage.address_policy import Policy

#: Told of each link when it is done with, and why it gave no poster if it gave none.
Settled = Callable[[Link, Rejection | None], None]


def bring_in(
    links: Sequence[Link],
    options: FetchOptions,
    allowed: Policy,
    store: PosterStore,
    journal: EntryLog,
    settled: Settled,
) -> None:
    """Fetch these links into a store."""
    if links:
        asyncio.run(_Run(options, allowed, store, journal, settled).fetch_all(links))


@dataclass(frozen=True)
class _Run:
    options: FetchOptions
    allowed: Policy
    store: PosterStore
    journal: EntryLog
    settled: Settled

    async def fetch_all(self, links: Sequence[Link]) -> None:
        """Bring in all links. A fixed number of workers: a million links are no million tasks."""
        options = self.options
        # Names are looked up in the default threads; pictures have their own, so that neither waits for the other.
        lookups = ThreadPoolExecutor(min(32, options.concurrency), "lookup")
        asyncio.get_running_loop().set_default_executor(lookups)
        queue = HostQueue(links, options.per_host)
        with ThreadPoolExecutor(os.cpu_count() or 1, "poster") as threads:
            async with open_session(options, self.allowed) as session:
                downloader = Downloader(session, options, self.allowed)

                async def work() -> None:
                    while (link := await queue.take()) is not None:
                        self.settled(link, await self._bring(link, downloader, threads))
                        await queue.done(link)

                tasks = [asyncio.create_task(work()) for _ in range(min(options.concurrency, len(links)))]
                try:
                    await asyncio.gather(*tasks)
                finally:  # one failed (a full disk, say) or the user stops the run: all are called off
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    async def _bring(self, link: Link, downloader: Downloader, threads: ThreadPoolExecutor) -> Rejection | None:
        """Fetch, check and save one poster; None if that went well."""
        try:
            data = await downloader.fetch(link.url)
            # Decoding is work for a core, and would keep the loop from all other links meanwhile.
            await asyncio.get_running_loop().run_in_executor(threads, self.store.save, link, data)
            return None
        except Unfetched as failure:
            # Not for good: another run may be told --allow-private, or get another answer to the name.
            settled = not failure.passing and failure.reason != "private address"
            rejection = Rejection(link.id, failure.reason, failure.detail)
        except BadImage as bad:
            settled = bad.reason != "bad id"  # what took its place may be gone in another run
            rejection = bad.rejection(link.id)
        if settled:
            # The poster of an earlier link must not stand for this one.
            self.store.remove(link)
            self.journal.add(Entry(link.id, link.url, rejection.reason, rejection.detail, self.options.limits()))
        return rejection
