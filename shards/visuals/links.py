"""Write an HTML page, and link it with the pages of the same model that are beside it on the disk.

A page names its kind and its subjects (hashes of models or of a folder of cleaned posters) in a <meta> tag. A page is
beside another page if it is in the same folder, in the folder above, or in a folder of one of these two. This relation
is symmetric, so two pages with a common subject find each other, and both get a relative link. A page that another
command wrote before is replaced by one atomic rename.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from shards.errors import one_line
from shards.storage.files import atomic_write
from shards.storage.paths import StoragePath, is_remote
from shards.visuals.templates import render

log = logging.getLogger(__name__)

#: Kinds of pages, in the order of the links, and the names of their files.
KINDS = ("Demo", "Report", "Comparison", "Audit", "Cleaning")
NAMES = ("index.html", "audit.html", "contact_sheet.html")
#: The tag is in the first bytes of a page.
HEAD = 4096
_TAG = re.compile(rf'<meta name="page-of" content="({"|".join(KINDS)})((?: [0-9a-f]{{16,64}})+)">'.encode())
_LINKS = re.compile(rb"<!--links-->.*?<!--/links-->", re.DOTALL)


class Mark(NamedTuple):
    """What a page says about itself."""

    kind: str
    subjects: frozenset[bytes]


def page_of(kind: str, *subjects: str) -> str:
    """Return the content of the tag: one of KINDS, and hexadecimal hashes of the subjects."""
    return " ".join([kind, *subjects])


def subject_of(folder: StoragePath) -> str:
    """Return a hash that stands for a folder: of its path."""
    return hashlib.sha256(os.fsencode(str(folder.resolve()))).hexdigest()[:16]


def write_page(page: StoragePath, html: str) -> None:
    """Write a page atomically. If it is a local page with a tag, update its links and those of the pages beside it."""
    with atomic_write(page, "w") as stream:
        stream.write(html)
    if is_remote(page):
        return
    local = Path(page).absolute()
    for path in (local, *_beside(local)):
        try:
            _update(path)
        except OSError as error:
            log.warning("the links of %s could not be updated: %s", path, one_line(error))


def _update(page: Path) -> None:
    """Replace the links of a page by links to all pages that are beside it now."""
    found = [(mark.kind, path) for path, mark in _beside(page).items()]
    found.sort(key=lambda pair: (KINDS.index(pair[0]), pair[1]))
    kinds = Counter(kind for kind, _ in found)
    links = []
    for kind, path in found:
        folder = os.fsencode(path.parent.name).decode("utf-8", "replace")
        links.append((_address(path, page), kind if kinds[kind] == 1 else f"{kind} {folder}"))
    line = render("shards.visuals/links.html", links=links).encode()
    before = page.read_bytes()
    after = _LINKS.sub(lambda _: line, before, count=1)
    if after != before:
        with atomic_write(page) as stream:
            stream.write(after)


def _address(path: Path, page: Path) -> str:
    """Return the relative address of ``path`` for a link on ``page``. It has no characters of a scheme or a query."""
    return quote(os.fsencode(os.path.relpath(path, page.parent)))


def _beside(page: Path) -> dict[Path, Mark]:
    """Return the pages beside ``page`` that have a subject in common with it."""
    mine = _mark(page)
    if mine is None:
        return {}
    seen, found = {page.resolve()}, {}
    for folder in _folders((page.parent, page.parent.parent)):
        for path in (folder / name for name in NAMES):
            mark = _mark(path)
            if mark is not None and mark.subjects & mine.subjects and path.resolve() not in seen:
                seen.add(path.resolve())
                found[path] = mark
    return found


def _folders(roots: Sequence[Path]) -> Iterator[Path]:
    """Yield the roots and the folders in them. Folders of others, which cannot be read, have no pages for us."""
    for root in roots:
        yield root
        try:
            inside = sorted(Path(entry) for entry in os.scandir(root) if entry.is_dir())
        except OSError:
            continue
        yield from inside


def _mark(page: Path) -> Mark | None:
    """Return the mark of a page. None if the file is missing, unreadable or without a mark."""
    try:
        if not page.is_file():
            return None
        with page.open("rb") as stream:
            found = _TAG.search(stream.read(HEAD))
    except OSError:
        return None
    return Mark(found[1].decode(), frozenset(found[2].split())) if found else None
