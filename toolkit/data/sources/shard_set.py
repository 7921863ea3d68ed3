"""Samples of a shard set as pictures and lists of genres: ``image, genres = toolkit.open_shards("SHARDS")[0]``."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from shards.dataset.store import open_store
from shards.errors import UserError
from shards.inputs.images import ANY, BadImage, decode
from shards.storage.paths import StoragePath, is_path
from toolkit.data.sources.shard_reader import ShardReader


class ShardSet:
    """All samples of a shard set, or of one split, in the order of the shards. Many threads can read.

    ``len(shards)`` is the number of samples. ``shards[i]`` is a pair: an upright RGB Pillow picture, and the list of
    the sample's genres.
    """

    def __init__(self, shards: str | StoragePath, split: str | None = None) -> None:
        """Open a folder or URL. Raises UserError if the set or the split is missing, or if a file is damaged."""
        if not is_path(shards):
            raise UserError("option-value", f"shards must be a path or a URL, not {type(shards).__name__}")
        if split is not None and not isinstance(split, str):
            raise UserError("option-value", f"split must be the name of one split, not {type(split).__name__}")
        store = open_store(shards)
        manifest = store.manifest()
        self.path: StoragePath = store.root
        self.split = split
        self.shards = manifest.shards if split is None else manifest.of_split(split)
        names = list(dict.fromkeys(shard.split for shard in self.shards))
        tables = [manifest.table_of(name) for name in names]
        records = None
        if all(table is not None for table in tables):
            parts = zip(names, tables, strict=True)
            genres = len(manifest.labels)
            records = np.concatenate(
                [store.records(table, manifest.of_split(name), genres) for name, table in parts if table is not None]
            )
        self.reader = ShardReader(store, self.shards, manifest.labels, records, bool(manifest.source.get("classes")))

    @property
    def genres(self) -> tuple[str, ...]:
        """The G genres in the order of the columns of ``targets``."""
        return self.reader.labels.genres

    @property
    def splits(self) -> dict[str, int]:
        """The number of samples of each split."""
        return dict(sum((Counter({shard.split: shard.samples}) for shard in self.shards), Counter()))

    @property
    def ids(self) -> list[str]:
        """The ids of all samples."""
        return self.reader.sample_ids()

    @property
    def targets(self) -> np.ndarray:
        """The (N, G) uint8 labels of all samples: 1 if the sample has the genre, else 0."""
        return self.reader.targets

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        """Return (picture, genres) of a sample. Negative numbers count from the end. Raises UserError for bad bytes."""
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        number %= len(self)
        try:
            picture = decode(self.reader.image_bytes(number), ANY)
        except BadImage as error:
            raise UserError("image-unreadable", f"{self.reader.where(number)} cannot be decoded: {error}") from None
        labels = self.reader.targets_of(np.array([number]))[0]
        return picture, [self.genres[column] for column in np.flatnonzero(labels)]

    def __iter__(self) -> Iterator[tuple[Image.Image, list[str]]]:
        return (self[number] for number in range(len(self)))

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with one row per sample: id, split, shard, width and height in pixels, list of genres.

        If the set has sample weights, the last column is ``weight``. Pictures are not read. Raises UserError if an
        index is missing or damaged.
        """
        parts = []
        for shard in self.shards:
            index = self.reader.store.index(shard)
            part = index.select(["id", "width", "height"]).to_pandas()
            part.insert(1, "split", shard.split)
            part.insert(2, "shard", shard.name)
            part["genres"] = [[self.genres[column] for column in row] for row in index["labels"].to_pylist()]
            if "weight" in index.column_names:
                part["weight"] = index["weight"].to_numpy()
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        return f"ShardSet({str(self.path)!r}: {len(self):,} samples, {len(self.genres)} genres; {counts})"

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSet, (self.path, self.split)
