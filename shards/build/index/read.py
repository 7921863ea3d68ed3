"""Read a tar that another tool wrote. Check its samples, and find their ids, genres and image sizes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from shards.build.index.targets import (
    CLASS_FIELD,
    MAX_CLASS_BYTES,
    Target,
    class_target,
    json_target,
    text_of,
    value_of,
)
from shards.build.tar_samples import read_tar
from shards.dataset.index import SCHEMA, Member, build_table
from shards.dataset.index_values import WEIGHTS
from shards.dataset.labels import LabelSet
from shards.errors import UserError, one_line, printable
from shards.inputs.image_structure import more_frames
from shards.inputs.images import BadImage, upright_size
from shards.inputs.rejections import Rejection, Unusable
from shards.storage.files import sha256_file
from shards.tables.genre_checks import words_left_out

MAX_IMAGE = 1 << 29
MAX_JSON = 1 << 22
"""Largest sizes in bytes of a sample's image and JSON. Samples with a larger image or JSON are rejected."""
MAX_NAME = 4096
"""Largest length of a key or id in bytes. Linux has the same limit for paths."""


@dataclass(frozen=True)
class ReadTask:
    """A tar to read."""

    tar: Path
    genre_field: str | None
    """Name of the JSON field that has the target of a sample. None if the genres come from a table."""
    separator: str
    classes: bool = False
    """Whether to read the ``.cls`` members."""

    def __len__(self) -> int:
        return 1

    def __str__(self) -> str:
        return f"reading {self.tar.name}"


@dataclass
class Contents:
    """Contents of a tar: the usable samples in the order of the tar, and the rejected samples."""

    tar: Path
    table: pa.Table
    """Table with a row for each usable sample, as in an index file. ``label()`` fills the column ``labels``. The column
    ``id`` is null for samples without an id in their JSON, until ``join.py`` fills it."""
    genres: list[tuple[str, ...]]
    """Genres of the usable samples. Empty until ``genres.py`` or a table gives them."""
    targets: list[Target]
    """Targets of the usable samples in the JSONs."""
    classes: list[Target]
    """Targets of the usable samples in the ``.cls`` members."""
    rejected: list[Rejection]
    """Rejected samples with the reasons. ``Rejection.id`` is the key of the sample."""
    others: Counter[str]
    """Number of members that are no image and no JSON of a sample, for each file extension or type of member."""
    bytes: int
    sha256: str
    films: list[str]
    """Keys of samples whose image has several frames. Only the first frame is used."""
    fields: list[str]
    """Names of the fields of the first JSON. Empty if the tar has no JSON."""
    words: Counter[str]
    """Number of samples of each word such as None that is read as "no genre"."""

    def names(self) -> list[tuple[str, str]]:
        """Return an (id, key) pair for each usable sample."""
        return list(zip(self.table["id"].to_pylist(), self.table["key"].to_pylist(), strict=True))

    def reject(self, key: str, reason: str, detail: str = "") -> None:
        """Add a sample to ``rejected``. The sample remains in ``table`` until ``keep`` drops it."""
        where = self.tar.name
        self.rejected.append(Rejection(key, reason, f"{where}: {detail}" if detail else where))

    def keep(self, wanted: Sequence[bool]) -> None:
        """Drop the usable samples whose entry in ``wanted`` is false."""
        self.table = self.table.filter(pa.array(wanted, pa.bool_()))
        if "fields" in self.table.column_names and not pc.max(pc.list_value_length(self.table["fields"])).as_py():
            self.table = self.table.drop_columns(["fields"])
        self.genres = list(compress(self.genres, wanted))
        self.targets, self.classes = list(compress(self.targets, wanted)), list(compress(self.classes, wanted))

    def label(self, labels: LabelSet) -> None:
        """Fill the column ``labels`` of the table with the label numbers of the genres."""
        field = SCHEMA.field("labels")
        columns = pa.array([labels.columns(genres) for genres in self.genres], field.type)
        self.table = self.table.set_column(SCHEMA.get_field_index("labels"), field, columns)

    def facts(self) -> dict[str, Any]:
        """Return the size and the SHA-256 of the tar, for the metadata of the index file."""
        return {"plan": "indexed", "bytes": self.bytes, "sha256": self.sha256}


def read_contents(task: ReadTask) -> Contents:
    """Read all images and JSONs of a tar. Raises UserError if the tar is damaged, or changes while it is read."""
    before = task.tar.stat()
    samples = read_tar(task.tar)
    members, ids, sizes, targets, classes, weights, films = [], [], [], [], [], [], []
    fields, words = list[str](), Counter[str]()
    with open(task.tar, "rb") as stream:
        for member in samples.members:
            try:
                if len(member.key.encode()) > MAX_NAME:
                    raise Unusable("bad key", f"the key is longer than {MAX_NAME} bytes")
                data = _image(stream, member)
                size = upright_size(data)
                record = _record(stream, member)
                sample_id = id_of(record)
                weight = weight_of(record)
            except Unusable as bad:
                samples.rejected.append(Rejection(member.key, bad.reason, f"{task.tar.name}: {bad.detail}"))
                continue
            members.append(member)
            films += [member.key] if more_frames(data) else []
            ids.append(sample_id)
            sizes.append(size)
            fields = fields or list(record)
            targets.append(json_target(record, task.genre_field, task.separator) if task.genre_field else Target())
            if task.genre_field and targets[-1].form in ("", "names"):
                words += words_left_out([text_of(value_of(record, task.genre_field))], task.separator)
            classes.append(class_of(stream, member) if task.classes else Target())
            weights.append(weight)
    table = build_table(task.tar, members, ids, sizes, [[] for _ in ids], weights if any(weights) else None)
    digest = sha256_file(task.tar)
    after = task.tar.stat()
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise UserError("file-changed", f"{task.tar} changed while it was read; run the same command again")
    genres: list[tuple[str, ...]] = [()] * len(ids)
    seen = samples.rejected, samples.others, after.st_size, digest
    return Contents(task.tar, table, genres, targets, classes, *seen, films, fields, words)


def _image(stream: IO[bytes], member: Member) -> bytes:
    if member.image_size > MAX_IMAGE:
        raise BadImage("file too large", f"{member.image_size} bytes, over the limit of {MAX_IMAGE}")
    stream.seek(member.image_offset)
    if not (data := stream.read(member.image_size)):
        raise BadImage("zero bytes", "the image is empty")
    return data


def _record(stream: IO[bytes], member: Member) -> dict[str, Any]:
    if member.json_offset < 0:
        return {}
    if member.json_size > MAX_JSON:
        raise Unusable("unreadable JSON", f"{member.json_size} bytes, over the limit of {MAX_JSON}")
    stream.seek(member.json_offset)
    try:
        record = json.loads(stream.read(member.json_size), object_pairs_hook=_once)
    except RecursionError:
        raise Unusable("unreadable JSON", "the values are nested too deeply") from None
    except ValueError as error:
        raise Unusable("unreadable JSON", one_line(error)[:200]) from None
    return record if isinstance(record, dict) else {}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field occurs twice")
    return found


def id_of(record: dict[str, Any]) -> str | None:
    """Return the id in a sample's JSON. None if the JSON has no id. Raises Unusable if the id is not valid."""
    if (found := record.get("id")) is None:  # img2dataset's JSON has the key, but no id
        return None
    if isinstance(found, float) and found.is_integer() and abs(found) < 1 << 53:
        found = int(found)  # pandas may write a whole number as 42.0
    if isinstance(found, bool) or not isinstance(found, (str, int)):
        raise Unusable("bad id", f"the JSON's id must be text or a whole number, but is a {type(found).__name__}")
    text = str(found)
    if len(text) > MAX_NAME or len(text.encode("utf-8", "replace")) > MAX_NAME:
        raise Unusable("bad id", f"the JSON's id is longer than {MAX_NAME} bytes")
    if not text.strip() or "\n" in text or printable(text) != text:
        raise Unusable("bad id", f"the JSON's id is empty or has control characters: {text[:60]!a}")
    return text


def weight_of(record: dict[str, Any]) -> float | None:
    """Return the sample weight in a JSON of `posters shards build`, which also has ``multi_hot``. None if it has none.

    The field ``weight`` of other tools can have any meaning, so it is not used. Raises Unusable for an invalid weight.
    """
    if "multi_hot" not in record or (weight := record.get("weight")) is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not WEIGHTS[0] <= weight <= WEIGHTS[1]:
        raise Unusable("bad weight", f"the JSON's weight is not a number from {WEIGHTS[0]:f} to {WEIGHTS[1]:.0f}")
    return float(weight)


def class_of(stream: IO[bytes], member: Member) -> Target:
    """Return the target in the ``.cls`` member of a sample. Its form is empty if the sample has no such member."""
    for field in member.fields:
        if field.name == CLASS_FIELD:
            stream.seek(field.offset)
            return class_target(stream.read(min(field.size, MAX_CLASS_BYTES + 1)))
    return Target()
