"""Which of many files are there: asked in a few listings, not once for every name that a poster may have.

A folder's listing can be larger than memory likes, and most of it may belong to no id. So, at a URL, ids are put into
groups of a common beginning, and what begins so is listed and forgotten, group after group. A local folder is walked
through once. Kept is only what belongs to an id.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shards.errors import UserError, some
from shards.inputs.image_files import Walk, files_of, list_folder, walk_folders
from shards.storage.endings import is_image_name
from shards.storage.paths import StoragePath, as_user_error, is_remote

log = logging.getLogger(__name__)

#: Stores that list by the beginning of a name. Others are walked through once.
BY_PREFIX = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl")
#: Ids a listing: about what a store answers at a time.
GROUP = 1000
#: What stores call the thing that changes with a file's content; the first that a store has is used.
VERSION_KEYS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "updated", "last_modified", "mtime", "created")


@dataclass(frozen=True, slots=True)
class Listed:
    """A poster's file."""

    name: str  # its path below the folder
    state: str = ""  # of a file at a URL: changes with its content; size and what the store calls its version


def list_posters(folder: StoragePath, ids: Iterable[str], quiet: bool = False) -> dict[str, Listed]:
    """The files of those ids that have one. Raises UserError if there is no such folder or it cannot be listed.

    Said in a line each, unless ``quiet``: ids with several files, of which one counts; in a local folder also files of
    other kinds, and folders that cannot be read.
    """
    groups: Iterable[tuple[Sequence[str], Mapping[str, Any]]]
    if is_remote(folder):
        # With its dot an id is the beginning of its own files alone. One that is a file's name is a beginning as it is.
        groups = _groups_with_files(folder, {i: _plain(i) if is_image_name(i) else f"{_plain(i)}." for i in ids})
    else:
        groups = _local_posters(folder, ids, quiet)
    found, several = {}, []
    for members, files in groups:
        # Ids may have ./ and double slashes; two of them may then be one file's
        plain = {sample_id: _plain(sample_id) for sample_id in members}
        chosen = files_of(set(plain.values()), files)
        for sample_id, own in plain.items():
            if names := chosen.get(own):
                info = files[names[0]]
                version = next((info[key] for key in VERSION_KEYS if info.get(key)), "") if info else ""
                found[sample_id] = Listed(names[0], f"{info.get('size')} {version}" if info else "")
                others = [name for name in names[1:] if name != own]
                several += [f"{names[0]} (not {', '.join(others)})"] if others else []
    if several and not quiet:
        shown = some(several, 3, "; ")
        log.warning("%d posters have several files, of which one is taken: %s", len(several), shown)
    return found


def _local_posters(folder: Path, ids: Iterable[str], quiet: bool) -> Iterator[tuple[Sequence[str], Mapping[str, Any]]]:
    """Groups of ids that lie in one folder, with its files."""
    by_folder: dict[str, list[str]] = {}
    for sample_id in ids:
        by_folder.setdefault(_plain(sample_id).rpartition("/")[0], []).append(sample_id)
    walk = Walk()
    for below, files in walk_folders(folder, walk):
        if members := by_folder.pop(below.rstrip("/"), None):
            yield members, dict.fromkeys(files)
    for below, members in by_folder.items():
        if os.path.isdir(folder / below):  # behind a link, which the walk does not follow
            yield members, dict.fromkeys(list_folder(folder, f"{below}/", walk)[1])
    if not quiet:
        walk.warn(folder)


def list_sizes(folder: StoragePath, names: Iterable[str]) -> dict[str, int]:
    """Sizes, in bytes, of those of the files that are there; no folder holds none."""
    found = {}
    try:
        for members, files in _groups_with_files(folder, {name: _plain(name) for name in names}):
            here = ((name, files.get(_plain(name))) for name in members)
            found.update({name: int(info["size"] or 0) for name, info in here if info is not None})
    except NoFolder:
        return {}
    return found


class NoFolder(UserError):
    """There is nothing at a URL."""


def _groups_with_files(folder: Any, begins: Mapping[str, str]) -> Iterator[tuple[Sequence[str], dict[str, Any]]]:
    """Groups of keys, each with the files (path below the folder → what the store says) that begin as its keys do."""
    with as_user_error("list", folder):
        folder.fs.invalidate_cache()
        if not folder.fs.isdir(folder.path):
            raise NoFolder("path-missing", f"folder not found: {folder}")
    if folder.protocol in BY_PREFIX:
        for prefix, group in _groups(sorted((begin, key) for key, begin in begins.items())):
            yield [key for _, key in group], _files(folder, prefix=prefix)
    else:
        # No deeper than the names go: a server on HTTP may list folders in folders without end.
        yield (list(begins), _files(folder, maxdepth=1 + max((b.count("/") for b in begins.values()), default=0)))
    folder.fs.invalidate_cache()  # which would keep whole listings


def _files(folder: Any, **which: Any) -> dict[str, Any]:
    root = folder.path.rstrip("/") + "/"
    with as_user_error("list", folder):
        try:
            infos = folder.fs.find(folder.path, detail=True, **which)
        except FileNotFoundError:
            return {}
    files = ((path, info) for path, info in infos.items() if info.get("type") != "directory")
    return {path[len(root) :]: info for path, info in files if path.startswith(root)}


def _groups(pairs: Sequence[tuple[str, str]], known: int = 0) -> Iterator[tuple[str, Sequence[tuple[str, str]]]]:
    """(common beginning, pairs) of sorted (beginning, key), whose first ``known`` characters are the same."""
    if not pairs:
        return
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(pairs[0][0], pairs[-1][0], strict=False))
    common = "".join(character for character, _ in same)
    if len(pairs) <= GROUP or len(common) > 200 or pairs[0][0] == pairs[-1][0]:
        yield common, pairs
        return
    at = max(known, len(common))
    for _, members in itertools.groupby(pairs, key=lambda pair: pair[0][at : at + 1]):
        yield from _groups(list(members), at + 1)


def _plain(name: str) -> str:
    """The name as a path has it, without ``./`` and double slashes."""
    return str(PurePosixPath(name))
