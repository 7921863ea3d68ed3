"""Links in chunks, for folders at URLs and for the workers of a cluster: the unit of work there.

    links ─ tasks_of ─→ FetchTask ─ fetch_chunk on a worker ─→ posters in the folder, a part of the journal

Each chunk has an event loop of its own, the same as that of a whole download on this machine. Politeness is shared out:
a worker asks a host for its part of ``per_host`` links at a time, at least one.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from shards.executors.chunks import split_into_chunks
from shards.fetch.event_loop import bring_in
from shards.fetch.journal import PARTS, Entry, Journal, RemoteJournal
from shards.fetch.links import Link
from shards.fetch.options import FetchOptions
from shards.fetch.poster_store import FolderStore, PosterStore, RemoteStore
from shards.inputs.metadata import Rejection
from shards.storage.address_policy import Policy
from shards.storage.paths import is_remote

#: Links a task of a cluster's worker: seconds to minutes of work, so that little is lost with a worker.
CHUNK = 256
#: Links a task of this process, which keeps fewer hosts waiting at the chunks' ends.
CHUNK_HERE = 2048


@dataclass(frozen=True)
class FetchTask:
    """A chunk of links to fetch."""

    options: FetchOptions
    allowed: Policy
    links: tuple[Link, ...]
    replaces: frozenset[str]  # ids among them that have a poster of an earlier link

    def __len__(self) -> int:
        return len(self.links)

    def __str__(self) -> str:
        return f"fetching lines {self.links[0].line} to {self.links[-1].line}"


def tasks_of(
    options: FetchOptions, allowed: Policy, links: Sequence[Link], replaces: Collection[str], slots: int
) -> list[FetchTask]:
    """Chunks for ``slots`` that work at the same time."""
    size = CHUNK if options.scheduler else CHUNK_HERE
    # A task runs where it is: it has no scheduler of its own.
    polite = replace(options, per_host=max(1, options.per_host // slots), scheduler=None)
    return [
        FetchTask(polite, allowed, part, frozenset(link.id for link in part if link.id in replaces))
        for part in split_into_chunks(links, size)
    ]


def fetch_chunk(task: FetchTask) -> dict[int, Rejection]:
    """Bring in the posters of a chunk; returns, by line, why some are not there."""
    out, image = task.options.out, task.options.image
    path = out / PARTS / f"{task.links[0].line:09d}-{secrets.token_hex(4)}.jsonl"
    store: PosterStore
    if is_remote(out):
        new = [Entry(link.id, link.url) for link in task.links if link.id not in task.replaces]
        store = RemoteStore(out, RemoteJournal(path, new), image, task.replaces)
    else:
        path.parent.mkdir(exist_ok=True)
        store = FolderStore(out, Journal(path), image)
    with closing(store.journal):
        return bring_in(task.links, task.options, task.allowed, store)
