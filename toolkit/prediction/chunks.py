"""What batch prediction works through: parts, of which each becomes one file of rows.

A part is a shard of a set, or some hundred files of a folder. Processes take whole parts; a process has two of them
open at a time (the one whose rows come out and the one whose images are read ahead), so memory does not grow with the
set.
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
    TransformFactory,
    eval_transforms,
    file_transforms,
)
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.inference.scoring import Scored, joined

log = logging.getLogger(__name__)

#: Images of a folder that become one file: a minute's work for a CPU, and enough parts for eight GPUs of some thousand.
FILES_PER_CHUNK = 512
_SHIFT = 32

#: Digests of the files that predictions depend on, by name of the fact; None where one is not known.
Content: TypeAlias = dict[str, str | None]


@dataclass(frozen=True)
class OpenChunk:
    """A part at work."""

    source: Source
    transforms: TransformFactory
    """How its images become squares."""
    ids: Callable[[], list[str]]
    """Gives the user's names of the samples, in order."""
    content: Content
    """Its part's, as it was before anything was read."""


@dataclass(frozen=True)
class ShardChunk:
    """A shard of a set."""

    store: ShardStore
    shard: Shard
    labels: LabelSet

    @property
    def name(self) -> str:
        """Of its file of rows, without the ending: ``train-00000`` of ``train-00000.tar``."""
        return self.shard.name.removesuffix(".tar")

    @property
    def count(self) -> int:
        return self.shard.samples

    def content(self) -> Content:
        """What is predicted: the tar's images, the index's ids. A finished file of other content is of another part."""
        return {"content": self.shard.sha256, "index": self.shard.index_sha256}

    def open(self, preprocessing: Preprocessing, device: torch.device) -> OpenChunk:
        """Raises UserError for a shard that is missing or changed."""
        reader = ShardReader(self.store, [self.shard], self.labels)
        reader.ask_ahead()
        transforms = eval_transforms(reader, preprocessing, "auto", device)
        return OpenChunk(reader, transforms, reader.sample_ids, self.content())


@dataclass(frozen=True)
class FilesChunk:
    """Some image files of a folder; their ids are their paths below it (see file_id)."""

    root: Path
    number: int
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """``images-00000``, ..."""
        return f"images-{self.number:05d}"

    @property
    def count(self) -> int:
        return len(self.files)

    def content(self) -> Content:
        """Names, sizes and times of change, for reading everything twice would be too much."""
        facts = [(file, -1, -1) for file in self.files]
        for number, file in enumerate(self.files):
            with contextlib.suppress(OSError):  # gone since it was listed: its row will say so
                state = (self.root / file).stat()
                facts[number] = file, state.st_size, state.st_mtime_ns
        return {"content": fingerprint(facts)}

    def open(self, preprocessing: Preprocessing, device: torch.device) -> OpenChunk:
        content = self.content()  # before a byte is read: who changes a file now is noticed the next time
        source = FileSource([self.root / file for file in self.files])
        transforms = file_transforms(preprocessing.image_size, RawTransform(preprocessing))
        return OpenChunk(source, transforms, lambda: [file_id(file) for file in self.files], content)


#: Samples that become one file of rows.
Chunk: TypeAlias = ShardChunk | FilesChunk


def shard_chunks(store: ShardStore, manifest: Manifest, split: str | None) -> list[Chunk]:
    """The shards of a set or of one of its splits. Raises UserError for one that is missing or changed."""
    shards = [s for s in (manifest.of_split(split) if split else manifest.shards) if s.samples]
    store.check(shards, indexes=True)  # rather than an hour later, when the last one's turn comes
    return [ShardChunk(store, shard, manifest.labels) for shard in shards]


def folder_chunks(root: Path, paths: Sequence[Path]) -> list[Chunk]:
    """Sorted files below ``root``, FILES_PER_PART at a time."""
    names = [path.relative_to(root).as_posix() for path in paths]
    return [
        FilesChunk(root, number, tuple(names[start : start + FILES_PER_CHUNK]))
        for number, start in enumerate(range(0, len(names), FILES_PER_CHUNK))
    ]


def fetched_ahead(chunks: Sequence[Chunk], numbers: Iterable[int]) -> Iterator[int]:
    """The same numbers; where the shard lies at a URL, the next one's is on its way before a number is given out."""
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
    except BaseException:  # at the end, whoever reads the last one still wants it
        stop.set()
        raise


def _fetch(store: RemoteShards, shard: Shard, stop: threading.Event) -> None:
    try:
        with contextlib.suppress(NoRoom, Abandoned):  # who reads the shard brings it himself, or nobody does
            store.prefetch(shard, stop)
    except UserError as error:
        log.warning("not fetched ahead: %s", error)


class ChunkSource:
    """The samples of all parts as one Source; sample i of part p has the index p * 2**32 + i."""

    def __init__(self, chunks: Sequence[Chunk], preprocessing: Preprocessing, device: torch.device) -> None:
        self.chunks, self.preprocessing, self.device = chunks, preprocessing, device
        self._open: dict[int, OpenChunk] = {}

    def __len__(self) -> int:
        return sum(chunk.count for chunk in self.chunks)

    def micro_batches(self, numbers: Iterable[int], batch: int) -> Iterator[MicroBatch]:
        """Batches of the parts of these numbers, opened when their turn comes. No batch spans two parts."""
        for number in fetched_ahead(self.chunks, numbers):
            self._open[number] = self.chunks[number].open(self.preprocessing, self.device)
            for micro_batch in EvalPlan(self.chunks[number].count, batch).micro_batches(0, 1):
                yield MicroBatch(micro_batch.indices + (number << _SHIFT), micro_batch.valid)

    def whole(self, batches: Iterator[Scored]) -> Iterator[tuple[int, OpenChunk, Scored]]:
        """(number, part, outcome for all its samples, numbered within it) of each part, which is let go of then."""
        for number, group in itertools.groupby(batches, lambda scored: _chunk_of(scored.first)):
            scored = joined(list(group))
            if scored.count != self.chunks[number].count:
                raise RuntimeError(f"{scored.count} rows of {self.chunks[number].name} came, not all of them")
            errors = {_row_of(sample): problem for sample, problem in scored.errors.items()}
            yield number, self._open.pop(number), replace(scored, indices=_row_of(scored.indices), errors=errors)

    def read(self, index: int) -> memoryview:
        return self._open[_chunk_of(index)].source.read(_row_of(index))

    def where(self, index: int) -> str:
        return self._open[_chunk_of(index)].source.where(_row_of(index))

    def transforms(self, micro_batch: MicroBatch) -> BatchTransform:
        chunk = self._open[_chunk_of(int(micro_batch.indices[0]))]
        return chunk.transforms(MicroBatch(_row_of(micro_batch.indices), micro_batch.valid, micro_batch.repeat))


def _chunk_of(index: int) -> int:
    """The part of a sample of a PartsSource."""
    return index >> _SHIFT


def _row_of(index: Any) -> Any:
    """Where a sample stands in its part; a number, or an array of int64."""
    return index & ((1 << _SHIFT) - 1)
