"""A whole download, and the account of it at the end."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from shards.errors import UserError
from shards.fetch.options import FetchOptions
from shards.files import folder_lock, remove_partials
from shards.metadata import write_rejected

if TYPE_CHECKING:  # aiohttp is an extra: only a run of this command asks for it
    from shards.fetch.addresses import Policy
    from shards.fetch.workers import Fetched

log = logging.getLogger(__name__)

__all__ = ["FetchOptions", "fetch_posters"]


def fetch_posters(options: FetchOptions, allowed: Policy | None = None) -> Fetched:
    """Download a CSV's links into ``options.out`` and write rejected.csv there.

    Posters that are there are kept, and links that are dead for good are not asked again: a run that was
    stopped goes on where it was. ``allowed`` says which addresses may be connected to (default: as
    ``options.allow_private`` says). Raises UserError if there is no poster at the end.
    """
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise UserError("`posters fetch` needs aiohttp: pip install -e '.[clean]'") from None
    from shards.fetch.addresses import is_any, is_public
    from shards.fetch.links import read_links
    from shards.fetch.store import REJECTED
    from shards.fetch.workers import fetch_links

    links = read_links(options.metadata, options.url_column, options.id_column, options.encoding)
    with folder_lock(options.out):
        remove_partials(options.out)
        result = fetch_links(options, allowed or (is_any if options.allow_private else is_public), links)
        rejected = options.out / REJECTED
        write_rejected(rejected, [result.rejected[line] for line in sorted(result.rejected)])
    counts = Counter(rejection.reason for rejection in result.rejected.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    if not result.fetched and not result.present:
        why = f"{reasons}; see {rejected}" if reasons else "it has a header line and nothing else"
        raise UserError(f"no poster could be fetched from {options.metadata}: {why}")
    log.info("%d posters fetched, %d already there, in %s", result.fetched, result.present, options.out)
    if reasons:
        log.info("%d rows rejected (%s), see %s", len(result.rejected), reasons, rejected)
    return result
