"""Decide the contents of each shard: group duplicates, give each group a split, and divide each split into shards."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from shards.build.pack import PackTask, Sample
from shards.build.resume import is_same_build
from shards.build.split import SPLITS, split_samples
from shards.dataset.index import read_index_of
from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from shards.dataset.store import warn_of_unknown_indexes
from shards.errors import UserError
from shards.inputs.scan import Scan
from shards.storage.csv_text import write_for_people
from shards.storage.files import atomic_write
from shards.storage.paths import StoragePath
from shards.tables.metadata import Row
from shards.text.pipeline import removal_fingerprint

if TYPE_CHECKING:
    from shards.build.run import BuildOptions

log = logging.getLogger(__name__)

T = TypeVar("T")


def plan_shards(
    options: BuildOptions, images: StoragePath, rows: Sequence[Row], scan: Scan, labels: LabelSet
) -> tuple[list[PackTask], np.ndarray]:
    """Return a task for each shard, and the number of each row's duplicate group, (n,)."""
    ids, columns = [row.id for row in rows], [labels.columns(row.genres) for row in rows]
    fractions = dict(zip(SPLITS, options.fractions, strict=True))

    def plan(duplicates: np.ndarray) -> list[PackTask]:
        groups = with_table_groups(rows, duplicates)
        if options.split_like:
            splits = splits_like(options.split_like, ids, groups)
        elif any(row.split for row in rows):
            splits = splits_of_table(rows, duplicates)
        else:
            splits = split_samples(ids, columns, groups, fractions, options.seed)
        return _cut(options, images, rows, scan, splits, labels)

    groups = scan.duplicate_groups(ids, options.near_duplicates)
    earlier = scan.duplicate_groups(ids, options.near_duplicates, mirrored=False)
    tasks = plan(groups)
    if options.overwrite or np.array_equal(groups, earlier) or is_same_build(options.out, tasks):
        return tasks, groups
    before = plan(earlier)
    if not is_same_build(options.out, before):
        return tasks, groups
    message = (
        "an earlier version of this program began %s and did not detect mirrored copies. The splits are kept, so %d "
        "posters may have a mirrored copy in another split. To keep such copies in one split, choose another --out"
    )
    log.warning(message, options.out, len(np.unique(earlier)) - len(np.unique(groups)))
    return before, earlier


def with_table_groups(rows: Sequence[Row], groups: np.ndarray) -> np.ndarray:
    """Join groups of duplicates, (n,), that share a value of --group-column. Return the group number of each row."""
    values = sorted({row.group for row in rows if row.group})
    if not values:
        return groups
    first = int(groups.max()) + 1
    number = {value: first + at for at, value in enumerate(values)}
    pairs = [(int(of), number[row.group]) for row, of in zip(rows, groups, strict=True) if row.group]
    size, (a, b) = first + len(values), np.array(pairs).T
    from scipy.sparse import coo_array  # here, because each worker process would take 0.2 s to import it
    from scipy.sparse.csgraph import connected_components

    joined = connected_components(coo_array((np.ones(len(pairs), dtype=bool), (a, b)), shape=(size, size)))[1]
    return np.asarray(joined[groups], dtype=np.int64)


def warn_of_other_genres(rows: Sequence[Row], scan: Scan) -> None:
    """Warn of equal image files whose rows have different genres, such as copies of a poster in several folders."""
    by_file: dict[str, list[Row]] = {}
    for row in rows:
        by_file.setdefault(scan.digests[row.id], []).append(row)
    different = [same for same in by_file.values() if len({frozenset(row.genres) for row in same}) > 1]
    if different:
        message = (
            "%d images are in several equal files with different genres, for example %s and %s: each file is a poster "
            "of its own, so a model learns contradictions. Keep one file of each image, with all its genres"
        )
        log.warning(message, len(different), *(f"{row.id} ({', '.join(row.genres)})" for row in _two(different[0])))


def _two(same: Sequence[Row]) -> tuple[Row, Row]:
    """Return the first row, and the first row with other genres."""
    return same[0], next(row for row in same if set(row.genres) != set(same[0].genres))


def splits_of_table(rows: Sequence[Row], duplicates: np.ndarray) -> np.ndarray:
    """Return the split that the table gives each row, (n,) int8 indices into SPLITS.

    Warns of duplicates in several splits. Raises UserError if a group of --group-column has several splits.
    """
    splits = np.array([SPLITS.index(row.split) for row in rows], dtype=np.int8)
    of_value: dict[str, int] = {}
    for row, split in zip(rows, splits.tolist(), strict=True):
        if row.group and of_value.setdefault(row.group, split) != split:
            two = f"{SPLITS[of_value[row.group]]} and {SPLITS[split]}"
            remedy = "give it one split, or leave --group-column out"
            raise UserError("table-row", f"group {row.group[:60]!r} has posters in {two}; {remedy}")
    order = np.lexsort((splits, duplicates))
    again = (np.diff(duplicates[order]) == 0) & (np.diff(splits[order]) != 0)
    if again.any():
        count = len(np.unique(duplicates[order][1:][again]))
        message = (
            "%d groups of near-duplicates are in several splits of the table, so results on val and test are too good "
            "(for example %s). duplicates.csv lists them"
        )
        log.warning(message, count, rows[order[1:][again][0]].id)
    return splits


def _cut(
    options: BuildOptions, images: StoragePath, rows: Sequence[Row], scan: Scan, splits: np.ndarray, labels: LabelSet
) -> list[PackTask]:
    """Shuffle the posters of each split with the seed. Divide them evenly into shards. Return a task per shard."""
    tasks = []
    known = removal_fingerprint(options.text) if options.text else ""
    for number, split in enumerate(SPLITS):
        members = [row for row, of in zip(rows, splits, strict=True) if of == number]
        members.sort(key=lambda row: hashlib.blake2b(f"{options.seed}/{row.id}".encode(), digest_size=16).digest())
        samples = [
            Sample(row.id, scan.digests[row.id], row.genres, scan.names.get(row.id), row.weight) for row in members
        ]
        count = -(-len(samples) // options.samples_per_shard)
        for shard in range(count):
            part = tuple(samples[shard * len(samples) // count : (shard + 1) * len(samples) // count])
            name, how = f"{split}-{shard:05d}", (labels, options.image, options.text, known)
            tasks.append(PackTask(images, options.out, name, split, part, *how))
    return tasks


def write_duplicates(path: StoragePath, tasks: Sequence[PackTask], rows: Sequence[Row], groups: np.ndarray) -> None:
    """Write duplicates.csv: the group, the id and the split of each poster that has a duplicate."""
    split = {sample.id: task.split for task in tasks for sample in task.samples}
    doubles = _doubles((row.id for row in rows), groups.tolist())
    cells = [(number, sample_id, split[sample_id]) for number, ids in enumerate(doubles) for sample_id in ids]
    with atomic_write(path, "w") as stream:
        write_for_people(stream, [("group", "id", "split"), *cells], end="\r\n")


def duplicate_positions(
    tasks: Sequence[PackTask], planned: Sequence[Row], groups: np.ndarray, packed: Sequence[Row]
) -> dict[str, list[list[int]]]:
    """Return the groups of duplicates in each split, for the manifest. A sample is given by its number in the split.

    ``groups`` has the group number of each row in ``planned``, (n,). Rows that are not in ``packed`` are left out.
    """
    group = {row.id: int(of) for row, of in zip(planned, groups, strict=True)}
    there = {row.id for row in packed}
    found = {}
    for split in SPLITS:
        ids = [s.id for task in tasks if task.split == split for s in task.samples if s.id in there]
        if doubles := _doubles(range(len(ids)), [group[sample_id] for sample_id in ids]):
            found[split] = doubles
    return found


def _doubles(members: Iterable[T], groups: Sequence[int]) -> list[list[T]]:
    found: dict[int, list[T]] = {}
    for member, group in zip(members, groups, strict=True):
        found.setdefault(group, []).append(member)
    return [together for together in found.values() if len(together) > 1]


def splits_like(folder: Path, ids: Sequence[str], groups: np.ndarray) -> np.ndarray:
    """Give each poster the split that it has in the shard set ``folder``. Return (n,) int8 indices into SPLITS.

    A new poster gets the split of its first duplicate that is in ``folder``. Without such a duplicate, the new poster
    goes to train. ``groups`` has the number of each poster's duplicate group, (n,). Raises UserError if ``folder``
    has none of the posters, or has a poster in two splits.
    """
    known: dict[str, int] = {}
    manifest = Manifest.read(folder)
    warn_of_unknown_indexes(folder, manifest)
    for shard in manifest.shards:
        if shard.split not in SPLITS:
            remedy = f"--split-like needs a set with only the splits {', '.join(SPLITS)}"
            raise UserError("set-split", f"{folder} has a split {shard.split!r}; {remedy}")
        split = SPLITS.index(shard.split)
        for sample_id in read_index_of(folder, shard)["id"].to_pylist():
            if known.setdefault(sample_id, split) != split:
                what = f"{folder} has sample {sample_id!r} in {SPLITS[known[sample_id]]} and in {shard.split}"
                remedy = "--split-like needs each sample in one split: build that set again"
                raise UserError("samples-repeated", f"{what}; {remedy}")
    if known.keys().isdisjoint(ids):
        remedy = "--split-like needs a set of the same posters"
        raise UserError("set-other", f"no poster of this build is in {folder}; {remedy}")
    pairs = list(zip(ids, groups.tolist(), strict=True))
    of_group: dict[int, int] = {}
    for sample_id, group in pairs:
        if sample_id in known:
            of_group.setdefault(group, known[sample_id])
    if new := [sample_id for sample_id in ids if sample_id not in known]:
        message = "%d posters are not in %s (the first is %s): each goes to the split of a duplicate, or to train"
        log.info(message, len(new), folder, new[0])
    train = SPLITS.index("train")
    return np.array([known.get(i, of_group.get(group, train)) for i, group in pairs], dtype=np.int8)
