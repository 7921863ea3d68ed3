"""Check the folder of a page before it is written, so that no file of something else is overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from shards.errors import UserError, one_line
from shards.storage.files import PARTIAL


def check_page_folder(
    folder: Path, option: str, kind: str, numbers: str, made_by: str, foreign: Callable[[Sequence[Path]], str]
) -> None:
    """Raise UserError if ``folder`` is a file, or contains files that are not part of the page.

    option and kind: the option that names the folder, and the kind of page, for messages. numbers: name of the JSON
    file that marks the folder, with ``made_by`` under this key. foreign: returns the name of an entry that is not part
    of the page, or an empty string.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError("path-exists", f"{option} {folder} is a file; name a folder")
    try:
        entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.endswith(PARTIAL)]
        found = foreign(entries)
        if not found and entries and not _is_marked(folder / numbers, made_by):
            found = entries[0].name
    except OSError as error:
        raise UserError("path-unreadable", f"{option} {folder} cannot be read: {one_line(error)}") from None
    if found:
        what = f"contains {found}, which is not part of a {kind}"
        raise UserError("path-exists", f"{option} {folder} {what}; name a new or empty folder")


def _is_marked(numbers: Path, made_by: str) -> bool:
    try:
        found = json.loads(numbers.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(found, dict) and found.get("made_by") == made_by
