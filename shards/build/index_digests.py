"""Digests of its indexes for a set whose manifest has none: built by an earlier version."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from shards.build.verify import check_set
from shards.dataset.manifest import Manifest
from shards.errors import UserError

log = logging.getLogger(__name__)


def vouch_for_indexes(folder: Path, manifest: Manifest, workers: int = 0) -> Manifest:
    """Check tar, index and table of every shard against each other, then write the manifest with the indexes' digests.

    Nothing else is written, and the set keeps its fingerprint: runs on it resume. Images are not decoded.
    Raises UserError, and writes nothing, where the files are not those of one set. Call it under the folder's lock.
    """
    problems, indexes = check_set(folder, manifest, workers, decode=False)
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise UserError(
            f"{folder} is not sound, and its manifest stays as it is: {problems[0]}{more}; `posters shards verify` "
            f"lists what is wrong; delete the named tars and run their build again"
        )
    shards = [
        replace(shard, index_bytes=indexes[shard.name][0], index_sha256=indexes[shard.name][1])
        for shard in manifest.shards
    ]
    vouched = replace(manifest, shards=shards)
    if vouched != manifest:
        vouched.write(folder)
    log.info("%d shards are sound; the manifest has the digests of their indexes", len(shards))
    return vouched
