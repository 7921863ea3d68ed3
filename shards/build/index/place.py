"""Decide where `posters shards index` writes the set: beside the tars, or in the folder of --out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shards.build.index.tar_places import Place, is_at_url, root_of
from shards.dataset.index import list_tars
from shards.dataset.manifest import NAME as MANIFEST
from shards.dataset.manifest import Manifest
from shards.dataset.tars_elsewhere import place_problem, same_place, text_of
from shards.errors import UserError, some, without_secrets
from shards.storage.files import names_in
from shards.storage.kinds import MODEL, RUN, kind_of
from shards.storage.paths import StoragePath, is_remote
from shards.tables.split_names import SPLIT_NAMES


@dataclass(frozen=True)
class PlaceOfSet:
    """Where the tars are, and where the other files of the set are written."""

    root: StoragePath
    folder: Path
    tars: str | None
    """The field ``tars`` of the manifest. None if the set is written beside its tars."""

    def earlier_set(self) -> Manifest | None:
        """Return the manifest of an earlier run. None if there is none. Raises UserError for a set of other tars."""
        if not (self.folder / MANIFEST).exists():
            return None
        before = Manifest.read(self.folder)
        if self.tars is None and before.tars is not None:
            raise _other_tars(self.folder, f"in {before.tars}", f"index {before.tars} with --out {self.folder}")
        if self.tars is not None and (before.tars is None or not same_place(before.tars, self.tars)):
            where = f"in {before.tars}" if before.tars else "in the folder itself"
            raise _other_tars(self.folder, where, "choose another --out, or delete its manifest.json")
        return before

    @property
    def has_secrets(self) -> bool:
        """Whether the URL of the tars has a user, a password or a query. They are not in ``tars``."""
        options = self.root.storage_options if is_remote(self.root) else {}  # type: ignore[attr-defined]  # an UPath
        return not options.keys().isdisjoint(("query", "headers"))

    def require_all(self, before: Manifest, names: Iterable[str]) -> None:
        """Raise UserError if the earlier set has a tar that is not one of ``names``, and would be dropped."""
        if others := sorted({shard.name for shard in before.shards} - set(names)):
            what = f"{self.folder} is a shard set that also has {some(others, 2)}"
            raise UserError("path-exists", f"{what}; name all its tars, choose another --out, or delete its {MANIFEST}")


def place_of_set(place: Place, out: StoragePath | None) -> PlaceOfSet:
    """Return where to write the set. Nothing is written.

    Raises UserError if ``out`` is None and the tars are at a URL or in a read-only folder, or if ``out`` is not usable.
    """
    if out is None and is_at_url(place):
        shown = without_secrets(str(place[0] if isinstance(place, tuple) else place))
        remedy = "name a folder for the indexes and the manifest with --out"
        raise UserError("option-missing", f"{shown} is a URL: {remedy}")
    root = root_of(place)
    if out is not None and is_remote(out):
        raise UserError("url-refused", f"{out}: the indexes and the manifest need a local folder as --out")
    if out is None or (not is_remote(root) and same_place(text_of(root), text_of(out))):
        found = PlaceOfSet(root, _writable(root), None)
        found.earlier_set()
        return found
    kind = kind_of(out)
    if kind in (MODEL, RUN):
        raise UserError("path-exists", f"{out} is {kind}, so no shard set is written there: choose another --out")
    found = PlaceOfSet(root, out, text_of(root))
    if problem := place_problem(found.tars):
        raise UserError("path-name", f"a set cannot have its tars elsewhere, because their place {problem}")
    if found.earlier_set() is None and out.is_dir() and (tars := list_tars(out)):
        what = f"{out} contains other tars, such as {tars[0].name}"
        raise UserError("path-exists", f"{what}; choose a new folder as --out")
    return found


def _writable(root: Path) -> Path:
    """Return the folder of tars. Raises UserError if no index can be written there."""
    splits = [root / name for name in sorted(names_in(root)) if name.lower() in SPLIT_NAMES]
    for folder in (root, *splits):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            remedy = "name another folder for the indexes and the manifest with --out"
            raise UserError("path-unwritable", f"cannot write indexes beside the tars in {folder}; {remedy}")
    return root


def _other_tars(folder: Path, where: str, remedy: str) -> UserError:
    return UserError("path-exists", f"{folder} is a shard set whose tars are {where}; {remedy}")
