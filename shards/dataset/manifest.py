"""manifest.json, the description of a shard set. Its size depends on the numbers of shards and duplicates, not samples.

Sets may come from untrusted sources. The values of a manifest are checked at each reading, for every command: names
become paths, digests become names in a cache, counts become sizes of arrays.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from shards.dataset.index import COPY_AGAIN
from shards.dataset.labels import Genres, LabelSet, genres_problem
from shards.dataset.sample_table import SUFFIX as TABLE
from shards.dataset.sample_table import SampleTable, table_name, write_sample_table
from shards.errors import UserError
from shards.schema import Count, Sha256, check_as, parse_as
from shards.storage.files import fingerprint, names_in, remove_file, small_bytes, write_json
from shards.storage.paths import StoragePath, is_remote
from shards.storage.retrying_read import FIRST_RETRY_SECONDS, MAX_SMALL_BYTES, RetryBudget, read_small

NAME = "manifest.json"
FORMAT = 1
#: Limit of a shard's name in bytes: with the longest extension (.jsonl.facts.json), it must be a valid file name, too.
NAME_BYTES = 242
# Slashes (on Windows also backslashes and colons) could lead to other folders; control characters end names or lines.
_PLAIN = re.compile(r"[^/\\:\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_REMEDY = "copy it again, or delete it and run the set's build (or `posters shards index`) again"


def is_plain(name: str) -> bool:
    """Return whether a name is, on every system, a plain file name without a folder.

    >>> [is_plain(name) for name in ("train-00000.tar", "../a.tar", "/a.tar", "file:a.tar", "..", "")]
    [True, False, False, False, False, False]
    """
    return _PLAIN.fullmatch(name) is not None and name not in (".", "..") and len(name.encode()) <= NAME_BYTES


@dataclass(frozen=True)
class Shard:
    """One tar of the set."""

    name: str
    split: str
    samples: Count
    bytes: Count
    sha256: Sha256
    max_height: Count
    max_width: Count
    genre_counts: list[Count]
    """Samples per genre, in the order of the genres."""
    index_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_SMALL_BYTES)] = 0
    """Size of the index (shards/dataset/index.py); 0 in sets of earlier versions."""
    index_sha256: Sha256 | None = None
    """Digest of the index; None in sets of earlier versions."""


class _Head(msgspec.Struct):
    format: int


class _Labels(msgspec.Struct):
    genres: Genres


class Source(msgspec.Struct):
    """The fields of ``source`` that commands read; other fields are only information."""

    indexed: bool = False
    genre_field: str | None = None
    """Field of the JSONs with the genres, in an indexed set; None in sets of earlier versions."""
    genre_separator: str = "|"
    rejected: dict[str, Count] = {}
    duplicate_groups: Count = 0
    samples_in_duplicate_groups: Count = 0


class _Document(msgspec.Struct):
    fingerprint: str
    labels: _Labels
    shards: list[Shard]
    packing: dict[str, Any]
    source: dict[str, Any]
    versions: dict[str, str]
    tables: dict[str, SampleTable] = {}
    duplicates: dict[str, list[list[Count]]] | None = None


@dataclass
class Manifest:
    """The description of a shard set; ``shards`` are in split order, then by name."""

    genres: list[str]
    shards: list[Shard]
    packing: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    tables: dict[str, SampleTable] = field(default_factory=dict)
    """Sample tables by split; empty in sets of earlier versions."""
    duplicates: dict[str, list[list[int]]] | None = None
    """By split: groups of near-duplicates, as positions in the split. None for sets of earlier versions or of other
    tools."""

    @property
    def labels(self) -> LabelSet:
        return LabelSet(tuple(self.genres))

    @property
    def by_split(self) -> dict[str, list[Shard]]:
        """The shards of each split."""
        found: dict[str, list[Shard]] = {}
        for shard in self.shards:
            found.setdefault(shard.split, []).append(shard)
        return found

    @property
    def split_names(self) -> list[str]:
        return list(self.by_split)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, which depend on the bytes of the shards, their order and the genres."""
        return fingerprint([self.genres, [[s.name, s.split, s.sha256] for s in self.shards]])[:16]

    def of_split(self, split: str) -> list[Shard]:
        """Return the shards of a split. Raises UserError if the set does not have the split."""
        by_split = self.by_split
        if split not in by_split:
            raise UserError("set-split", f"the shard set has no split {split!r}; it has {', '.join(by_split)}")
        return by_split[split]

    def table_of(self, split: str) -> SampleTable | None:
        """Return the sample table of a split; None in sets of earlier versions. Raises UserError for a wrong table."""
        table = self.tables.get(split)
        name = table_name(split, [shard.sha256 for shard in self.of_split(split)], self.genres)
        if table is not None and table.name != name:
            what = f"the shard set's table {table.name!r} does not belong to its split {split!r}: expected {name!r}"
            raise UserError("set-damaged", f"{what}: {COPY_AGAIN}")
        return table

    def units_of(self, split: str) -> NDArray[np.int64] | None:
        """Return (n,) numbers of a split's samples from 0, equal for duplicates. None if duplicates are unknown."""
        if self.duplicates is None:
            return None
        units = np.arange(sum(shard.samples for shard in self.of_split(split)))
        for group in self.duplicates.get(split, ()):
            units[group] = group[0]
        return np.unique(units, return_inverse=True)[1].astype(np.int64)

    def split_summary(self) -> dict[str, dict[str, Any]]:
        """Return, per split, the numbers of shards, samples and bytes, and the samples of each genre."""
        return {
            name: {
                "shards": len(shards),
                "samples": sum(s.samples for s in shards),
                "bytes": sum(s.bytes for s in shards),
                "genre_counts": dict(zip(self.genres, column_sums(shards, len(self.genres)), strict=True)),
            }
            for name, shards in self.by_split.items()
        }

    def write_tables(self, folder: StoragePath) -> None:
        """Write the sample tables from the indexes in ``folder``, and store the digests of the indexes in ``shards``.

        Call it before ``write``. Raises UserError for a set that ``read`` would refuse.
        """
        if problem := self._problem():
            raise UserError("path-name", f"{folder} cannot become a shard set: {problem}")
        self.tables = {}
        digests: dict[str, tuple[int, str]] = {}
        for split, shards in self.by_split.items():
            unknown = [replace(shard, index_sha256=None) for shard in shards]
            self.tables[split], found = write_sample_table(folder, split, unknown, self.genres)
            digests.update(zip((shard.name for shard in shards), found, strict=True))
        self.shards = self.with_index_digests(digests)
        ours = {table.name for table in self.tables.values()}
        for name in names_in(folder):
            if name.endswith(TABLE) and name not in ours:  # left by an earlier build
                remove_file(folder / name)

    def with_index_digests(self, indexes: Mapping[str, tuple[int, str]]) -> list[Shard]:
        """Return the shards with the given {shard name: (bytes, SHA-256)} of their indexes."""
        known = [(shard, *indexes[shard.name]) for shard in self.shards]
        return [replace(shard, index_bytes=size, index_sha256=digest) for shard, size, digest in known]

    def write(self, folder: StoragePath) -> None:
        """Write manifest.json atomically. It is the last file of a build."""
        write_json(
            folder / NAME,
            {
                "format": FORMAT,
                "fingerprint": self.fingerprint,
                "labels": {"fingerprint": self.labels.fingerprint, "genres": self.genres},
                "splits": self.split_summary(),
                "tables": {split: dataclasses.asdict(table) for split, table in self.tables.items()},
                "shards": [dataclasses.asdict(shard) for shard in self.shards],
                **({} if self.duplicates is None else {"duplicates": self.duplicates}),
                "packing": self.packing,
                "source": self.source,
                "versions": self.versions,
            },
        )

    @classmethod
    def read(cls, folder: StoragePath, remote_timeout: float = FIRST_RETRY_SECONDS) -> Manifest:
        """Read a folder's manifest. remote_timeout: in seconds. Raises UserError if it is absent or not valid."""
        path = folder / NAME
        if is_remote(folder):
            data = read_small(path, RetryBudget(remote_timeout))
        elif folder.is_dir():
            data = small_bytes(path) if path.is_file() else None
        else:
            remedy = f"make one with `posters shards build --out {folder}`"
            raise UserError("set-missing", f"no shard folder at {folder}; {remedy}")
        if data is None:
            other = f"or run `posters shards index {folder}` for tars made by other tools"
            raise UserError("set-missing", f"{folder} has no {NAME}: finish its `posters shards build`, {other}")
        message = path, "manifest", _REMEDY
        head = parse_as(data, _Head, *message, "set-damaged")
        if head.format != FORMAT:
            remedy = "build the set again"
            raise UserError("set-format", f"{path} has format {head.format}, this version reads {FORMAT}; {remedy}")
        raw = parse_as(data, _Document, *message, "set-damaged")
        check_as(raw.source, Source, *message, "set-damaged")
        manifest = cls(raw.labels.genres, raw.shards, raw.packing, raw.source, raw.versions, raw.tables, raw.duplicates)
        if raw.fingerprint != manifest.fingerprint:
            raise UserError("set-damaged", f"{path} was edited: its fingerprint does not match its shards; {_REMEDY}")
        if problem := manifest._problem():
            raise UserError("set-damaged", f"{path} is not a valid manifest: {problem}; {_REMEDY}")
        return manifest

    def _problem(self) -> str:
        """Return the first invalid name, count or table; empty if there is none. Paths and arrays depend on them."""
        return genres_problem(self.genres) or self._files_problem() or self._duplicates_problem()

    def _files_problem(self) -> str:
        if not any(shard.samples for shard in self.shards):
            return "it has no shard with samples"
        for shard in self.shards:
            if not is_plain(shard.name) or not shard.name.endswith(".tar"):
                return f"the shard {shard.name[:100]!r} is not a plain name of a .tar file in the set's folder"
            if not is_plain(shard.split):
                return f"the split {shard.split[:100]!r} is not a plain word, which file names need"
            if len(shard.genre_counts) != len(self.genres):
                return f"the shard {shard.name!r} does not have one count per genre"
            if max(shard.genre_counts, default=0) > shard.samples:
                return f"the shard {shard.name!r} has more samples of a genre than samples"
        # Prediction files get the names of shards, and some file systems ignore case.
        name, times = Counter(shard.name.casefold() for shard in self.shards).most_common(1)[0]
        if times > 1:
            return f"{times} shards are named {name!r}"
        for table in self.tables.values():
            if not is_plain(table.name) or not table.name.endswith(TABLE):
                return f"the table {table.name[:100]!r} is not a plain name of a {TABLE} file in the set's folder"
        return ""

    def _duplicates_problem(self) -> str:
        for split, groups in (self.duplicates or {}).items():
            samples = sum(shard.samples for shard in self.by_split.get(split, ()))
            members = [position for group in groups for position in group]
            if min(map(len, groups), default=2) < 2 or len(set(members)) < len(members):
                return f"its duplicates in {split[:100]!r} are not separate groups of two or more samples"
            if max(members, default=-1) >= samples:
                return f"its duplicates in {split[:100]!r} have positions beyond the {samples} samples of the split"
        return ""


def column_sums(shards: Sequence[Shard], genres: int) -> list[int]:
    """Return the samples per genre, summed over shards."""
    return [sum(shard.genre_counts[column] for shard in shards) for column in range(genres)]
