"""Run `posters fetch`: download the links of a CSV and report the result."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shards.errors import UserError
from shards.executors.chunks import run_chunks
from shards.executors.local import Executor, open_executor
from shards.extras import require_extra
from shards.fetch.journal import Journal, merge_parts, recall
from shards.fetch.options import FetchOptions
from shards.fetch.poster_store import JOURNAL, REJECTED, FolderStore, incoming, poster_paths
from shards.inputs.listing import NoFolder, list_posters
from shards.inputs.rejections import Rejection, write_rejected
from shards.progress import progress
from shards.storage.files import place_key, remove_partials
from shards.storage.lock import folder_lock
from shards.storage.paths import StoragePath, as_user_error, is_remote

if TYPE_CHECKING:  # these modules need aiohttp, an optional dependency
    from shards.fetch.links import Link
    from shards.storage.address_policy import Policy

log = logging.getLogger(__name__)


@dataclass
class Fetched:
    """Result of a run of `posters fetch`."""

    rejected: dict[int, Rejection]  # rows without a poster, by their line in the CSV
    fetched: int = 0  # posters downloaded by this run
    present: int = 0  # posters that existed before


def fetch_posters(options: FetchOptions) -> Fetched:
    """Download the links of a CSV into ``options.out`` and write rejected.csv there.

    A stopped run can be resumed: existing posters are kept, and links with a final rejection are not tried again.
    Raises UserError if the folder has no poster of these links at the end.
    """
    require_extra("clean", "`posters fetch`", "aiohttp")
    from shards.fetch.links import read_links
    from shards.storage.address_policy import is_any, is_public

    links, rejected = read_links(options.metadata, options.url_column, options, options.out)
    with folder_lock(options.out, options.break_lock), as_user_error("fetch posters", options.out):
        remove_partials(options.out)
        allowed = is_any if options.allow_private else is_public
        # The parts of the journal must not be merged while a worker writes them. The executor waits for the tasks of a
        # killed run before it opens. So the parts are merged as soon as it is open, and again at the end.
        with open_executor(0 if options.scheduler else 1, options.scheduler, writes=[options.out]) as executor:
            merge_parts(options.out, JOURNAL)
            result = Fetched(rejected)
            _fetch_missing(options, allowed, links, executor, result)
            merge_parts(options.out, JOURNAL)
        write_rejected(options.out / REJECTED, [result.rejected[line] for line in sorted(result.rejected)])
    counts = Counter(rejection.reason for rejection in result.rejected.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    if not result.fetched and not result.present:
        why = f"{reasons}; see {options.out / REJECTED}" if reasons else "it has only a header line"
        raise UserError("images-none", f"no poster could be fetched from {options.metadata}: {why}")
    log.info("%d posters fetched, %d already there, in %s", result.fetched, result.present, options.out)
    if reasons:
        log.info("%d rows rejected (%s), see %s", len(result.rejected), reasons, options.out / REJECTED)
    return result


def _fetch_missing(
    options: FetchOptions, allowed: Policy, links: Sequence[Link], executor: Executor, result: Fetched
) -> None:
    """Download the missing posters and update ``result``. The caller must hold the lock of the output folder."""
    key = place_key(options.out)
    wanted = _of_own_places(links, key, result.rejected)
    # Earlier versions used the text in the table as the id. Their posters and rejections stay valid.
    earlier = {link.written: link.url for link in wanted if link.written not in ("", link.id)}
    urls = {key(name): url for name, url in (earlier | {link.id: link.url for link in wanted}).items()}
    moved, rejected = recall(options.out / JOURNAL, urls, options.limits(), key)
    there = _posters_there(options.out, [*(link.id for link in wanted), *earlier])
    todo, replaces = [], set()
    for link in wanted:
        if link.written in earlier and not there(link.id):
            if there(link.written):
                link = replace(link, id=link.written)
            elif (former := rejected.get(key(link.written))) is not None:
                rejected.setdefault(key(link.id), former)
        place = key(link.id)
        if there(link.id) and place not in moved:
            result.present += 1
        elif place in rejected and not options.retry_rejected:
            result.rejected[link.line] = replace(rejected[place], id=link.id)
        else:
            todo.append(link)
            if there(link.id):
                replaces.add(link.id)
    if not (options.scheduler or is_remote(options.out)):
        bad = _fetch_here(options, allowed, todo)
        result.rejected |= bad
        result.fetched = len(todo) - len(bad)
        return
    from shards.fetch.tasks import fetch_chunk, tasks_of

    tasks = tasks_of(options, allowed, todo, replaces, executor.slots())
    with nullcontext() if is_remote(options.out) else incoming(options.out):
        for task, bad in run_chunks(executor, fetch_chunk, tasks, "fetching posters"):
            result.rejected |= bad
            result.fetched += len(task) - len(bad)


def _of_own_places(links: Sequence[Link], key: Callable[[str], str], rejected: dict[int, Rejection]) -> list[Link]:
    """Return the links whose poster path is unique. If two links share a path, add the second to ``rejected``."""
    first: dict[str, str] = {}
    kept = []
    for link in links:
        other = first.setdefault(key(f"{link.id}.jpg"), link.id)
        if other == link.id:
            kept.append(link)
        else:
            where = f"line {link.line}: its poster would have the same path as the poster of {other!r}"
            rejected[link.line] = Rejection(link.id, "bad id", where)
    return kept


def _fetch_here(options: FetchOptions, allowed: Policy, links: Sequence[Link]) -> dict[int, Rejection]:
    from shards.fetch.event_loop import download_links

    with (
        progress(len(links), "fetching posters") as bar,
        closing(Journal(options.out / JOURNAL)) as journal,
        incoming(options.out),
    ):
        store = FolderStore(options.out, journal, options.image)
        return download_links(links, options, allowed, store, done=bar.update)


def _posters_there(folder: StoragePath, ids: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that checks whether an id has a poster in the folder."""
    if not is_remote(folder):
        return lambda sample_id: any(path.is_file() for path in poster_paths(folder, sample_id))
    try:
        listed = list_posters(folder, ids)
    except NoFolder:
        listed = {}
    # An id such as x.jpg may be the whole name of a file, but that file is the poster of x.
    own = {sample_id for sample_id, file in listed.items() if file.name != sample_id}
    return own.__contains__
