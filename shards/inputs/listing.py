"""Find the image files of many ids. Listing a folder needs fewer requests than a test of each possible file name.

The listing of a whole remote folder can be too large for memory. So the ids are grouped by common prefixes of their
names, and only one prefix is listed at a time. A local folder is walked through once.
"""

from __future__ import annotations

import itertools
import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shards.errors import UserError, some
from shards.inputs.image_files import Walk, files_of, list_folder, walk_folders, walk_images
from shards.storage.endings import ending, is_image_name
from shards.storage.paths import StoragePath, as_user_error, is_remote

log = logging.getLogger(__name__)

#: URL schemes of stores that can list by prefix. Folders in other stores are listed once as a whole.
BY_PREFIX = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl")
#: Largest number of ids per listing. Stores return about this number of files in one response.
GROUP = 1000
#: A value with one of these keys changes if the content of a file changes. The first key that a store has is used.
VERSION_KEYS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "updated", "last_modified", "mtime", "created")


@dataclass(frozen=True, slots=True)
class Listed:
    """The image file of a poster."""

    name: str  # path relative to the folder
    state: str = ""  # size and version of a remote file; they change if its content changes


def list_posters(
    folder: StoragePath, ids: Iterable[str], quiet: bool = False, paths: Iterable[str] = ()
) -> dict[str, Listed]:
    """Return id → image file. Ids without a file are left out. Raises UserError if the folder cannot be listed.

    paths: other paths that the caller reads. The log does not name the links to folders on these paths.

    Logs ids that have several files. In a local folder, also logs files that are not images, and unreadable
    subfolders. If ``quiet`` is true, nothing is logged.
    """
    groups: Iterable[tuple[Sequence[str], Mapping[str, Any]]]
    if is_remote(folder):
        # With a dot at the end, the prefix of "p1" does not match "p10.jpg". An id such as "p1.jpg" needs no dot.
        groups = _groups_with_files(folder, {i: _plain(i) if is_image_name(i) else f"{_plain(i)}." for i in ids})
    else:
        groups = _local_posters(folder, ids, quiet, paths)
    found, several = {}, []
    for members, files in groups:
        # Ids may have ./ and double slashes. So two ids may belong to one file.
        plain = {sample_id: _plain(sample_id) for sample_id in members}
        chosen = files_of(set(plain.values()), files)
        for sample_id, name in plain.items():
            if names := chosen.get(name):
                info = files[names[0]]
                version = next((info[key] for key in VERSION_KEYS if info.get(key)), "") if info else ""
                found[sample_id] = Listed(names[0], f"{info.get('size')} {version}" if info else "")
                others = [other for other in names[1:] if other != name]
                several += [f"{names[0]} (not {', '.join(others)})"] if others else []
    if several and not quiet:
        shown = some(several, 3, "; ")
        log.warning("%d posters have several files, of which one is used: %s", len(several), shown)
    return found


def find_posters(
    folder: StoragePath, ids: Sequence[str], paths: Mapping[str, str], quiet: bool = False
) -> dict[str, Listed]:
    """Return id → image file, as list_posters does. Also look for ids that list_posters does not find.

    paths: id → path of its image in the table. Ids that are equal to their path are left out. In a local folder, this
    function also looks for an id in all subfolders, in each Unicode form. An id with files in several subfolders is
    left out and logged.
    """
    found = list_posters(folder, ids, quiet, paths.values())
    written = {paths[sample_id]: sample_id for sample_id in ids if sample_id not in found and sample_id in paths}
    if written:
        found |= {written[path]: file for path, file in list_posters(folder, written, quiet=True).items()}
    missing = [sample_id for sample_id in ids if sample_id not in found]
    if missing and isinstance(folder, Path):
        found |= _in_subfolders(folder, missing, quiet)
    return found


def _in_subfolders(folder: Path, ids: Sequence[str], quiet: bool) -> dict[str, Listed]:
    wanted = {unicodedata.normalize("NFC", sample_id): sample_id for sample_id in ids}
    by_place: dict[str, dict[str, list[str]]] = {}  # id -> subfolder -> files
    for name in walk_images(folder, Walk()):
        path = unicodedata.normalize("NFC", name)
        for own in dict.fromkeys((path, path[: -len(ending(path))])):
            # The whole path first: it decides between files of the same name.
            fits = next((part for part in (own, own.rpartition("/")[2]) if part in wanted), None)
            if fits is not None:
                by_place.setdefault(wanted[fits], {}).setdefault(name.rpartition("/")[0], []).append(name)
    found = {
        sample_id: Listed(files_of([files[0][: -len(ending(files[0]))]], files).popitem()[1][0])
        for sample_id, places in by_place.items()
        if len(places) == 1 and (files := next(iter(places.values())))
    }
    below = [f"{sample_id} is {file.name}" for sample_id, file in found.items() if "/" in file.name]
    if below and not quiet:
        log.info("%d posters are in subfolders of %s, such as: %s", len(below), folder, below[0])
    several = [f"{i} ({some(sorted(places), 2)})" for i, places in by_place.items() if len(places) > 1]
    if several and not quiet:
        remedy = "write the path of the image into the column of ids"
        log.warning("%d ids have files in several subfolders: %s; %s", len(several), some(several, 3), remedy)
    return found


def _local_posters(
    folder: Path, ids: Iterable[str], quiet: bool, paths: Iterable[str]
) -> Iterator[tuple[Sequence[str], Mapping[str, Any]]]:
    """Yield (ids, files) of each subfolder with which an id begins. The keys of ``files`` are paths."""
    by_folder: dict[str, list[str]] = {}
    for sample_id in ids:
        by_folder.setdefault(_plain(sample_id).rpartition("/")[0], []).append(sample_id)
    walk = Walk()
    for subfolder, files in walk_folders(folder, walk):
        if members := by_folder.pop(subfolder.rstrip("/"), None):
            yield members, dict.fromkeys(files)
    for subfolder, members in by_folder.items():
        if os.path.isdir(folder / subfolder):  # the path has a link to a folder, which walk_folders does not follow
            yield members, dict.fromkeys(list_folder(folder, f"{subfolder}/", walk)[1])
    if not quiet:
        used = {*by_folder, *(path.rpartition("/")[0] for path in paths)}
        walk.links = [link for link in walk.links if not any(f"{name}/".startswith(f"{link}/") for name in used)]
        walk.warn(folder)


def list_sizes(folder: StoragePath, names: Iterable[str]) -> dict[str, int]:
    """Return name → size in bytes of the remote files that exist. Empty if the folder does not exist."""
    found = {}
    try:
        for members, files in _groups_with_files(folder, {name: _plain(name) for name in names}):
            here = ((name, files.get(_plain(name))) for name in members)
            found.update({name: int(info["size"] or 0) for name, info in here if info is not None})
    except NoFolder:
        return {}
    return found


class NoFolder(UserError):
    """There is no folder at a URL."""


def _groups_with_files(folder: Any, begins: Mapping[str, str]) -> Iterator[tuple[Sequence[str], dict[str, Any]]]:
    """Yield (keys, files) for groups of the keys. ``begins`` maps each key to the prefix of its file names.

    ``files`` maps relative paths to file information from the store. All paths with these prefixes are included.
    """
    with as_user_error("list", folder):
        folder.fs.invalidate_cache()
        if not folder.fs.isdir(folder.path):
            raise NoFolder("path-missing", f"folder not found: {folder}")
    if folder.protocol in BY_PREFIX:
        for prefix, group in _groups(sorted((begin, key) for key, begin in begins.items())):
            yield [key for _, key in group], _files(folder, prefix=prefix)
    else:
        # The depth is limited because an HTTP server may list nested folders without end.
        yield (list(begins), _files(folder, maxdepth=1 + max((b.count("/") for b in begins.values()), default=0)))
    folder.fs.invalidate_cache()  # free the memory of its listings


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
    """Group sorted (prefix, key) pairs. Yield (common prefix, pairs). ``known``: number of equal first letters."""
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
    """Return the name without ``./`` and double slashes."""
    return str(PurePosixPath(name))
