"""manifest.json, the description of a shard set. Its size depends only on the number of shards and duplicates.

Sets can come from untrusted sources. So every command checks the values of a manifest when it reads the file. Names
become paths, digests become file names in a cache, and counts become array sizes.
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
from shards.dataset.tars_elsewhere import ELSEWHERE_FORMAT, field_problem
from shards.errors import UserError
from shards.schema import Count, Sha256, check_as, parse_as
from shards.storage.files import fingerprint, names_in, remove_file, small_bytes, write_json
from shards.storage.kinds import SHARD_SET, other_kind
from shards.storage.paths import StoragePath, is_remote
from shards.storage.retrying_read import FIRST_RETRY_SECONDS, MAX_SMALL_BYTES, RetryBudget, read_small

NAME = "manifest.json"
#: Formats of a manifest: 2 has sample weights, 3 can have its tars elsewhere. Earlier versions refuse newer formats.
FORMATS = FORMAT, WEIGHTED_FORMAT, _ = 1, 2, ELSEWHERE_FORMAT
#: Largest length of a shard's name in bytes. Such a name plus .jsonl.facts.json is still a valid file name.
NAME_BYTES = 242
# Slashes, and on Windows backslashes and colons, could lead to other folders. Control characters could end a line.
_PLAIN = re.compile(r"[^/\\:\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_REMEDY = "copy it again, or delete it and run the set's build (or `posters shards index`) again"


def is_plain(name: str) -> bool:
    """Return whether a name is a plain file name without a folder, on every operating system.

    >>> [is_plain(name) for name in ("train-00000.tar", "../a.tar", "/a.tar", "file:a.tar", "..", "")]
    [True, False, False, False, False, False]
    """
    return _PLAIN.fullmatch(name) is not None and name not in (".", "..") and len(name.encode()) <= NAME_BYTES


def is_shard_name(name: str) -> bool:
    """Return whether a name is a plain name of a .tar file, perhaps in one folder with a plain name.

    >>> [is_shard_name(name) for name in ("a.tar", "train/a.tar", "../a.tar", "a/b/c.tar", "a.zip")]
    [True, True, False, False, False]
    """
    parts = name.split("/")
    return len(parts) <= 2 and all(map(is_plain, parts)) and name.endswith(".tar") and len(name.encode()) <= NAME_BYTES


@dataclass(frozen=True)
class Shard:
    """One tar of a shard set."""

    name: str
    split: str
    samples: Count
    bytes: Count
    sha256: Sha256
    max_height: Count
    max_width: Count
    genre_counts: list[Count]
    """Number of samples of each genre, in the order of the genres."""
    index_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_SMALL_BYTES)] = 0
    """Size of the index file (index.py) in bytes. 0 if an earlier version wrote the set."""
    index_sha256: Sha256 | None = None
    """SHA-256 of the index file. None if an earlier version wrote the set."""


class _Head(msgspec.Struct):
    format: int


class _Labels(msgspec.Struct):
    genres: Genres


class Source(msgspec.Struct):
    """The fields of ``source`` that commands read. All other fields are only information for people."""

    indexed: bool = False
    genre_field: str | None = None
    """Field with the genres in each sample's JSON, if `posters shards index` made the set. None in older sets."""
    genre_separator: str = "|"
    genre_form: str = ""
    """Form of the targets: class, multi-hot, indices or flags. Empty if they are names, or come from a table."""
    classes: bool = False
    """Whether each sample has exactly one genre, whose number is its class. If ``genre_field`` is None, the ``.cls``
    members have the classes."""
    rejected: dict[str, Count] = {}
    weight_column: str | None = None
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
    tars: str | None = None


@dataclass
class Manifest:
    """The description of a shard set. ``shards`` are in the order of the splits, and sorted by name in each split."""

    genres: list[str]
    shards: list[Shard]
    packing: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    tables: dict[str, SampleTable] = field(default_factory=dict)
    """Sample table of each split. Empty if an earlier version wrote the set."""
    duplicates: dict[str, list[list[int]]] | None = None
    """Groups of near-duplicates in each split, as lists of sample positions. None if the duplicates are unknown."""
    tars: str | None = None
    """Absolute path or URL of the folder of the tars. None if the tars are in the folder of the manifest."""

    @property
    def labels(self) -> LabelSet:
        return LabelSet(tuple(self.genres))

    @property
    def by_split(self) -> dict[str, list[Shard]]:
        found: dict[str, list[Shard]] = {}
        for shard in self.shards:
            found.setdefault(shard.split, []).append(shard)
        return found

    @property
    def split_names(self) -> list[str]:
        return list(self.by_split)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend on the genres, and on the name, split, bytes and order of the shards."""
        return fingerprint([self.genres, [[s.name, s.split, s.sha256] for s in self.shards]])[:16]

    def of_split(self, split: str) -> list[Shard]:
        """Return the shards of a split. Raises UserError if the set does not have the split."""
        by_split = self.by_split
        if not isinstance(split, str) or split not in by_split:
            raise UserError("set-split", f"the shard set has no split {split!r}; it has {', '.join(by_split)}")
        return by_split[split]

    def table_of(self, split: str) -> SampleTable | None:
        """Return a split's sample table. None if the set has no tables. Raises UserError if the table is misnamed."""
        table = self.tables.get(split)
        name = table_name(split, [shard.sha256 for shard in self.of_split(split)], self.genres)
        if table is not None and table.name != name:
            what = f"the shard set's table {table.name!r} does not belong to its split {split!r}: expected {name!r}"
            raise UserError("set-damaged", f"{what}: {COPY_AGAIN}")
        return table

    def units_of(self, split: str) -> NDArray[np.int64] | None:
        """Return the group number of each sample, (n,). Duplicates share a number. None if duplicates are unknown."""
        if self.duplicates is None:
            return None
        units = np.arange(sum(shard.samples for shard in self.of_split(split)))
        for group in self.duplicates.get(split, ()):
            units[group] = group[0]
        return np.unique(units, return_inverse=True)[1].astype(np.int64)

    def split_summary(self) -> dict[str, dict[str, Any]]:
        """Return the numbers of shards, samples and bytes of each split, and the number of samples of each genre."""
        return {
            name: {
                "shards": len(shards),
                "samples": sum(s.samples for s in shards),
                "bytes": sum(s.bytes for s in shards),
                "genre_counts": dict(zip(self.genres, column_sums(shards, len(self.genres)), strict=True)),
            }
            for name, shards in self.by_split.items()
        }

    @property
    def weighted(self) -> bool:
        """Whether the set has sample weights."""
        return any(table.weighted for table in self.tables.values())

    def write_tables(self, folder: StoragePath, weighted: bool = False) -> None:
        """Write the sample tables from the indexes in ``folder``. Add the digests of the indexes to ``self.shards``.

        weighted: whether the indexes have sample weights. Call this method before ``write``. Raises UserError if the
        set does not pass the checks of ``read``.
        """
        if problem := self._problem():
            raise UserError("path-name", f"{folder} cannot become a shard set: {problem}")
        self.tables = {}
        digests: dict[str, tuple[int, str]] = {}
        for split, shards in self.by_split.items():
            unknown = [replace(shard, index_sha256=None) for shard in shards]
            self.tables[split], found = write_sample_table(folder, split, unknown, self.genres, weighted)
            digests.update(zip((shard.name for shard in shards), found, strict=True))
        self.shards = self.with_index_digests(digests)
        ours = {table.name for table in self.tables.values()}
        for name in names_in(folder):
            if name.endswith(TABLE) and name not in ours:  # left by an earlier build
                remove_file(folder / name)

    def with_index_digests(self, indexes: Mapping[str, tuple[int, str]]) -> list[Shard]:
        """Return shards with the size and SHA-256 of their indexes. ``indexes`` maps shard names to these values."""
        known = [(shard, *indexes[shard.name]) for shard in self.shards]
        return [replace(shard, index_bytes=size, index_sha256=digest) for shard, size, digest in known]

    def write(self, folder: StoragePath) -> None:
        """Write manifest.json atomically. It is the last file of a build."""
        write_json(
            folder / NAME,
            {
                "format": ELSEWHERE_FORMAT if self.tars else WEIGHTED_FORMAT if self.weighted else FORMAT,
                "fingerprint": self.fingerprint,
                **({} if self.tars is None else {"tars": self.tars}),
                "labels": {"fingerprint": self.labels.fingerprint, "genres": self.genres},
                "splits": self.split_summary(),
                "tables": {split: _fields(table) for split, table in self.tables.items()},
                "shards": [dataclasses.asdict(shard) for shard in self.shards],
                **({} if self.duplicates is None else {"duplicates": self.duplicates}),
                "packing": self.packing,
                "source": self.source,
                "versions": self.versions,
            },
        )

    @classmethod
    def read(cls, folder: StoragePath, remote_timeout: float = FIRST_RETRY_SECONDS) -> Manifest:
        """Read a folder's manifest, with ``remote_timeout`` seconds of retries. Raises UserError if it is not valid."""
        path = folder / NAME
        if is_remote(folder):
            data = read_small(path, RetryBudget(remote_timeout))
        elif folder.is_dir():
            data = small_bytes(path) if path.is_file() else None
            if data is None and (wrong := other_kind(folder, SHARD_SET)):
                raise UserError("set-missing", wrong)
        elif wrong := other_kind(folder, SHARD_SET):
            raise UserError("set-missing", wrong)
        else:
            remedy = f"make one with `posters shards build --out {folder}`"
            raise UserError("set-missing", f"no shard folder at {folder}; {remedy}")
        if data is None:
            other = f"or run `posters shards index {folder}` for tars made by other tools"
            raise UserError("set-missing", f"{folder} has no {NAME}: finish its `posters shards build`, {other}")
        message = path, "manifest", _REMEDY
        head = parse_as(data, _Head, *message, "set-damaged")
        if head.format not in FORMATS:
            what = f"has format {head.format}, but this version reads formats {FORMAT} to {FORMATS[-1]}"
            raise UserError("set-format", f"{path} {what}; build the set again")
        raw = parse_as(data, _Document, *message, "set-damaged")
        check_as(raw.source, Source, *message, "set-damaged")
        manifest = cls(raw.labels.genres, raw.shards, raw.packing, raw.source, raw.versions, raw.tables, raw.duplicates)
        manifest.tars = raw.tars if head.format >= ELSEWHERE_FORMAT else None
        if raw.fingerprint != manifest.fingerprint:
            raise UserError("set-damaged", f"{path} was edited: its fingerprint does not match its shards; {_REMEDY}")
        if problem := manifest._problem():
            raise UserError("set-damaged", f"{path} is not a valid manifest: {problem}; {_REMEDY}")
        return manifest

    def _problem(self) -> str:
        """Return a message about the first invalid name, count or table. Empty if all are valid."""
        problem = field_problem(self.tars) or genres_problem(self.genres)
        return problem or self._files_problem() or self._duplicates_problem()

    def _files_problem(self) -> str:
        if not any(shard.samples for shard in self.shards):
            return "it has no shard with samples"
        for shard in self.shards:
            if not is_shard_name(shard.name):
                return f"the shard {shard.name[:100]!r} is not a plain name of a .tar file in the set's folder"
            if not is_plain(shard.split):
                return f"the split {shard.split[:100]!r} is not a plain name that file names can contain"
            if len(shard.genre_counts) != len(self.genres):
                return f"the shard {shard.name!r} does not have one count per genre"
            if max(shard.genre_counts, default=0) > shard.samples:
                return f"the shard {shard.name!r} has more samples of a genre than samples in total"
            if self.source.get("classes") and sum(shard.genre_counts) != shard.samples:
                return f"the shard {shard.name!r} does not have one class per sample"
        # Prediction files are named after shards, and some file systems ignore case.
        name, times = Counter(shard.name.replace("/", "-").casefold() for shard in self.shards).most_common(1)[0]
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


def _fields(table: SampleTable) -> dict[str, Any]:
    """Return the fields of a table for the manifest. ``weighted`` is left out if it is false."""
    fields = dataclasses.asdict(table)
    return fields if table.weighted else {key: value for key, value in fields.items() if key != "weighted"}


def column_sums(shards: Sequence[Shard], genres: int) -> list[int]:
    """Return the number of samples of each genre, summed over the shards."""
    return [sum(shard.genre_counts[column] for shard in shards) for column in range(genres)]
