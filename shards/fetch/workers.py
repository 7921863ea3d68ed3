"""The event loop of a download: workers that take links, bring posters in and note what became of each."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from shards.fetch.addresses import Policy
from shards.fetch.download import Downloader, Unfetched, open_session
from shards.fetch.journal import Entry, Journal, recall
from shards.fetch.links import Link, Links
from shards.fetch.options import FetchOptions
from shards.fetch.schedule import HostQueue
from shards.fetch.store import JOURNAL, PosterStore
from shards.images import BadImage
from shards.metadata import Rejection
from shards.progress import progress


@dataclass
class Fetched:
    """What a run came to."""

    fetched: int = 0
    """Posters that this run brought."""
    present: int = 0
    """Posters that were there before."""
    rejected: dict[int, Rejection] = field(default_factory=dict)
    """All other rows, by their line in the CSV."""


def fetch_links(options: FetchOptions, allowed: Policy, links: Links) -> Fetched:
    """Fetch what is not there yet into ``options.out``, whose lock the caller holds."""
    result = Fetched(rejected=links.rejected)
    path = options.out / JOURNAL
    memory = recall(path, {link.id: link.url for link in links.links}, options.limits())
    journal = Journal(path)
    try:
        with PosterStore(options.out, journal, options.image) as store:
            todo = []
            for link in links.links:
                if link.id not in memory.moved and store.has(link):
                    result.present += 1
                elif link.id in memory.rejected and not options.retry_rejected:
                    result.rejected[link.line] = memory.rejected[link.id]
                else:
                    todo.append(link)
            if todo:
                asyncio.run(_Run(options, allowed, store, journal, result).fetch_all(todo))
    finally:
        journal.close()
    return result


@dataclass(frozen=True)
class _Run:
    options: FetchOptions
    allowed: Policy
    store: PosterStore
    journal: Journal
    result: Fetched

    async def fetch_all(self, todo: list[Link]) -> None:
        """Bring in all links. A fixed number of workers: a million links are no million tasks."""
        options = self.options
        # Names are looked up in the default threads; pictures have their own, so that neither waits for the other.
        lookups = ThreadPoolExecutor(min(32, options.concurrency), "lookup")
        asyncio.get_running_loop().set_default_executor(lookups)
        queue = HostQueue(todo, options.per_host)
        with (
            ThreadPoolExecutor(os.cpu_count() or 1, "poster") as threads,
            progress(len(todo), "fetching posters") as bar,
        ):
            async with open_session(options, self.allowed) as session:
                downloader = Downloader(session, options, self.allowed)

                async def work() -> None:
                    while (link := await queue.take()) is not None:
                        rejection = await self._bring(link, downloader, threads)
                        if rejection is None:
                            self.result.fetched += 1
                        else:
                            self.result.rejected[link.line] = rejection
                        await queue.done(link)
                        bar.update()

                tasks = [asyncio.create_task(work()) for _ in range(min(options.concurrency, len(todo)))]
                try:
                    await asyncio.gather(*tasks)
                finally:  # one failed (a full disk, say) or the user stops the run: all are called off
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    async def _bring(
        self, link: Link, downloader: Downloader, threads: ThreadPoolExecutor
    ) -> Rejection | None:
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
            self.journal.add(
                Entry(link.id, link.url, rejection.reason, rejection.detail, self.options.limits())
            )
        return rejection
