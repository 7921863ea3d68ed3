"""The splits of another shard set, for sets that must be compared: raw and cleaned posters, two sizes, two encoders."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shards.build.split import SPLITS
from shards.dataset.index import read_index_of
from shards.dataset.manifest import Manifest
from shards.dataset.store import warn_of_unknown_indexes
from shards.errors import UserError

log = logging.getLogger(__name__)


def splits_like(folder: Path, ids: Sequence[str], groups: np.ndarray) -> np.ndarray:
    """Split of every sample, (n,) int8 as in split.split_samples.

    A poster of the set in ``folder`` keeps its split. A new one goes where the first poster of its group of duplicates
    (``groups``, (n,)) is, so that nothing leaks from test to train; without one it goes to train.
    Raises UserError if the sets have no poster in common.
    """
    known: dict[str, int] = {}
    manifest = Manifest.read(folder)
    warn_of_unknown_indexes(folder, manifest)
    for shard in manifest.shards:
        if shard.split not in SPLITS:
            raise UserError(f"{folder} has a split {shard.split!r}; --split-like needs {', '.join(SPLITS)}")
        split = SPLITS.index(shard.split)
        for sample_id in read_index_of(folder, shard)["id"].to_pylist():
            if known.setdefault(sample_id, split) != split:
                raise UserError(
                    f"{folder} has sample {sample_id!r} in {SPLITS[known[sample_id]]} and in {shard.split}; "
                    f"--split-like needs a set without leaks: build it again"
                )
    if known.keys().isdisjoint(ids):
        raise UserError(f"no poster of this build is in {folder}; --split-like needs a set of the same posters")
    of_group: dict[int, int] = {}
    for sample_id, group in zip(ids, groups.tolist(), strict=True):
        if sample_id in known:
            of_group.setdefault(group, known[sample_id])
    new = [sample_id for sample_id in ids if sample_id not in known]
    if new:
        log.info(
            "%d posters are not in %s (the first is %s): train, or the split of a duplicate", len(new), folder, new[0]
        )
    train = SPLITS.index("train")
    return np.array(
        [known.get(i, of_group.get(g, train)) for i, g in zip(ids, groups.tolist(), strict=True)], dtype=np.int8
    )
