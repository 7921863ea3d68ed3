"""Chunks of a batch prediction. Each chunk becomes one file of rows.

A chunk is a shard of a shard set, or up to 512 files of a folder. Processes take whole chunks. A process has two chunks
open at a time, one for the forward pass and one to read ahead, so memory does not grow with the number of chunks.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from shards.dataset.cache_options import NoRoom
from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest, Shard
from shards.dataset.sample_table import records_of
from shards.dataset.store import RemoteShards, ShardStore
from shards.errors import UserError
from shards.storage.files import fingerprint
from shards.storage.retrying_read import Abandoned
from toolkit.data.loader.loader import Source
from toolkit.data.sampling.plan import EvalPlan, MicroBatch
from toolkit.data.sources.image_files import FileSource, file_id
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import (
    BatchTransform,
    RawTransform,
    Transforms,
    eval_transforms,
    file_transforms,
)
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.inference.scoring import Scored, joined

log = logging.getLogger(__name__)

#: Images per chunk of a folder. A CPU needs about a minute per chunk. 4,096 images give one chunk to each of 8 GPUs.
FILES_PER_CHUNK = 512
_SHIFT = 32

#: Name → digest of data that determine the predictions of a chunk. An unknown digest is None.
Content: TypeAlias = dict[str, str | None]


@dataclass(frozen=True)
class OpenChunk:
    """A chunk that is open for reading."""

    source: Source
    transforms: Transforms
    """Makes the transform that turns the images of a batch into model inputs."""
    ids: Callable[[], list[str]]
    """Returns the ids of the samples, in order."""
    content: Content
    """Digests of the chunk, computed before its first read."""


@dataclass(frozen=True)
class ShardChunk:
    """A shard of a set."""

    store: ShardStore
    shard: Shard
    labels: LabelSet

    @property
    def name(self) -> str:
        """Name of the prediction file without its ending: ``val-0`` for the shards ``val-0.tar`` and ``val/0.tar``."""
        return self.shard.name.removesuffix(".tar").replace("/", "-")

    @property
    def count(self) -> int:
        return self.shard.samples

    def content(self) -> Content:
        """Return the digests of the shard's tar file and index."""
        return {"content": self.shard.sha256, "index": self.shard.index_sha256}

    def open(self, preprocessing: Preprocessing, device: torch.device) -> OpenChunk:
        """Open the shard. Raises UserError if it is missing or changed."""
        index = self.store.index(self.shard)  # read once, for the records and for the ids
        reader = ShardReader(self.store, [self.shard], self.labels, records_of(index, len(self.labels)))
        reader.read_ahead()
        transforms = eval_transforms(reader, preprocessing, "auto", device)
        return OpenChunk(reader, transforms, index["id"].to_pylist, self.content())


@dataclass(frozen=True)
class FilesChunk:
    """Image files of a folder. The id of an image is its path below the folder (see file_id)."""

    root: Path
    number: int
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the prediction file without its ending, such as ``images-00000``."""
        return f"images-{self.number:05d}"

    @property
    def count(self) -> int:
        return len(self.files)

    def content(self) -> Content:
        """Return a digest of names, sizes and modification times of the files. To save time, the files are not read."""
        facts = [(file, -1, -1) for file in self.files]
        for number, file in enumerate(self.files):
            with contextlib.suppress(OSError):  # the file was deleted, so its row will have an error
                state = (self.root / file).stat()
                facts[number] = file, state.st_size, state.st_mtime_ns
        return {"content": fingerprint(facts)}

    def open(self, preprocessing: Preprocessing, device: torch.device) -> OpenChunk:
        content = self.content()  # before the first read, so that the next run detects a later change
        source = FileSource([self.root / file for file in self.files])
        transforms = file_transforms(preprocessing.image_size, RawTransform(preprocessing))
        return OpenChunk(source, transforms, lambda: [file_id(file) for file in self.files], content)


#: The samples of one prediction file.
Chunk: TypeAlias = ShardChunk | FilesChunk


def shard_chunks(store: ShardStore, manifest: Manifest, split: str | None) -> list[Chunk]:
    """Return the shards of a set, or of one split. Raises UserError if a shard is missing or changed."""
    shards = [s for s in (manifest.of_split(split) if split else manifest.shards) if s.samples]
    store.check(shards, indexes=True)  # fail now, not after an hour at the last shard
    return [ShardChunk(store, shard, manifest.labels) for shard in shards]


def folder_chunks(root: Path, paths: Sequence[Path]) -> list[Chunk]:
    """Return chunks of up to FILES_PER_CHUNK files. ``paths`` are the sorted files below ``root``."""
    names = [path.relative_to(root).as_posix() for path in paths]
    return [
        FilesChunk(root, number, tuple(names[start : start + FILES_PER_CHUNK]))
        for number, start in enumerate(range(0, len(names), FILES_PER_CHUNK))
    ]


def fetched_ahead(chunks: Sequence[Chunk], numbers: Iterable[int]) -> Iterator[int]:
    """Yield ``numbers``, the indices of chunks. For shards at a URL, a thread downloads the next shard in advance."""
    stop, before = threading.Event(), -1
    try:
        for number in numbers:
            chunk = chunks[number]
            if isinstance(chunk, ShardChunk) and isinstance(chunk.store, RemoteShards):
                threading.Thread(target=_fetch, args=(chunk.store, chunk.shard, stop), daemon=True).start()
                before, number = number, before
            if number >= 0:
                yield number
        if before >= 0:
            yield before
    except BaseException:  # at a normal end, the last download is still needed
        stop.set()
        raise


def _fetch(store: RemoteShards, shard: Shard, stop: threading.Event) -> None:
    try:
        with contextlib.suppress(NoRoom, Abandoned):  # then the reader downloads the shard later
            store.prefetch(shard, stop)
    except UserError as error:
        log.warning("a shard was not downloaded in advance: %s", error)


class ChunkSource:
    """The samples of all chunks as one Source. Sample i of chunk c has the index c * 2**32 + i."""

    def __init__(self, chunks: Sequence[Chunk], preprocessing: Preprocessing, device: torch.device) -> None:
        self.chunks, self.preprocessing, self.device = chunks, preprocessing, device
        self._open: dict[int, OpenChunk] = {}

    def __len__(self) -> int:
        return sum(chunk.count for chunk in self.chunks)

    def __reduce__(self) -> tuple[Any, ...]:
        return _copy, (self.chunks, self.preprocessing, self.device)

    def micro_batches(self, numbers: Iterable[int], batch: int) -> Iterator[MicroBatch]:
        """Yield batches of some chunks. ``numbers`` selects the chunks. All samples of a batch are from one chunk."""
        for number in fetched_ahead(self.chunks, numbers):
            self.opened(number)
            for micro_batch in EvalPlan(self.chunks[number].count, batch).micro_batches(0, 1):
                yield MicroBatch(micro_batch.indices + (number << _SHIFT), micro_batch.valid)

    def opened(self, number: int) -> OpenChunk:
        """Return a chunk, open for reading. Its results close it (see `whole`)."""
        if number not in self._open:
            self._open[number] = self.chunks[number].open(self.preprocessing, self.device)
        return self._open[number]

    def whole(self, batches: Iterator[Scored]) -> Iterator[tuple[int, OpenChunk, Scored]]:
        """Join the batches of each chunk. Yield (number, chunk, scores). Indices in scores are rows of the chunk."""
        for number, group in itertools.groupby(batches, lambda scored: chunk_of(scored.first)):
            scored = joined(list(group))
            if scored.count != self.chunks[number].count:
                raise RuntimeError(
                    f"{self.chunks[number].name} has {self.chunks[number].count} samples, but {scored.count} rows"
                )
            errors = {_row_of(sample): problem for sample, problem in scored.errors.items()}
            yield number, self._open.pop(number), replace(scored, indices=_row_of(scored.indices), errors=errors)

    def read(self, index: int) -> memoryview:
        return self._open[chunk_of(index)].source.read(_row_of(index))

    def where(self, index: int) -> str:
        return self._open[chunk_of(index)].source.where(_row_of(index))

    def transforms(self, micro_batch: MicroBatch) -> BatchTransform:
        chunk = self._open[chunk_of(int(micro_batch.indices[0]))]
        return chunk.transforms(MicroBatch(_row_of(micro_batch.indices), micro_batch.valid, micro_batch.repeat))


def chunk_of(index: int) -> int:
    """Return the number of the chunk of a sample in a ChunkSource."""
    return index >> _SHIFT


def _row_of(index: Any) -> Any:
    """Return the row number of a sample in its chunk. ``index`` is a number or an int64 array."""
    return index & ((1 << _SHIFT) - 1)


class _OpenedWhenUsed(dict[int, OpenChunk]):
    """The chunks of a decoding process, which opens a chunk at its first sample. Three chunks stay open."""

    def __init__(self, source: ChunkSource) -> None:
        super().__init__()
        self._source = source

    def __missing__(self, number: int) -> OpenChunk:
        for old in list(self)[:-2]:
            del self[old]
        self[number] = self._source.chunks[number].open(self._source.preprocessing, self._source.device)
        return self[number]


def _copy(chunks: Sequence[Chunk], preprocessing: Preprocessing, device: torch.device) -> ChunkSource:
    """Return the copy of a source in a decoding process."""
    source = ChunkSource(chunks, preprocessing, device)
    source._open = _OpenedWhenUsed(source)
    return source
