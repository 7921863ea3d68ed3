"""Chunks of links: the unit of work for folders at URLs and for the workers of a cluster.

    links ─ tasks_of ─→ FetchTask ─ fetch_chunk on a worker ─→ posters in the folder, a part of the journal

Each chunk is downloaded in an event loop of its own (event_loop.py). The limit ``per_host`` is divided among the
workers, with at least one request for each worker.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from shards.executors.chunks import split_into_chunks
from shards.fetch.event_loop import download_links
from shards.fetch.journal import PARTS, Entry, Journal, RemoteJournal
from shards.fetch.links import Link
from shards.fetch.options import FetchOptions
from shards.fetch.poster_store import FolderStore, PosterStore, RemoteStore
from shards.inputs.rejections import Rejection
from shards.storage.address_policy import Policy
from shards.storage.paths import is_remote

#: Number of links per task on a cluster. A task takes seconds to minutes, so a lost worker costs little work.
CHUNK = 256
#: Number of links per task in this process. The number is large, because connections are idle at the end of a task.
CHUNK_HERE = 2048


@dataclass(frozen=True)
class FetchTask:
    """A chunk of links to download."""

    options: FetchOptions
    allowed: Policy
    links: tuple[Link, ...]
    replaces: frozenset[str]  # ids that have a poster from an earlier link

    def __len__(self) -> int:
        return len(self.links)

    def __str__(self) -> str:
        return f"fetching lines {self.links[0].line} to {self.links[-1].line}"


def tasks_of(
    options: FetchOptions, allowed: Policy, links: Sequence[Link], replaces: Collection[str], slots: int
) -> list[FetchTask]:
    """Split links into tasks. ``slots``: number of tasks that run at the same time."""
    size = CHUNK if options.scheduler else CHUNK_HERE
    # A task must not connect to the scheduler again.
    per_task = replace(options, per_host=max(1, options.per_host // slots), scheduler=None)
    return [
        FetchTask(per_task, allowed, part, frozenset(link.id for link in part if link.id in replaces))
        for part in split_into_chunks(links, size)
    ]


def fetch_chunk(task: FetchTask) -> dict[int, Rejection]:
    """Download the posters of a task. Returns the rejections by CSV line."""
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
        return download_links(task.links, task.options, task.allowed, store)
