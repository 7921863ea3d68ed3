"""Read genres from a folder: a table beside the images, a JSON or text file per image, or a subfolder per genre.

    FOLDER/metadata.csv, .jsonl or .parquet   table with a column file_name, as Hugging Face writes it
    FOLDER/p1.jpg, FOLDER/p1.json             one JSON object per image, as in MM-IMDb
    FOLDER/p1.jpg, FOLDER/p1.txt              tags, separated by commas or one in each line
    FOLDER/Drama/p1.jpg                       one subfolder per genre

Each of these formats can be in a subfolder for each split: train, val (valid, validation or dev) and test.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from shards.dataset.timm_info import NAME as TIMM_INFO
from shards.errors import UserError, one_line, some
from shards.inputs.image_files import Walk, walk_folders
from shards.storage.endings import is_image_name
from shards.tables.csv_tables import decoded
from shards.tables.json_tables import parsed
from shards.tables.split_names import split_of_folder, split_of_path
from shards.tables.table import Table, TableOptions, cell_text

log = logging.getLogger(__name__)

#: Names of the columns of a table that is made from a folder.
FILE, GENRES, SPLIT = "file", "genres", "split"
#: Names of tables beside images, as Hugging Face expects them.
BESIDE = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
#: Number of JSON files from which the names of the columns are taken.
SAMPLE = 200
#: Largest size of a JSON or text file of one image, in bytes.
MOST = 1 << 24


@dataclass
class _Contents:
    """Relative paths of the files in a folder and its subfolders, in alphabetical order. Hidden files are left out."""

    images: list[str] = field(default_factory=list)
    of_kind: dict[str, list[str]] = field(default_factory=lambda: {".json": [], ".txt": []})
    tables: list[str] = field(default_factory=list)  # files whose names are in BESIDE

    @classmethod
    def of(cls, folder: Path) -> _Contents:
        found, walk = cls(), Walk(follow=True)
        for _, files in walk_folders(folder, walk):
            for name in files:
                path = PurePosixPath(name)
                if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
                    continue  # files of macOS, of notebooks and of other programs
                if path.name == TIMM_INFO:
                    continue  # a file of a shard set
                if path.name in BESIDE:
                    found.tables.append(name)
                elif is_image_name(name):
                    found.images.append(name)
                elif path.suffix.lower() in found.of_kind:
                    found.of_kind[path.suffix.lower()].append(name)
        if walk.links:
            log.info("%s: links to folders are followed: %s", folder, some(sorted(walk.links)))
        for problem in walk.unreadable:
            raise UserError("path-unreadable", problem)
        for names in (found.images, found.tables, *found.of_kind.values()):
            names.sort()
        return found

    def per_image(self, ending: str) -> list[str]:
        """Return the files with an ending that belong to an image. Without images in the folder, return all of them."""
        stems = {str(PurePosixPath(name).with_suffix("")) for name in self.images} | set(self.images)
        files = self.of_kind[ending]
        return [name for name in files if name[: -len(ending)] in stems] if stems else files

    def formats(self) -> list[str]:
        """Return the names of the formats (see TableOptions.metadata_format) that fit the folder."""
        found = [
            name
            for name, ending in (("json-files", ".json"), ("txt-files", ".txt"))
            if len(files := self.per_image(ending)) > 1 and 2 * len(files) >= len(self.images)
        ]
        parts = [PurePosixPath(name).parts for name in self.images]
        if not found and parts and all(len(below) > 1 for below in parts):
            split = all(split_of_folder(below[0]) for below in parts)
            found += ["class-folders"] if not split or all(len(below) > 2 for below in parts) else []
        return found


def folder_table(folder: Path, options: TableOptions) -> tuple[dict[str, Path], Table | None]:
    """Return the tables beside the images, or else the table that is made from the folder.

    The first value maps the subfolder of each table, such as ``train`` or an empty text, to the path of the table.
    Raises UserError if the folder has none of these formats, or several.
    """
    contents, form = _Contents.of(folder), options.metadata_format
    if form == "auto" and contents.tables:
        return _tables_beside(folder, contents), None
    forms = contents.formats() if form == "auto" else [form]
    if len(forms) > 1:
        problem = f"{folder} has several files for each image, which may contain its genres ({', '.join(forms)})"
        raise UserError("table-unreadable", f"{problem}; choose one with --metadata-format")
    if not forms:
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in contents.of_kind.items())
        counts = f"{len(contents.images)} images, {counts}"
        expected = "metadata.csv, a .json or .txt file for each image, or a subfolder for each genre"
        raise UserError(
            "table-unreadable", f"{folder} has no genres ({counts}); expected {expected}, or --metadata TABLE"
        )
    if forms[0] == "class-folders":
        return {}, _class_folders(folder, contents, options)
    ending = ".json" if forms[0] == "json-files" else ".txt"
    if not (names := contents.per_image(ending)):
        raise UserError("table-unreadable", f"{folder} has no {ending} file with the name of an image")
    if (without := len(contents.images) - len(names)) > 0:
        log.warning(
            "%d of %d images in %s have no %s file and are left out", without, len(contents.images), folder, ending
        )
    return {}, (_json_files if ending == ".json" else _txt_files)(folder, names, options)


def _tables_beside(folder: Path, contents: _Contents) -> dict[str, Path]:
    tables = contents.tables
    places = [str(PurePosixPath(name).parent) for name in tables]
    _by_split(folder, [name for name in tables if "/" in name])
    if len(set(places)) < len(places) or ("." in places and len(places) > 1):
        problem = f"{folder} has several tables ({some(tables)})"
        raise UserError("table-unreadable", f"{problem}; choose one with --metadata {folder / tables[0]}")
    if outside := [name for name in contents.images if set(places).isdisjoint(map(str, PurePosixPath(name).parents))]:
        what = "%d images in %s are in a folder without a table and are left out (the first is %s)"
        log.warning(what, len(outside), folder, outside[0])
    return {"" if place == "." else place: folder / name for place, name in zip(places, tables, strict=True)}


def _by_split(folder: Path, names: list[str]) -> bool:
    """Return whether the paths are in folders of splits. Raises UserError if only some of them are."""
    within = [name for name in names if split_of_path(name)]
    if within and len(within) < len(names):
        other = next(name for name in names if not split_of_path(name))
        problem = f"{folder} has folders of splits, such as that of {within[0]}, but {other} is in none of them"
        raise UserError("table-unreadable", f"{problem}; move it, or pass --metadata TABLE")
    return bool(within)


def _class_folders(folder: Path, contents: _Contents, options: TableOptions) -> Table:
    by_split = _by_split(folder, contents.images)
    header, rows = [FILE, GENRES, *([SPLIT] if by_split else [])], []
    mark, names = _separator(options), set[str]()
    for name in contents.images:
        split, rest = split_of_path(name), name
        while by_split and rest and not split_of_folder(rest.partition("/")[0]):
            rest = rest.partition("/")[2]
        rest = rest.partition("/")[2] if by_split else rest
        genre, _, file = rest.partition("/")
        if not file:
            problem = f"{folder / name} is in no subfolder of a genre"
            raise UserError("table-unreadable", f"{problem}; move it to one, or pass --metadata TABLE")
        genres = [genre] if mark is None else genre.split(mark)
        names.update(genres)
        rows.append([name, json.dumps(genres, ensure_ascii=False), *([split] if by_split else [])])
    return Table(
        folder,
        header,
        enumerate(rows, 1),
        "a subfolder for each genre",
        options,
        unit="file",
        by_file=True,
        has_splits=by_split,
        genres=names,
    )


def _separator(options: TableOptions) -> str | None:
    """Return the separator of genres that the user chose. None if the options have none."""
    chosen: str | None = getattr(options, "genre_separator", None)  # GenreOptions has it
    return chosen


def _txt_files(folder: Path, names: list[str], options: TableOptions) -> Table:
    mark = _separator(options) or ","
    by_split, problems = _by_split(folder, names), dict[int, str]()

    def rows() -> Iterator[tuple[int, list[str]]]:
        for number, name in enumerate(names, 1):
            text = ""
            try:
                text = decoded(folder / name, _bytes(folder / name), options.encoding)[0]
            except (OSError, UserError) as error:
                problems[number] = one_line(error)
            tags = mark.join(line.strip().strip(mark) for line in text.splitlines() if line.strip())
            yield number, [name[: -len(".txt")], tags, *([split_of_path(name)] if by_split else [])]

    header, form = [FILE, GENRES, *([SPLIT] if by_split else [])], "a .txt file of tags for each image"
    return Table(
        folder,
        header,
        rows(),
        form,
        options,
        unit="file",
        by_file=True,
        has_splits=by_split,
        separator=mark,
        problems=problems,
    )


def _json_files(folder: Path, names: list[str], options: TableOptions) -> Table:
    by_split, problems = _by_split(folder, names), dict[int, str]()

    def records() -> Iterator[tuple[int, str, Mapping[str, Any]]]:
        for number, name in enumerate(names, 1):
            record: Any = {}
            try:
                record = parsed(decoded(folder / name, _bytes(folder / name), options.encoding)[0])
                if not isinstance(record, dict):
                    record, problems[number] = {}, f"{name} is not a JSON object"
            except (OSError, UserError, ValueError, RecursionError) as error:
                problems[number] = f"{name} cannot be read: {one_line(error)}"
            yield number, name[: -len(".json")], record

    keys: dict[str, None] = {}
    for number, _, record in records():
        keys.update(dict.fromkeys(record))
        if number >= SAMPLE:
            break
    columns = [key for key in keys if key not in (FILE, SPLIT if by_split else FILE)]

    def rows() -> Iterator[tuple[int, list[str]]]:
        for number, name, record in records():
            cells = [cell_text(record.get(key)) for key in columns]
            yield number, [name, *cells, *([split_of_path(name)] if by_split else [])]

    header, form = [FILE, *columns, *([SPLIT] if by_split else [])], "a JSON file for each image"
    return Table(
        folder, header, rows(), form, options, unit="file", by_file=True, has_splits=by_split, problems=problems
    )


def _bytes(path: Path) -> bytes:
    if (size := path.stat().st_size) > MOST:
        raise UserError("table-unreadable", f"{path} has {size} bytes, too many for the genres of one image")
    return path.read_bytes()
