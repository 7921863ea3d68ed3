"""Find the tars that `posters shards index` reads: in a folder, at a URL, by a pattern with braces, or in a list.

    data/set, s3://bucket/set                      all tars in the folder and in its subfolders of splits
    https://host/set/train-{000000..000147}.tar    the tars that WebDataset reads with this pattern
    data/set/a.tar data/set/b.tar                  these tars, for example a pattern that the shell has expanded
    _info.json in the folder or at the URL         timm's list of the tars of each split

The root is the folder that contains all tars. A tar's name is its path below the root, such as ``train/0.tar``.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from braceexpand import braceexpand

from shards.dataset.index import list_tars
from shards.dataset.manifest import is_shard_name
from shards.dataset.timm_info import MADE_BY
from shards.dataset.timm_info import NAME as INFO
from shards.errors import UserError, printable, some, without_secrets
from shards.inputs.rejections import Rejection, first_reasons
from shards.schema import parse_as
from shards.storage.files import PARTIAL, names_in, small_bytes
from shards.storage.paths import StoragePath, as_user_error, is_remote, is_url, storage_path
from shards.storage.retrying_read import FIRST_RETRY_SECONDS, RetryBudget, facts_in, read_facts, read_small
from shards.tables.split_names import SPLIT_NAMES

NO_TAR, NO_SPLIT, NO_ENTRY = "not a .tar", "in another folder", "not in _info.json"
"""Reasons in rejected.csv for the rejection of a whole file."""
MAX_TAR_NAME = 240
"""Largest length of a tar's file name, in bytes. Its index file has a longer name, which must also be valid."""
MAX_TARS = 1_000_000
"""Largest number of tars of a pattern."""
ASKED = 16
"""Number of remote tars whose sizes are asked for at the same time."""
SPLIT = re.compile(r"\w[\w.-]*", re.ASCII)
LIKE_TARS = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)

Place: TypeAlias = str | StoragePath | tuple[str, ...]
"""A folder, a URL of a folder, a pattern of tars, or the paths of several tars."""


@dataclass(frozen=True)
class TarFile:
    """A tar to index. Two versions of a file differ in ``size`` or ``version``."""

    place: StoragePath
    name: str
    split: str | None = None
    """Split of the tar in _info.json. None if there is no _info.json."""
    size: int = -1
    version: str = ""
    """Time of change, ETag or another text that changes with the file. Empty if it is unknown."""


@dataclass
class Tars:
    """The tars at a place, and the files there that are left out."""

    root: StoragePath
    files: list[TarFile]
    rejected: list[Rejection] = field(default_factory=list)


class _Split(msgspec.Struct):
    filenames: list[str]


class _Info(msgspec.Struct):
    splits: dict[str, _Split]
    made_by: str = ""


def parse_place(words: Sequence[str]) -> Place:
    """Return the place that the words of a command line name. Raises UserError for an empty word."""
    if not all(words):
        raise UserError("option-value", "the place of the tars is an empty text: name a folder, a URL or tars")
    return words[0] if len(words) == 1 else tuple(words)


def is_pattern(place: Place) -> bool:
    """Return whether a place names tars, with or without braces, and not a folder.

    >>> is_pattern("https://host/set/{0..9}.tar"), is_pattern("s3://bucket/set")
    (True, False)
    """
    if isinstance(place, tuple):
        return True
    path = _without_query(str(place))[0]
    return ("{" in path or path.endswith(".tar")) and (is_url(path) or not Path(path).is_dir())


def is_at_url(place: Place) -> bool:
    """Return whether a place is a URL, or a pattern or path of tars at a URL."""
    return any(map(is_url, map(str, place if isinstance(place, tuple) else (place,))))


def root_of(place: Place) -> StoragePath:
    """Return the folder that contains the tars of a place. Raises UserError for a pattern that cannot be expanded."""
    return _expanded(place)[0] if isinstance(place, tuple) or is_pattern(place) else storage_path(place)


def find_tars(place: Place) -> Tars:
    """Return the tars of a place. No tar is opened.

    Raises UserError if there is no tar, if a named tar is missing, or if the name of a tar is not safe.
    """
    if isinstance(place, tuple) or is_pattern(place):
        root, names = _expanded(place)
        tars = Tars(root, [TarFile(root / name, name) for name in names])
    else:
        tars = _in_folder(storage_path(place))
    for tar in tars.files:
        if not is_safe(tar.name):
            why = "is too long or has unsafe characters: rename it"
            raise UserError("path-name", f"the name of {without_secrets(str(tar.place))!r} {why}")
    tars.files = _with_versions(tars.files)
    return tars


def is_safe(name: str) -> bool:
    """Return whether a tar's name can be the name of a shard and of an index file, on every operating system."""
    file = name.rpartition("/")[2]
    unsafe = printable(name) != name or set(name) & set("\n\t\\:") or len(file.encode()) > MAX_TAR_NAME
    return not unsafe and is_shard_name(name)


def _without_query(text: str) -> tuple[str, str]:
    """Split an HTTP URL into the part before its query, and the query with its question mark."""
    path, mark, query = text.partition("?") if text.lower().startswith(("http://", "https://")) else (text, "", "")
    return path, mark + query


def _expanded(place: Place) -> tuple[StoragePath, list[str]]:
    """Return the root and the names of the tars of a pattern."""
    words = [_without_query(str(word)) for word in (place if isinstance(place, tuple) else (place,))]
    shown = some([without_secrets(path) for path, _ in words], 1)
    try:
        paths = list(islice((path for word, _ in words for path in _paths(word)), MAX_TARS + 1))
    except ValueError as error:
        raise UserError("option-value", f"{shown} is not a pattern of tars: {without_secrets(str(error))}") from None
    if len(paths) > MAX_TARS:
        raise UserError("option-value", f"{shown} names over {MAX_TARS} tars; name fewer tars")
    if others := [path for path in paths if not path.endswith(".tar")]:
        what = f"{shown} must name .tar files, but one of the names is {without_secrets(others[0])}"
        raise UserError("option-value", f"{what}; name one folder, or tars such as train-{{000000..000147}}.tar")
    path, count = Counter(paths).most_common(1)[0]
    if count > 1:
        raise UserError("option-value", f"{shown} names {without_secrets(path)} {count} times; name each tar once")
    split = [_folders(path) for path in paths]
    common = split[0][:-1]
    for parts in split:
        while parts[: len(common)] != common:
            common = common[:-1]
    remote, queries = any(map(is_url, paths)), {query for _, query in words}
    if max(map(len, split)) - len(common) > 2 or (remote and len(common) < 2) or len(queries) > 1:
        what = f"the tars of {shown} are not in one folder or in subfolders of one folder"
        raise UserError("option-value", f"{what}; index the tars of each folder on their own")
    root = storage_path("/".join(common) + queries.pop()) if remote else Path(*common)
    return root, ["/".join(parts[len(common) :]) for parts in split]


def _paths(word: str) -> Iterable[str]:
    """Return the paths of a pattern. A pattern that is also the name of a file means this file."""
    return [word] if not is_url(word) and Path(word).is_file() else braceexpand(word, escape=False)


def _folders(path: str) -> list[str]:
    """Split a path at its slashes. The first part of a URL is its protocol and host."""
    if not is_url(path):
        return list(Path(path).parts)
    protocol, _, rest = path.partition("://")
    host, *parts = rest.split("/")
    return [f"{protocol}:/", host, *(part for part in parts if part)]


def _in_folder(root: StoragePath) -> Tars:
    if not is_remote(root) and not root.is_dir():
        raise UserError("path-missing", f"no such folder: {root}")
    is_web = is_remote(root) and root.protocol in ("http", "https")  # type: ignore[attr-defined]  # an UPath
    info = _read_info(root, is_web)
    if is_web:
        if info is None:
            base = str(root).rstrip("/")
            remedy = f"name the tars, such as '{base}/train-{{000000..000147}}.tar'"
            raise UserError("set-missing", f"{root} cannot be listed, and has no {INFO} with its tars: {remedy}")
        return Tars(root, [TarFile(root / name, name, split) for name, split in info.items()])
    tars = _listed_at_url(root) if is_remote(root) else _listed(root)
    if info is not None:
        listed = {tar.name: tar for tar in tars.files}
        unknown = [name for name in listed if name not in info]
        tars.rejected = [rejection for rejection in tars.rejected if rejection.id not in info]
        tars.rejected += [Rejection(printable(name), NO_ENTRY, f"add it to {INFO}") for name in unknown]
        found = [(listed.get(name, TarFile(root / name, name)), split) for name, split in info.items()]
        tars.files = [replace(tar, split=split) for tar, split in found]
    if not tars.files:
        why = f": {first_reasons(tars.rejected)}" if tars.rejected else ""
        raise UserError("set-missing", f"no .tar file in {root}{why}")
    return tars


def _read_info(root: StoragePath, is_web: bool) -> dict[str, str] | None:
    """Return the split of each tar in _info.json. None if there is no _info.json. Raises UserError if it is not valid.

    A list that this toolkit wrote is used only on a web server (``is_web``). Elsewhere, the tars and the options can
    have changed since then.
    """
    path = root / INFO
    if is_remote(root):
        data = read_small(path, RetryBudget(FIRST_RETRY_SECONDS))
    else:
        data = small_bytes(path) if path.is_file() else None
    if data is None:
        return None
    remedy = "correct it, or name the tars with braces, such as train-{000000..000147}.tar"
    info = parse_as(data, _Info, path, "list of tars", remedy)
    if info.made_by == MADE_BY["made_by"] and not is_web:
        return None
    found: dict[str, str] = {}
    for split, files in info.splits.items():
        name = SPLIT_NAMES.get(split.lower(), split)
        for file in files.filenames:
            problem = "" if is_safe(file) else "is not a plain name of a .tar file"
            problem = "is named twice" if file in found else problem
            if not problem and not SPLIT.fullmatch(name):
                problem = f"has a split with an unsafe name, {printable(name)[:100]!r}"
            if problem:
                raise UserError("path-unreadable", f"{path}: the tar {printable(file)[:100]!r} {problem}; {remedy}")
            found[file] = name
    if not found:
        raise UserError("path-unreadable", f"{path} names no tar; {remedy}")
    return found


def _listed(folder: Path) -> Tars:
    """Return the tars in a folder and in its subfolders of splits, and rejections of files such as .tar.gz."""
    below = sorted(path for path in folder.iterdir() if path.name.lower() in SPLIT_NAMES and path.is_dir())
    tars = Tars(folder, [])
    for place in (folder, *below):
        here = list_tars(place)
        tars.files += [TarFile(tar, tar.relative_to(folder).as_posix()) for tar in here]
        tars.rejected += _others(names_in(place), {tar.name for tar in here})
    for path in sorted(folder.rglob("*.tar")):
        if path.parent not in (folder, *below):
            tars.rejected.append(_in_another_folder(path.relative_to(folder).as_posix()))
    return tars


def _listed_at_url(root: Any) -> Tars:
    """Return the same as ``_listed`` for a URL, with the sizes and versions of the tars. Needs only one listing."""
    found: dict[str, Any] = {}
    root.fs.invalidate_cache()
    with as_user_error("list", root), contextlib.suppress(FileNotFoundError):
        found = root.fs.find(root.path, detail=True)
    own, tars = f"{root.path.rstrip('/')}/", Tars(root, [])
    entries = {path[len(own) :]: info for path, info in found.items() if path.startswith(own)}
    folders = sorted({name.partition("/")[0] for name in entries if name.count("/") == 1})
    places = ["", *(f"{folder}/" for folder in folders if folder.lower() in SPLIT_NAMES)]
    for place in places:
        names = {name[len(place) :] for name in entries if name.rpartition("/")[0] == place[:-1]}
        here = sorted(name for name in names if name.endswith(".tar") and PARTIAL not in name)
        for name in (f"{place}{file}" for file in here):
            size, version = facts_in(entries[name])
            tars.files.append(TarFile(root / name, name, None, -1 if size is None else size, version))
        tars.rejected += _others(names, set(here))
    elsewhere = [n for n in entries if n.endswith(".tar") and f"{n.rpartition('/')[0]}/".lstrip("/") not in places]
    tars.rejected += map(_in_another_folder, sorted(elsewhere))
    return tars


def _others(names: Iterable[str], tars: set[str]) -> list[Rejection]:
    remedy = "decompress it, or rename it to end with .tar"
    others = sorted(name for name in names if LIKE_TARS.search(name) and PARTIAL not in name and name not in tars)
    return [Rejection(printable(name), NO_TAR, remedy) for name in others]


def _in_another_folder(name: str) -> Rejection:
    return Rejection(printable(name), NO_SPLIT, "move it to the folder, or to its train, val or test")


def _with_versions(tars: Sequence[TarFile]) -> list[TarFile]:
    """Fill in the size and the version of each tar. Raises UserError if a tar is missing."""
    with ThreadPoolExecutor(ASKED, thread_name_prefix="sizes") as pool:
        found = list(pool.map(_with_version, tars))
    missing = [without_secrets(str(tar.place)) for tar, known in zip(tars, found, strict=True) if known is None]
    if missing:
        what = f"{len(missing)} of {len(tars)} named tars are missing" if len(tars) > 1 else "the tar is missing"
        wild = any(character in name for name in missing for character in "*?")
        remedy = "use braces instead of * and ?, or name the folder" if wild else "copy them again, or name other tars"
        raise UserError("path-missing", f"{what}: {some(missing, 3)}; {remedy}")
    return [known for known in found if known is not None]


def _with_version(tar: TarFile) -> TarFile | None:
    """Return the tar with its size and version. None if it is missing."""
    if tar.size >= 0:
        return tar
    if is_remote(tar.place):
        found = read_facts(tar.place, RetryBudget(FIRST_RETRY_SECONDS))
        return None if found is None else replace(tar, size=found[0], version=found[1])
    try:
        facts = tar.place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return replace(tar, size=facts.st_size, version=str(facts.st_mtime_ns))
