"""Rows and images that are left out, their reasons, and the file rejected.csv."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from shards.storage.csv_text import write_for_people
from shards.storage.files import atomic_write
from shards.storage.paths import StoragePath

REJECTED_COLUMNS = ("id", "reason", "detail")
#: Reasons for the rejection of a row whose genres cannot be read.
UNREADABLE = ("unparsable genres", "bad row")
#: Reasons for the rejection of a row whose genres may be missing in other rows of the same poster.
UNUSABLE = (*UNREADABLE, "no split", "no weight", "bad weight")


@dataclass(frozen=True)
class Rejection:
    """A row or image that is left out. ``reason`` is one of a few fixed texts, ``detail`` is any text."""

    id: str
    reason: str
    detail: str = ""


class Unusable(Exception):
    """A poster that cannot be used. `Rejection` explains ``reason`` and ``detail``."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def rejection(self, sample_id: str) -> Rejection:
        return Rejection(sample_id, self.reason, self.detail)


def id_problem(sample_id: str) -> str:
    """Return a message if an id cannot be a path in the image folder. Empty if the id is valid."""
    if not sample_id:
        return "empty id"
    if any(unicodedata.category(character) == "Cc" for character in sample_id):
        return "control characters in the id"
    parts = PurePosixPath(sample_id).parts
    if "\\" in sample_id or sample_id[1:2] == ":" or sample_id.startswith("/") or ".." in parts or not parts:
        return "the id is a path outside of the image folder"
    if len(sample_id.encode()) > 240:
        return "the id is too long for a file name"
    return ""


def write_rejected(path: StoragePath, rejected: Sequence[Rejection]) -> None:
    """Write rejected.csv (id, reason, detail) atomically. Cells that begin like a spreadsheet formula are escaped."""
    rows = [REJECTED_COLUMNS, *((r.id, r.reason, r.detail) for r in rejected)]
    with atomic_write(path, "w") as stream:
        write_for_people(stream, rows, end="\r\n")


def first_reasons(rejected: Sequence[Rejection]) -> str:
    """Return one line: the number of rejections for each reason, and an example of each of the three main reasons."""
    if not rejected:
        return "the file has only a header line"
    first = {rejection.reason: rejection for rejection in reversed(rejected)}
    reasons = Counter(rejection.reason for rejection in rejected).most_common()
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons)
    examples = [f"id {first[reason].id!r}: {reason} ({first[reason].detail})" for reason, _ in reasons[:3]]
    return f"{counts}; for example {', and '.join(examples)}"
