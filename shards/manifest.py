"""manifest.json: what a shard set holds. Its size grows with the number of shards, not of samples."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from shards.errors import UserError, one_line
from shards.files import fingerprint, write_json
from shards.labels import LabelSet
from shards.places import Place, is_remote
from shards.remote_read import FIRST_PATIENCE, Patience, read_small
from shards.samples import SampleTable, remove_other_tables, write_sample_table

NAME = "manifest.json"
FORMAT = 1
LIBRARIES = ("poster-toolkit", "webdataset", "pillow", "pyarrow", "numpy")


@dataclass(frozen=True)
class Shard:
    """One tar of the set."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    max_height: int
    max_width: int
    genre_counts: list[int]
    """Samples per genre, in the order of the genres."""

    def __post_init__(self) -> None:
        numbers = (self.samples, self.bytes, self.max_height, self.max_width, *self.genre_counts)
        if not all(isinstance(number, int) for number in numbers):
            raise TypeError(f"shard {self.name!r} has counts that are no whole numbers")


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

    @property
    def labels(self) -> LabelSet:
        return LabelSet(tuple(self.genres))

    @property
    def split_names(self) -> list[str]:
        return list(dict.fromkeys(shard.split for shard in self.shards))

    @property
    def fingerprint(self) -> str:
        """16 digits that change with any shard's bytes, their order or the genres."""
        return fingerprint([self.genres, [[s.name, s.split, s.sha256] for s in self.shards]])[:16]

    def of_split(self, split: str) -> list[Shard]:
        """The shards of a split. Raises UserError if the set has no such split."""
        shards = [shard for shard in self.shards if shard.split == split]
        if not shards:
            raise UserError(f"the shard set has no split {split!r}; it has {', '.join(self.split_names)}")
        return shards

    def split_summary(self) -> dict[str, dict[str, Any]]:
        """Per split: shards, samples, bytes, and the count of each genre."""
        summary: dict[str, dict[str, Any]] = {}
        for name in self.split_names:
            shards = self.of_split(name)
            summary[name] = {
                "shards": len(shards),
                "samples": sum(s.samples for s in shards),
                "bytes": sum(s.bytes for s in shards),
                "genre_counts": dict(zip(self.genres, column_sums(shards, len(self.genres)), strict=True)),
            }
        return summary

    def write_tables(self, folder: Place) -> None:
        """Write the splits' tables of samples from the indexes in ``folder``, before the manifest that names them."""
        self.tables = {
            split: write_sample_table(
                folder, split, [(s.name, s.sha256, s.samples) for s in self.of_split(split)], self.genres
            )
            for split in self.split_names
        }
        remove_other_tables(folder, list(self.tables.values()))

    def write(self, folder: Place) -> None:
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
                "packing": self.packing,
                "source": self.source,
                "versions": self.versions,
            },
        )

    @classmethod
    def read(cls, folder: Place, patience: float = FIRST_PATIENCE) -> Manifest:
        """Read a folder's manifest. Raises UserError if it is absent, malformed or of another format.

        patience: seconds for which a store that does not answer is asked again.
        """
        path = folder / NAME
        if is_remote(folder):
            data = read_small(path, Patience(patience))
        elif folder.is_dir():
            data = path.read_bytes() if path.exists() else None
        else:
            raise UserError(
                f"no shard folder at {folder}; make one with `posters shards build --out {folder}`"
            )
        if data is None:
            raise UserError(
                f"{folder} holds no {NAME}: finish its `posters shards build`, "
                f"or run `posters shards index {folder}` for tars made by other tools"
            )
        try:
            raw = json.loads(data)
        except ValueError as error:
            raise UserError(f"manifest {path} cannot be read: {one_line(error)}") from None
        try:
            if raw["format"] != FORMAT:
                raise UserError(
                    f"{path} has format {raw['format']}, this version reads {FORMAT}; build the set again"
                )
            manifest = cls(
                list(raw["labels"]["genres"]),
                [Shard(**shard) for shard in raw["shards"]],
                raw["packing"],
                raw["source"],
                raw["versions"],
                {split: SampleTable(**table) for split, table in raw.get("tables", {}).items()},
            )
            stated = raw["fingerprint"]
            if any(len(shard.genre_counts) != len(manifest.genres) for shard in manifest.shards):
                raise TypeError("a shard has not one count per genre")
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is no manifest of this toolkit ({type(error).__name__}: {error})"
            ) from None
        if stated != manifest.fingerprint:
            raise UserError(
                f"{path} was edited: its fingerprint does not match its shards; build or index it again"
            )
        return manifest


def column_sums(shards: Sequence[Shard], genres: int) -> list[int]:
    """Samples per genre over several shards."""
    return [sum(shard.genre_counts[column] for shard in shards) for column in range(genres)]


def library_versions() -> dict[str, str]:
    """Versions on which a shard's bytes depend."""
    return {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a source tree
        return "not installed"
