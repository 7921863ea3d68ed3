"""Which poster goes into which shard of a build: duplicates together, splits, then shards cut from them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from shards.build.pack import PackTask, Sample
from shards.build.resume import holds
from shards.build.reuse_splits import splits_like
from shards.build.split import SPLITS, split_samples
from shards.dataset.labels import LabelSet
from shards.inputs.metadata import Row
from shards.inputs.scan import Scan
from shards.storage.csv_text import write_for_people
from shards.storage.files import atomic_write
from shards.storage.paths import Place
from shards.text.pipeline import removal_fingerprint

if TYPE_CHECKING:
    from shards.build.run import BuildOptions

log = logging.getLogger(__name__)


def plan_shards(
    options: BuildOptions, images: Place, rows: Sequence[Row], scan: Scan, labels: LabelSet
) -> tuple[list[PackTask], np.ndarray]:
    """(shards to pack, (n,) duplicate groups of the rows).

    A set that an earlier version built, or began, keeps its splits: that version did not look for mirrored copies.
    """
    ids, columns = [row.id for row in rows], [labels.columns(row.genres) for row in rows]
    fractions = dict(zip(SPLITS, options.fractions, strict=True))

    def plan(groups: np.ndarray) -> list[PackTask]:
        if options.split_like:
            splits = splits_like(options.split_like, ids, groups)
        else:
            splits = split_samples(ids, columns, groups, fractions, options.seed)
        return _cut(options, images, rows, scan, splits, labels)

    groups = scan.duplicate_groups(ids, options.near_duplicates)
    earlier = scan.duplicate_groups(ids, options.near_duplicates, mirrored=False)
    tasks = plan(groups)
    if options.overwrite or np.array_equal(groups, earlier) or holds(options.out, tasks):
        return tasks, groups
    before = plan(earlier)
    if not holds(options.out, before):
        return tasks, groups
    log.warning(
        "%s was begun by an earlier version, which did not look for mirrored copies: its splits are kept, and %d "
        "posters may have a mirrored copy in another split; build into another --out to keep them together",
        options.out,
        len(np.unique(earlier)) - len(np.unique(groups)),
    )
    return before, earlier


def _cut(
    options: BuildOptions, images: Place, rows: Sequence[Row], scan: Scan, splits: np.ndarray, labels: LabelSet
) -> list[PackTask]:
    """Which poster goes into which shard: a split's posters in an order drawn from the seed, cut evenly."""
    tasks = []
    known = removal_fingerprint(options.text) if options.text else ""
    for number, split in enumerate(SPLITS):
        members = sorted(
            (row for row, of in zip(rows, splits, strict=True) if of == number),
            key=lambda row: hashlib.blake2b(f"{options.seed}/{row.id}".encode(), digest_size=16).digest(),
        )
        samples = [Sample(row.id, scan.digests[row.id], row.genres, scan.names.get(row.id)) for row in members]
        count = -(-len(samples) // options.samples_per_shard)
        for shard in range(count):
            part = samples[shard * len(samples) // count : (shard + 1) * len(samples) // count]
            tasks.append(
                PackTask(
                    images,
                    options.out,
                    f"{split}-{shard:05d}",
                    split,
                    tuple(part),
                    labels,
                    options.image,
                    options.text,
                    known,
                )
            )
    return tasks


def write_duplicates(path: Place, tasks: Sequence[PackTask], rows: Sequence[Row], groups: np.ndarray) -> None:
    """duplicates.csv: the posters that were taken for one another, for people to look at."""
    split = {sample.id: task.split for task in tasks for sample in task.samples}
    members: dict[int, list[str]] = {}
    for row, group in zip(rows, groups.tolist(), strict=True):
        members.setdefault(group, []).append(row.id)
    doubles = (ids for ids in members.values() if len(ids) > 1)
    cells = [(number, sample_id, split[sample_id]) for number, ids in enumerate(doubles) for sample_id in ids]
    with atomic_write(path, "w") as stream:
        write_for_people(stream, [("group", "id", "split"), *cells], end="\r\n")


def duplicate_positions(
    tasks: Sequence[PackTask], planned: Sequence[Row], groups: np.ndarray, packed: Sequence[Row]
) -> dict[str, list[list[int]]]:
    """Manifest.duplicates of the ``packed`` rows; ``groups`` are of all that were ``planned``."""
    group = {row.id: int(of) for row, of in zip(planned, groups, strict=True)}
    there = {row.id for row in packed}
    found = {}
    for split in SPLITS:
        members: dict[int, list[int]] = {}
        ids = [s.id for task in tasks if task.split == split for s in task.samples if s.id in there]
        for position, sample_id in enumerate(ids):
            members.setdefault(group[sample_id], []).append(position)
        found[split] = [positions for positions in members.values() if len(positions) > 1]
    return {split: found_there for split, found_there in found.items() if found_there}
