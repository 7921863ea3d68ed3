"""Find the image file of a poster id, and read the bytes of the file. images.py decodes the bytes."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from shards.errors import UserError, one_line, some
from shards.inputs.images import BadImage
from shards.storage.endings import ENDINGS_TEXT, IMAGE_ENDINGS, ending, is_image_name, others_text
from shards.storage.kinds import IMAGES, other_kind
from shards.storage.paths import StoragePath, as_user_error, is_remote
from shards.storage.remote_files import read_whole, remote_files
from shards.storage.retry import of_one_file, retried, unreadable

log = logging.getLogger(__name__)

#: Usual folders of cleaned posters, in the order in which they are tried.
DEFAULT_FOLDERS = ("cleaned_posters_local", "Data/cleaned_posters")

#: Usual endings of image files, in the order of preference. Earlier versions accepted only the endings in _FIRST. Those
#: endings come first, so that a new build of an old shard set uses the same files.
_FIRST, _LATER = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG"), IMAGE_ENDINGS[3:]
USUAL_ENDINGS = (*_FIRST, *_LATER, *map(str.upper, _LATER))


@dataclass
class Walk:
    """Findings of a walk through a folder: files that are not images, links to folders, and unreadable folders."""

    others: Counter[str] = field(default_factory=Counter)  # ending -> number of files that are not images
    unreadable: list[str] = field(default_factory=list)  # one message for each folder that cannot be listed
    links: list[str] = field(default_factory=list)  # relative paths of the links to folders
    follow: bool = False
    """Whether links are followed. A link to a folder above it is left out, because the walk would have no end."""

    def warn(self, folder: StoragePath) -> None:
        """Log a line about files that are not images, a line about links, and lines about unreadable folders."""
        if self.others:
            log.warning("%s: %s", folder, others_text(self.others))
        if self.links:
            log.warning("%s: %s", folder, self.links_text())
        for problem in self.unreadable[:5]:
            log.warning("%s; its contents are left out", problem)
        if len(self.unreadable) > 5:
            log.warning("%d more folders cannot be read; their contents are left out", len(self.unreadable) - 5)

    def links_text(self) -> str:
        """Return a message that names the links to folders, for a walk that does not follow them."""
        remedy = "to use their images, replace the links by the folders"
        return f"links to folders were not followed: {some(sorted(self.links))}; {remedy}"


def walk_images(folder: Path, walk: Walk) -> Iterator[str]:
    """Yield the paths, relative to ``folder``, of all files with an image ending."""
    for _, files in walk_folders(folder, walk):
        yield from filter(is_image_name, files)


def walk_folders(folder: Path, walk: Walk) -> Iterator[tuple[str, list[str]]]:
    """Yield the path and the files of ``folder`` and of each folder below ``folder``.

    All paths are relative to ``folder``. The path of a subfolder ends with a slash. The path of ``folder`` is empty.
    """
    waiting = [""]
    while waiting:
        subfolder = waiting.pop()
        folders, files = list_folder(folder, subfolder, walk)
        yield subfolder, files
        waiting += folders


def list_folder(folder: Path, subfolder: str, walk: Walk) -> tuple[list[str], list[str]]:
    """Return the paths of the folders and of the files in ``subfolder``. Paths of folders end with a slash.

    All paths are relative to ``folder``. ``walk`` collects the errors and counts the files that are not images.
    """
    folders, files = [], []
    try:
        with os.scandir(folder / subfolder) as entries:
            for entry in entries:
                name = subfolder + entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                    continue
                if entry.is_symlink() and not is_image_name(name) and os.path.isdir(entry.path):
                    if not walk.follow or not _is_above(folder / name):
                        walk.links.append(name)
                        folders += [f"{name}/"] if walk.follow else []
                    continue
                files.append(name)
                if not is_image_name(entry.name) and not entry.name.startswith("."):
                    walk.others[ending(entry.name)] += 1
    except OSError as error:
        walk.unreadable.append(f"{folder / subfolder} cannot be read ({error.strerror or one_line(error)})")
    return folders, files


def _is_above(link: Path) -> bool:
    """Return whether a link leads to a folder that contains the link, directly or through other links."""
    above = (Path(os.path.realpath(folder)) for folder in link.parents)
    return any(Path(os.path.realpath(link)) in (folder, *folder.parents) for folder in above)


def image_names(sample_id: str) -> Iterator[str]:
    """Yield the usual file names of an id's poster, relative to the image folder, in the order of preference.

    The names are the id with each of USUAL_ENDINGS, then the id itself if the id has an image ending (``x.jpg``).
    """
    yield from (f"{sample_id}{kind}" for kind in USUAL_ENDINGS)
    if is_image_name(sample_id):
        yield sample_id


def files_of(ids: Collection[str], names: Iterable[str]) -> dict[str, list[str]]:
    """Map each id to its image files in ``names``, in the order of preference. An id without a file is left out.

    Names with USUAL_ENDINGS come first, then names with endings in mixed case (``.Jpg``), then the id itself.
    """
    found: dict[str, list[str]] = {}
    wanted = set(ids)
    for name in names:
        if is_image_name(name):
            for own in (name[: -len(ending(name))], name):
                if own in wanted:
                    found.setdefault(own, []).append(name)
    for own, files in found.items():
        files.sort(key=lambda name, own=own: _rank(own, name))  # type: ignore[misc]
    return found


def _rank(sample_id: str, name: str) -> tuple[int, str]:
    kind, last = name[len(sample_id) :], len(USUAL_ENDINGS)
    return (USUAL_ENDINGS.index(kind) if kind in USUAL_ENDINGS else last + (not kind)), name


def find_image(folder: Path, sample_id: str) -> Path | None:
    """Return the path of an id's poster in a local folder, or None. For many ids, list_posters is faster."""
    for name in image_names(sample_id):
        path = folder / name
        if _is_file(path):
            return path
    # Only a listing of the folder finds endings in mixed case (``.Jpg``).
    parent, own = (folder / sample_id).parent, PurePosixPath(sample_id).name
    names = [name for name in list_folder(parent, "", Walk())[1] if name.startswith(own)]
    files = files_of([own], names).get(own, [])
    return next((parent / name for name in files if _is_file(parent / name)), None)


def _is_file(path: Path) -> bool:
    try:
        return retried(path.is_file, str(path))
    except OSError as error:
        if not of_one_file(error):
            raise unreadable(str(path), error) from None
        return False  # for example, there is no permission to read the folder, or the name is too long


def read_image_file(folder: StoragePath, sample_id: str, name: str | None = None) -> bytes:
    """Return the bytes of a poster. Raises BadImage if the file is missing, empty or not readable.

    ``name`` is the path of the file in the folder. If it is None, the usual names are tried. Errors of a remote store
    are raised unchanged. A disk error that can be temporary is retried. A lasting disk error becomes a UserError.
    """
    path, data = (_read_remote if is_remote(folder) else _read_local)(folder, sample_id, name)
    if not data:
        raise BadImage("zero bytes", path)
    return data


def read_checked(folder: StoragePath, sample_id: str, name: str | None, digest: str, when: str, remedy: str) -> bytes:
    """Call ``read_image_file``. Raises UserError if the file is missing or its SHA-256 is not ``digest``."""
    try:
        data = read_image_file(folder, sample_id, name)
        problem = "" if hashlib.sha256(data).hexdigest() == digest else "its bytes differ"
    except BadImage as error:
        problem = one_line(f"{error.reason} {error.detail}")
    if problem:
        raise UserError("file-changed", f"poster {sample_id} in {folder} changed while {when} ({problem}); {remedy}")
    return data


def _read_local(folder: Path, sample_id: str, name: str | None) -> tuple[str, bytes]:
    path = folder / name if name else find_image(folder, sample_id)
    if path is None:
        raise missing_file(sample_id)
    try:
        return path.name, retried(path.read_bytes, str(path))
    except (FileNotFoundError, IsADirectoryError):
        raise missing_file(sample_id) from None
    except OSError as error:
        if not of_one_file(error):
            raise unreadable(str(path), error) from None
        raise BadImage("unreadable file", one_line(error)) from None


def _read_remote(folder: Any, sample_id: str, name: str | None) -> tuple[str, bytes]:
    for candidate in (name,) if name else image_names(sample_id):
        try:
            path = folder / candidate
            return path.name, read_whole(path)
        except (FileNotFoundError, IsADirectoryError):
            continue
    raise missing_file(sample_id)


def missing_file(sample_id: str) -> BadImage:
    """Return the error for a poster without a file."""
    return BadImage("missing file", f"no {sample_id}{ENDINGS_TEXT}")


def default_image_folder(start: Path) -> Path:
    """Return the first of DEFAULT_FOLDERS that contains images. Raises UserError if none does."""
    for folder in (start / name for name in DEFAULT_FOLDERS):
        if holds_images(folder):
            return folder
    tried = " and ".join(DEFAULT_FOLDERS)
    raise UserError("images-none", f"no images found in {tried} (under {start}); pass the folder with --images DIR")


def require_images(folder: StoragePath) -> None:
    """Raise UserError if the folder is missing or a local folder has no images."""
    with as_user_error("find posters", folder):
        if not folder.is_dir():
            raise no_folder(folder)
        # A remote folder may have a million other files, so it is not searched here. list_posters searches it by id.
        if not is_remote(folder):
            walk = Walk(follow=True)
            if next(walk_images(folder, walk), None) is None:
                raise no_images(folder, walk)


def no_folder(folder: StoragePath) -> UserError:
    """Return the error for a folder of images that does not exist. The path may be a file."""
    return UserError("path-missing", other_kind(folder, IMAGES) or f"image folder not found: {folder}")


def no_images(folder: StoragePath, walk: Walk) -> UserError:
    """Return the error for a folder without images."""
    if wrong := other_kind(folder, IMAGES):
        return UserError("images-none", wrong)
    found = [others_text(walk.others)] if walk.others else []
    found += walk.unreadable[:1] + ([walk.links_text()] if walk.links else [])
    return UserError("images-none", f"no {ENDINGS_TEXT} file in {folder}" + "".join(f"; {text}" for text in found))


def holds_images(folder: StoragePath) -> bool:
    """Return whether the folder or a subfolder contains at least one file with an image ending."""
    names = filter(is_image_name, remote_files(folder)) if is_remote(folder) else walk_images(folder, Walk(follow=True))
    return any(True for _ in names)
