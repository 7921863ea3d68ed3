"""Turn the ids or image paths of a table into sample ids. A sample id is a path below the image folder, without ending.

Tables of other programs have file names, absolute paths of another machine, Windows paths, or numbers such as 66773.0.
All rows of a table are changed by the same rules, so that different ids stay different.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from shards.storage.endings import ending, is_image_name
from shards.storage.paths import StoragePath

WINDOWS_DRIVE = re.compile(r"[A-Za-z]:/")
#: A whole number that was written as a decimal. pandas does so if an id of the column is missing.
DECIMAL = re.compile(r"\d+\.0+")

#: The query at the end of a URL, such as ``?width=500``. The URL has one slash after its scheme (see _plain).
QUERY = re.compile(r"(https?:/[^?#]*)[?#].*")


@dataclass
class SampleIds:
    """Sample ids in the order of the table's rows, and what was changed."""

    ids: list[str]
    paths: list[str]
    """Path of each image in the table, below the image folder. It can differ from the id."""
    changes: list[str] = field(default_factory=list)
    """One text for each rule that changed ids."""


def sample_ids(written: Sequence[str], images: StoragePath | None = None, *, by_file: bool = False) -> SampleIds:
    """Return the sample ids of the texts in a column of ids.

    written: the texts, one per row. images: the image folder, to which absolute paths can belong, or None.
    by_file: whether ids are the file names at the end of the paths, unless two file names are equal.
    An absolute path becomes a path below the image folder. If the paths are not below this folder, they become paths
    below their own common folder. Image endings, the common folder of file paths and the queries of URLs are removed
    from ids, unless two ids became equal.
    """
    out = SampleIds([], [])
    ids = [text.strip() for text in written]
    composed = [unicodedata.normalize("NFC", text) for text in ids]
    ids = composed if len(set(composed)) == len(set(ids)) else ids
    if any("\\" in text for text in ids) and not any("/" in text for text in ids):
        ids = [text.replace("\\", "/") for text in ids]
    if any(map(DECIMAL.fullmatch, ids)) and all(re.fullmatch(r"(\d+(\.0+)?)?", text) for text in ids):
        out.changes.append(f"decimals such as {next(filter(DECIMAL.fullmatch, ids))!r} are read as whole numbers")
        out.ids = [text.partition(".")[0] for text in ids]
        out.paths = ids  # earlier versions of `posters fetch` wrote files such as 66773.0.jpg
        return out
    ids = _below_root(ids, images, out.changes)
    out.paths = [_plain(text) for text in ids]
    names = [QUERY.sub(r"\1", path) for path in out.paths]
    names = names if len(set(names)) == len(set(out.paths)) else out.paths
    out.ids = _shortened(_file_names(names) if by_file else names, out.changes)
    return out


def _below_root(ids: list[str], images: StoragePath | None, changes: list[str]) -> list[str]:
    """Make absolute paths relative. If some paths are in the image folder or relative, all others stay unchanged."""
    if not any(map(_is_absolute, ids)):
        return ids
    if isinstance(images, Path):
        roots = {images.as_posix(), images.absolute().as_posix(), images.resolve().as_posix()}
        roots = {root.rstrip("/") + "/" for root in roots if root.startswith("/")}
        below = [next((text[len(root) :] for root in roots if text.startswith(root)), text) for text in ids]
        if below != ids:
            changes.append(f"absolute paths become paths below {images}")
        ids = below
    absolute = [text for text in ids if text]
    if not all(map(_is_absolute, absolute)):
        return ids
    root = _common_folder(absolute)
    changes.append(f"absolute paths become paths below {root}, their common folder")
    return [text[len(root) :].lstrip("/") for text in ids]


def _is_absolute(text: str) -> bool:
    return text.startswith("/") or WINDOWS_DRIVE.match(text) is not None


def _common_folder(paths: Sequence[str]) -> str:
    """Return the longest folder in which all paths lie, with a slash at its end. Empty if there is none."""
    folders = [path.split("/")[:-1] for path in paths]
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False))
    return "".join(f"{names[0]}/" for names in shared)


def _plain(text: str) -> str:
    """Return a path without ``./`` and double slashes. Other texts stay unchanged, so that a message can show them."""
    odd = "//" in text or "./" in text or text.endswith(("/", "/."))
    return str(PurePosixPath(text)) if odd and not text.startswith("/") else text


def _shortened(paths: list[str], changes: list[str]) -> list[str]:
    """Remove the common folder and the endings of file paths, unless two ids became equal."""
    files = [path for path in paths if is_image_name(path)]
    if not files:
        return paths
    root = _common_folder(paths) if len(files) == len([path for path in paths if path]) else ""
    root = "" if root == "/" or ".." in root else root
    ids = [path[len(root) :] for path in paths]
    ids = [text[: -len(ending(text))] if is_image_name(text) else text for text in ids]
    if len(set(ids)) < len(set(paths)):
        changes.append(
            f"endings of file names such as {files[0]!r} stay in the ids, because two ids differ in nothing else"
        )
        return paths
    changes.append(f"ids are file names without {f'{root!r} and ' if root else ''}the ending, such as {ids[0]!r}")
    return ids


def _file_names(paths: list[str]) -> list[str]:
    """Return the file names at the end of the paths, or the paths if two file names differ in nothing else."""
    files = [path.rpartition("/")[2] for path in paths]
    same = len({name.removesuffix(ending(name)) for name in files}) == len(set(paths))
    return files if same else paths
