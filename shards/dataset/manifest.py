"""manifest.json: what a shard set holds. Its size grows with the number of shards and of duplicates, not of samples.

A set may come from a stranger. What its manifest says is checked where it is read, for every command: its names become
paths, its digests names in a cache, its counts sizes of arrays.
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
#: Bytes of a shard's name: with the longest ending in place of its own (.jsonl.facts.json) it still is a file's name.
NAME_BYTES = 242
# A slash leads elsewhere, a backslash and a colon do so on Windows, control characters end names or lines.
_PLAIN = re.compile(r"[^/\\:\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_REMEDY = "copy it again, or delete it and run the set's build (or `posters shards index`) again"


def is_plain(name: str) -> bool:
    """Whether a name is that of one file in the folder it is joined to, on every system.

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
    """Of its index (shards/dataset/index.py); this and the next are unknown in sets of earlier versions."""
    index_sha256: Sha256 | None = None


class _Head(msgspec.Struct):
    format: int


class _Labels(msgspec.Struct):
    genres: Genres


class Source(msgspec.Struct):
    """What commands read of ``source``; the rest is for people."""

    indexed: bool = False
    genre_field: str | None = None
    """Of an indexed set's JSONs; unknown in sets of earlier versions."""
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
    """A shard set's description; ``shards`` in split order, then by name."""

    genres: list[str]
    shards: list[Shard]
    packing: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    tables: dict[str, SampleTable] = field(default_factory=dict)
    """By split. Sets of earlier versions have none."""
    duplicates: dict[str, list[list[int]]] | None = None
    """By split: groups of samples that were taken for one, as positions in the split. Sets of earlier versions and of
    other tools do not say."""

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
        """16 digits that change with any shard's bytes, their order or the genres."""
        return fingerprint([self.genres, [[s.name, s.split, s.sha256] for s in self.shards]])[:16]

    def of_split(self, split: str) -> list[Shard]:
        """The shards of a split. Raises UserError if the set has no such split."""
        by_split = self.by_split
        if split not in by_split:
            raise UserError("set-split", f"the shard set has no split {split!r}; it has {', '.join(by_split)}")
        return by_split[split]

    def table_of(self, split: str) -> SampleTable | None:
        """A split's table of samples; None in sets of earlier versions. Raises UserError if it is another split's."""
        table = self.tables.get(split)
        name = table_name(split, [shard.sha256 for shard in self.of_split(split)], self.genres)
        if table is not None and table.name != name:
            what = f"the shard set's table {table.name!r} is not that of its split {split!r}, {name!r}"
            raise UserError("set-damaged", f"{what}: {COPY_AGAIN}")
        return table

    def units_of(self, split: str) -> NDArray[np.int64] | None:
        """(n,) numbers from 0 of a split's samples, the same for duplicates; None where the set does not say."""
        if self.duplicates is None:
            return None
        units = np.arange(sum(shard.samples for shard in self.of_split(split)))
        for group in self.duplicates.get(split, ()):
            units[group] = group[0]
        return np.unique(units, return_inverse=True)[1].astype(np.int64)

    def split_summary(self) -> dict[str, dict[str, Any]]:
        """Per split: shards, samples, bytes, and the count of each genre."""
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
        """Write the splits' tables of samples from the indexes in ``folder``, and take note of the indexes' digests.

        Before the manifest, which names them. Raises UserError for a set that could not be read again.
        """
        if problem := self._problem():
            raise UserError("path-name", f"{folder} cannot become a shard set: {problem}")
        self.tables = {}
        digests: dict[str, tuple[int, str]] = {}
        for split, shards in self.by_split.items():
            unknown = [replace(shard, index_sha256=None) for shard in shards]
            self.tables[split], found = write_sample_table(folder, split, unknown, self.genres)
            digests.update(zip((shard.name for shard in shards), found, strict=True))
        self.shards = self.vouched(digests)
        ours = {table.name for table in self.tables.values()}
        for name in names_in(folder):
            if name.endswith(TABLE) and name not in ours:  # of an earlier build
                remove_file(folder / name)

    def vouched(self, indexes: Mapping[str, tuple[int, str]]) -> list[Shard]:
        """The shards with (bytes, SHA-256) of their indexes, by the shard's name."""
        known = [(shard, *indexes[shard.name]) for shard in self.shards]
        return [replace(shard, index_bytes=size, index_sha256=digest) for shard, size, digest in known]

    def write(self, folder: StoragePath) -> None:
        """Write manifest.json, atomically. It is the last file of a build."""
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
        """Read a folder's manifest; ``patience`` (seconds) with a store. Raises UserError if absent or not valid."""
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
            raise UserError("set-missing", f"{folder} holds no {NAME}: finish its `posters shards build`, {other}")
        said = path, "manifest", _REMEDY
        head = parse_as(data, _Head, *said, "set-damaged")
        if head.format != FORMAT:
            remedy = "build the set again"
            raise UserError("set-format", f"{path} has format {head.format}, this version reads {FORMAT}; {remedy}")
        raw = parse_as(data, _Document, *said, "set-damaged")
        check_as(raw.source, Source, *said, "set-damaged")
        manifest = cls(raw.labels.genres, raw.shards, raw.packing, raw.source, raw.versions, raw.tables, raw.duplicates)
        if raw.fingerprint != manifest.fingerprint:
            raise UserError("set-damaged", f"{path} was edited: its fingerprint does not match its shards; {_REMEDY}")
        if problem := manifest._problem():
            raise UserError("set-damaged", f"{path} is not a valid manifest: {problem}; {_REMEDY}")
        return manifest

    def _problem(self) -> str:
        """What no set has: such names, counts and tables reach no path and no array. Empty if there is nothing."""
        return genres_problem(self.genres) or self._files_problem() or self._duplicates_problem()

    def _files_problem(self) -> str:
        if not any(shard.samples for shard in self.shards):
            return "it has no shard with samples"
        for shard in self.shards:
            if not is_plain(shard.name) or not shard.name.endswith(".tar"):
                return f"the shard {shard.name[:100]!r} is not named like one plain .tar file in the set's folder"
            if not is_plain(shard.split):
                return f"the split {shard.split[:100]!r} is not one plain word: files are named by it"
            if len(shard.genre_counts) != len(self.genres):
                return f"the shard {shard.name!r} has not one count per genre"
            if max(shard.genre_counts, default=0) > shard.samples:
                return f"the shard {shard.name!r} has more samples of a genre than samples"
        # Files of predictions are named like shards; not every file system tells a from A.
        name, times = Counter(shard.name.casefold() for shard in self.shards).most_common(1)[0]
        if times > 1:
            return f"{times} shards are named {name!r}"
        for table in self.tables.values():
            if not is_plain(table.name) or not table.name.endswith(TABLE):
                return f"the table {table.name[:100]!r} is not named like one plain {TABLE} file in the set's folder"
        return ""

    def _duplicates_problem(self) -> str:
        for split, groups in (self.duplicates or {}).items():
            samples = sum(shard.samples for shard in self.by_split.get(split, ()))
            members = [position for group in groups for position in group]
            if min(map(len, groups), default=2) < 2 or len(set(members)) < len(members):
                return f"its duplicates in {split[:100]!r} are no groups of two or more samples, each in one"
            if max(members, default=-1) >= samples:
                return f"its duplicates in {split[:100]!r} are beyond its {samples} samples there"
        return ""


def column_sums(shards: Sequence[Shard], genres: int) -> list[int]:
    """Samples per genre over several shards."""
    return [sum(shard.genre_counts[column] for shard in shards) for column in range(genres)]
