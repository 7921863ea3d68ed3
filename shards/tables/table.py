"""A user's table of posters: a header, rows of texts, and the choice of columns by name or number."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shards.dataset.labels import tidy
from shards.errors import UserError, did_you_mean
from shards.options import option
from shards.storage.paths import StoragePath

#: The names, in lower case, of the column of row numbers that pandas writes by default.
ROW_NUMBERS = ("", "unnamed: 0", "__index_level_0__")
#: Usual names of a column of ids or paths. Names are compared in lower case, without spaces, dashes and underscores.
ID_NAMES = (
    *("id", "posterid", "imageid", "movieid", "imdbid", "tmdbid", "tconst", "filename", "file", "image", "imagepath"),
    *("imagefile", "imagename", "filepath", "path", "img", "imgpath", "poster", "posterpath", "posterfile", "name"),
)
#: Usual names of a column of genres, in lower case. The second group is used if no column has a name of the first.
GENRE_NAMES = ("genre", "genres", "label", "labels", "tag", "tags")
MORE_NAMES = ("category", "categories", "class", "classes", "genre_names", "genre_list", "movie_genre", "listed_in")
#: Forms of metadata, for --metadata-format. The last three are folders.
TEXT_FORMATS = ("csv", "json", "jsonl", "parquet")
FOLDER_FORMATS = ("json-files", "txt-files", "class-folders")

#: What a column is used for → the option that chooses the column.
USES = {"ids": "--id-column", "splits": "--split-column", "groups": "--group-column", "weights": "--weight-column"}


def is_id_name(name: str) -> bool:
    """Return whether a name is usual for a column of ids or paths."""
    return _plain(name) in ID_NAMES


def is_genre_name(name: str, names: Sequence[str] = GENRE_NAMES + MORE_NAMES) -> bool:
    """Return whether a name is one of the usual ``names`` of a column of genres."""
    return tidy(name).lower() in names


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", tidy(name).lower())


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Format, text encoding and column of ids of a table. By default, they are detected."""

    id_column: str | None = None
    """Column of ids or image paths, by name or by number from 0. The default is column 0, or a column with a usual
    name such as id or file_name. Required if column 0 contains row numbers and no column has such a name."""
    metadata_format: str = option("auto", choices=("auto", *TEXT_FORMATS, *FOLDER_FORMATS))
    """Format of the metadata. ``auto`` detects the format. A folder can have a JSON file (``json-files``) or a
    text file of tags (``txt-files``) for each image, or a subfolder of images for each genre (``class-folders``)."""
    encoding: str | None = None
    """Text encoding of a table, such as utf-8, latin-1 or utf-16. By default, it is detected."""
    delimiter: str | None = None
    """Separator of the columns of a CSV. By default, a comma, semicolon, tab or | is detected."""


@dataclass(frozen=True, kw_only=True)
class SampleColumns:
    """Columns of the split, the group and the weight of a poster."""

    split_column: str | None = None
    """Column of splits, by name or by number from 0. Its cells are train, val (valid, validation, dev) or test."""
    group_column: str | None = None
    """Column of groups, by name or by number from 0, such as the film of a poster. Posters with the same cell stay in
    one split."""
    weight_column: str | None = None
    """Column of sample weights, by name or by number from 0. A weight is a number from 0.000001 to 1000000. In the loss
    and in metrics, a poster with the weight 2 counts as much as two posters with the weight 1."""


@dataclass(frozen=True)
class Table:
    """An open table."""

    path: StoragePath
    header: list[str]
    rows: Iterator[tuple[int, list[str]]]
    """(number, cells) of every row that is not empty. A row can have fewer or more cells than the header."""
    form: str
    """Format of the table for a message, such as ``CSV, ';' separated, latin-1``."""
    options: TableOptions = TableOptions()
    delimiter: str = ","
    unit: str = "line"
    """Word for the number of a row in messages: line, record or file."""
    by_file: bool = False
    """Whether the table was made from the files in a folder. Its ids are file names."""
    has_splits: bool = False
    """Whether the last column is the split of each row, which is the name of a subfolder."""
    separator: str | None = None
    """Separator of genres in this format. None if the format has no fixed separator."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Name of a column that cannot be read as text → reason. ``header`` does not have this column."""
    genres: Collection[str] = ()
    """Names that are genres even if they look like a missing value, such as those of subfolders."""
    problems: Mapping[int, str] = field(default_factory=dict)
    """Number of a row that could not be read → reason. It is filled while ``rows`` is read."""

    def column(self, wanted: str, option: str) -> int:
        """Return the position of the only column with name or number ``wanted``. Raises UserError if there is none."""
        names = [name.strip() for name in self.header]
        if names.count(wanted) == 1:
            return names.index(wanted)
        if wanted in self.unread:
            raise self.not_text(wanted, option)
        by = ""
        if wanted in names:
            problem, by = f"several columns {wanted!r};", " by its number"
        elif not wanted.isdecimal():
            problem = f"no column {wanted!r}{did_you_mean(wanted, names) or ';'}"
        elif int(wanted) < len(names):
            return int(wanted)
        else:
            problem = f"no column number {wanted};"
        remedy = f"the columns are {self.listing()}; choose one{by} with {option}"
        raise UserError("table-column", f"{self.path} has {problem} {remedy}")

    def id_column(self) -> int:
        """Return the position of the column of ids.

        --id-column names this column. Without the option, column 0 is used if its name is in ID_NAMES. Otherwise the
        column whose name comes first in ID_NAMES is used, or column 0 if ID_NAMES has none of the names. Raises
        UserError if the table does not have the column of --id-column.
        """
        if self.options.id_column is not None:
            return self.column(self.options.id_column, "--id-column")
        names = [_plain(name) for name in self.header]
        if names[0] in ID_NAMES:
            return 0
        return next((names.index(name) for name in ID_NAMES if names.count(name) == 1), 0)

    def not_text(self, name: str, options: str = "--id-column and --genre-column") -> UserError:
        """Return the error for a column in ``unread``."""
        remedy = f"write it as text, or choose another column with {options}"
        return UserError("table-column", f"{self.path}: column {name!r} {self.unread[name]}; {remedy}")

    def listing(self) -> str:
        """Return the numbers and names of all columns, for a message."""
        return ", ".join(self.name(position) for position in range(len(self.header)))

    def name(self, position: int) -> str:
        """Return the number and name of a column, for a message: ``3 'genre'``."""
        return f"{position} {self.header[position].strip()[:60]!r}"

    def refuse_row_numbers(self, position: int, ids: Sequence[str]) -> None:
        """Raise UserError if the default column of ids contains the row numbers that pandas writes."""
        if tidy(self.header[position]).lower() in ROW_NUMBERS and all(re.fullmatch(r"\d+(\.0)?", i) for i in ids):
            what = "has no name and contains numbers, like the row numbers that pandas writes"
            remedy = f"choose the column of ids with --id-column (--id-column {position} if these are the ids)"
            message = f"column {self.name(position)} {what}; {remedy}. The columns are {self.listing()}"
            raise UserError("table-column", f"{self.path}: {message}")


def record_table(
    path: StoragePath,
    records: Sequence[Mapping[str, Any]],
    form: str,
    options: TableOptions,
    numbers: Iterable[int] | None = None,
    *,
    names: Sequence[str] | None = None,
    unit: str = "record",
) -> Table:
    """Return a table of records. ``names`` are the columns (None: all keys, in the order of their first use)."""
    header = list(names) if names is not None else list(dict.fromkeys(key for record in records for key in record))
    if not header:
        raise UserError("table-unreadable", f'{path} has no columns: records such as {{"id": "p1"}} are needed')
    rows = ([cell_text(record.get(name)) for name in header] for record in records)
    return Table(path, header, zip(numbers or range(1, len(records) + 1), rows, strict=True), form, options, unit=unit)


def cell_text(value: Any) -> str:
    """Return a value as the text of a CSV cell. A missing value becomes an empty text, and a list becomes JSON."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def refuse_unused(path: StoragePath, form: str, **given: str | None) -> None:
    """Raise UserError if an option was given that has no meaning for this format."""
    for name, value in given.items():
        if value is not None:
            raise UserError(
                "option-conflict", f"{path} is read as {form}, for which --{name} has no meaning; leave the option out"
            )
