"""Group the members of a tar into samples by WebDataset's rule. Reject unusable samples with a reason.

The members of one sample have the same path up to the first dot of the file name. They can be anywhere in the tar. A
usable sample has one image and at most one JSON. ``x.seg.jpg`` is the image of a sample only if the sample has no
``x.jpg``. All other regular files of a usable sample are its fields: ``x.txt`` is the field ``txt``. The keys ``./x``
and ``x`` are equal. A key without an image is rejected if it has a JSON or a class. Otherwise its files are only
counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shards.build.index.targets import CLASS_FIELD
from shards.build.tar_reader import Entry, entries, path_of
from shards.dataset.index import Field, Member
from shards.dataset.index_values import MAX_FIELDS, is_field_name
from shards.errors import UserError, some
from shards.inputs.rejections import Rejection
from shards.storage.endings import IMAGE_ENDINGS


@dataclass
class _Parts:
    """Members of a tar with the same key."""

    images: list[Entry] = field(default_factory=list)
    records: list[Entry] = field(default_factory=list)
    """Members whose names end with .json."""
    others: list[Entry] = field(default_factory=list)


@dataclass
class TarContents:
    """Contents of a tar: usable samples, rejected samples, and members that belong to no sample."""

    members: list[Member] = field(default_factory=list)
    """Usable samples, in the order of their first members."""
    rejected: list[Rejection] = field(default_factory=list)
    """Rejected samples with the reasons. ``Rejection.id`` is the key of the sample."""
    others: Counter[str] = field(default_factory=Counter)
    """Number of members that are no image and no JSON of a sample, for each file extension (``txt``) or kind
    (``hidden``). Fields of usable samples are counted too."""


def read_members(tar: Path) -> list[Member]:
    """Return the keys and byte ranges of the usable samples. Raises the same errors as ``read_tar``."""
    return read_tar(tar).members


def read_tar(tar: Path) -> TarContents:
    """Return the samples and the other members of a tar.

    Raises UserError if the tar is truncated, damaged, compressed or sparse, or has data after its end mark. Two images
    or two JSONs with the same name are also an error.
    """
    contents = TarContents()
    samples: dict[str, _Parts] = {}
    for entry in entries(tar):
        if problem := _no_part(entry):
            contents.others[problem] += 1
            continue
        sample = samples.setdefault(entry.key, _Parts())
        ending = entry.extension.rpartition(".")[2]
        if ending != "json" and f".{ending}" not in IMAGE_ENDINGS:
            contents.others[entry.kind or entry.extension] += 1
            sample.others.append(entry)
            continue
        parts = sample.records if ending == "json" else sample.images
        if any(part.path == entry.path for part in parts):
            why = "and one of the two may belong to another poster; pack the tar again with each file once"
            raise UserError("samples-repeated", f"{tar}: member {entry.name!r} occurs twice, {why}")
        parts.append(entry)
    for key, sample in samples.items():
        # Without an image or a JSON, other files such as README.md are no sample. A class tells that there is one.
        if sample.images or sample.records or any(e.extension == CLASS_FIELD and not e.kind for e in sample.others):
            _add(contents, tar, key, sample)
    return contents


def has_members(tar: Path, members: Sequence[Member]) -> bool:
    """Return whether each of ``members`` is at its byte range in a tar. Raises UserError if the tar is damaged."""
    there = {(e.offset, e.size, e.key): e.extension for e in entries(tar) if e.path and not e.kind}
    for member in members:
        key = "/".join(path_of(member.key))  # indexes of earlier versions may have keys that start with ./
        image, record = (member.image_offset, member.image_size, key), (member.json_offset, member.json_size, key)
        if image not in there or (member.json_offset >= 0 and record not in there):
            return False
        if any(there.get((field.offset, field.size, key)) != field.name for field in member.fields):
            return False
    return True


def _no_part(entry: Entry) -> str:
    """Return a short reason why a member cannot belong to a sample. Empty if the member can belong to a sample."""
    name = entry.path[-1] if entry.path else ""
    stem, _, extension = name.partition(".")
    if not stem:
        return "hidden"  # macOS: ._x.jpg
    if any(part.startswith("__") and part.endswith("__") for part in (entry.path[0], stem)):
        return "__name__ (WebDataset's own)"
    return "" if extension else (entry.kind or "without an extension")


def _add(contents: TarContents, tar: Path, key: str, parts: _Parts) -> None:
    images = [e for e in parts.images if "." not in e.extension] or parts.images
    wanted = {"json", f"{images[0].extension.rpartition('.')[0]}.json" if images else ""}
    records = [e for e in parts.records if e.extension in wanted]
    records = [e for e in records if e.extension == "json"] or records
    rest = [e for e in (*parts.images, *parts.records) if e not in (*images[:1], *records[:1])]
    fields = [e for e in (*rest, *parts.others) if not e.kind and is_field_name(e.extension)]
    reason, detail = _problem(images, records, fields)
    if reason:
        contents.rejected.append(
            Rejection(key, reason, f"{tar.name}: {detail or _some([*parts.records, *parts.others])}")
        )
        return
    image, record = images[0], records[0] if records else None
    contents.others.update(e.extension for e in rest)
    found = (record.offset, record.size) if record else (-1, -1)
    own = sorted((Field(e.extension, e.offset, e.size) for e in fields), key=lambda field: field.offset)
    contents.members.append(Member(key, image.offset, image.size, *found, tuple(own)))


def _problem(images: Sequence[Entry], records: Sequence[Entry], fields: Sequence[Entry]) -> tuple[str, str]:
    """Return the reason and the detail why a sample is not usable. The reason is empty if the sample is usable."""
    if not images:
        return "no image", ""
    if len(images) > 1:
        what = "have one key, because keys end at the first dot: rename or remove some files"
        return "several images", f"{_some(images)} {what}"
    if len(records) > 1:
        return "several JSON", _some(records)
    if linked := [e for e in (*images, *records) if e.kind]:
        detail = f"{linked[0].name} is a {linked[0].kind}"
        if linked[0].target:
            detail += f" to {linked[0].target}: pack the tar again with --dereference --hard-dereference"
        return ("link" if "link" in linked[0].kind else "no regular file"), detail
    counts = Counter(e.extension for e in fields)
    if twice := [e for e in fields if counts[e.extension] > 1]:
        return "repeated member", f"{_some(twice)}: several files have the same extension"
    if len(fields) > MAX_FIELDS:
        return "too many members", f"{len(fields)} beside the image and the JSON, over the limit of {MAX_FIELDS}"
    return "", ""


def _some(parts: Sequence[Entry]) -> str:
    return some([part.name for part in parts], 10)
