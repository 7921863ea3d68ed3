"""Sidecars of `posters predict --sidecar`: one file beside each image, with the genres of this image.

- ``poster.txt``: the named genres in one line of UTF-8, separated by ``, ``, the most probable first. Programs for tags
  read this format. It has no escapes, so models with a comma or a line break in the name of a genre are refused.
- ``poster.json``: the named genres in the same order, and the probability of every genre.

The names are checked before the model is loaded. An existing file is replaced only if the user allows it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from shards.dataset.labels import LabelSet
from shards.errors import UserError
from shards.storage.files import atomic_write, place_key
from toolkit.data.sources.image_files import file_id
from toolkit.inference.rows import Rows
from toolkit.prediction.formats import json_text, shortest

SEPARATOR = ", "


def sidecar_paths(images: Sequence[Path], kind: str, overwrite: bool) -> list[Path]:
    """Return the path of each image's sidecar. ``kind`` is the ending without a dot.

    Raises UserError if two images have the same sidecar, if a sidecar would replace an image or a folder, or if a
    sidecar exists and ``overwrite`` is false.
    """
    if folders := [image for image in images if image.is_dir()]:
        raise UserError("option-value", f"{folders[0]} is a folder, not an image; use --directory {folders[0]}")
    paths = [image.with_suffix(f".{kind}") for image in images]
    _refuse_collisions(images, paths)
    own = set(images)
    for image, path in zip(images, paths, strict=True):
        if path in own or path.is_dir():
            what = "an image of this prediction" if path in own else "a folder"
            raise UserError("path-exists", f"the sidecar of {image} cannot be written: {path} is {what}; rename one")
    there = [] if overwrite else [path for path in paths if path.is_symlink() or path.exists()]
    if there:
        more, them = (f", and {len(there) - 1} more", "them") if there[1:] else ("", "it")
        raise UserError("path-exists", f"{there[0]} exists{more}; move {them} away, or use --overwrite")
    return paths


def _refuse_collisions(images: Sequence[Path], paths: Sequence[Path]) -> None:
    """Raise UserError if two different images have the same sidecar."""
    similar: dict[str, dict[Path, Path]] = {}
    for image, path in zip(images, paths, strict=True):
        similar.setdefault(unicodedata.normalize("NFC", str(path)).casefold(), {})[image] = path
    for group in similar.values():
        taken: dict[Path, Path] = {}
        for image, path in group.items() if len(group) > 1 else ():
            # Some file systems do not distinguish A and a. This function tests only the folders of similar names.
            other = taken.setdefault(path.parent / place_key(path.parent)(path.name), image)
            if other != image:
                raise UserError(
                    "option-conflict",
                    f"{other} and {image} would have the same sidecar {path.name}; rename one, or use --out",
                )


def require_plain_names(labels: LabelSet, kind: str) -> None:
    """Raise UserError if the ``txt`` format cannot represent the name of a genre."""
    if kind != "txt":
        return
    for genre in labels.genres:
        if "," in genre or genre.splitlines() != [genre] or genre != genre.strip():
            raise UserError(
                "option-conflict",
                f"--sidecar txt separates genres by commas and has one line, so the genre {genre!r} cannot be written; "
                "use --sidecar json",
            )


def write_sidecars(paths: Sequence[Path], kind: str, rows: Rows) -> int:
    """Write the sidecars of the images that could be decoded, each atomically. Return their number."""
    numbers = shortest(rows.probabilities)
    written = 0
    for row, (path, lines, error) in enumerate(zip(paths, rows.ranked(), rows.errors, strict=True)):
        if error is not None:
            continue
        genres = [line.genre for line in lines if line.named]
        probabilities = dict(zip(rows.labels.genres, map(float, numbers[row]), strict=True))
        image = file_id(Path(rows.ids[row]).name)
        record = {"image": image, "genres": genres, "probabilities": probabilities}
        with atomic_write(path, "w") as stream:
            stream.write((SEPARATOR.join(genres) if kind == "txt" else json_text(record, indent=2)) + "\n")
        written += 1
    return written
