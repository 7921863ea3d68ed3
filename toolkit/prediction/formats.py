"""Files of predictions: one per part, in Parquet, CSV or JSON Lines, each whole or absent.

Columns: id; genres (those at or over their thresholds, in the model's order); one float32 column of calibrated
probabilities per genre, under the genre's name, because that is what one filters by (``df[df.Drama > 0.5]``,
``SELECT id FROM 'PRED/*.parquet' WHERE Drama > 0.5``); error (null, or why there is no prediction); and, if asked for,
embedding (fixed-size list of float32).

What a file was made from and by (its facts) lies in a Parquet file's metadata, key ``poster_toolkit``, and beside
other files as ``NAME.facts.json``, which is written last: a file counts as finished when its facts are there.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.dataset.labels import LabelSet
from shards.errors import UserError, one_line, printable, printable_line
from shards.storage.csv_text import write_exact
from shards.storage.files import atomic_write, names_in, read_json, write_json
from toolkit.decisions.choose import Decisions
from toolkit.inference.scoring import Scored
from toolkit.model_folder.folder import ModelFolder

TableFormat = Literal["parquet", "csv", "jsonl"]
#: Raised whenever a file of before would not have the columns of today.
VERSION = 2
KEY = b"poster_toolkit"
#: Ending of the file of facts beside a file that cannot hold them.
FACTS = ".facts.json"
#: Our own columns. Databases do not tell Error from error.
OWN = ("id", "genres", "error", "embedding")


@dataclass
class Rows:
    """The rows of a part; rows with an error hold no numbers."""

    ids: list[str]
    probabilities: np.ndarray
    """(n, G) calibrated, NaN in rows with an error."""
    named: np.ndarray
    """(n, G) bool."""
    errors: list[str | None]
    embeddings: np.ndarray | None = None
    """(n, F) float32, NaN in rows with an error."""

    @classmethod
    def of(cls, ids: list[str], scored: Scored, decisions: Decisions) -> Rows:
        """The outcome for all of ``ids``, whose samples are numbered as they stand there."""

        def spread(values: np.ndarray) -> np.ndarray:
            full = np.full((len(ids), values.shape[1]), np.nan, values.dtype)
            full[scored.indices] = values
            return full

        probabilities = spread(decisions.probabilities(scored.logits))
        return cls(
            ids,
            probabilities,
            probabilities >= decisions.thresholds,  # not where it is NaN
            [error_text(scored.errors.get(row)) for row in range(len(ids))],
            None if scored.embeddings is None else spread(scored.embeddings),
        )

    def names(self, labels: LabelSet) -> list[list[str]]:
        """The genres that are named, in the model's order."""
        return [[labels.genres[column] for column in np.flatnonzero(row)] for row in self.named]


def error_text(error: str | None) -> str | None:
    """Why there is no prediction, in one line that any file can hold: it may name a file."""
    return None if error is None else printable_line(error)


def column_names(genres: Sequence[str], reserved: Collection[str]) -> list[str]:
    """The column of each genre, all different: its own name, or ``genre:NAME`` where that is a ``reserved`` one.

    Where a genre has that very name, the prefix is repeated. Reserved names are compared without regard to case.

    >>> column_names(["Drama", "ID", "id", "genre:id"], ["id"])
    ['Drama', 'genre:ID', 'genre:genre:id', 'genre:id']
    """
    own = {name.casefold() for name in reserved}
    taken = set(genres)
    columns = []
    for genre in genres:
        column = genre
        if genre.casefold() in own:
            while column in taken or column.casefold() in own:
                column = f"genre:{column}"
            taken.add(column)
        columns.append(column)
    return columns


def genre_columns(labels: LabelSet, reserved: Collection[str] = OWN) -> dict[str, str]:
    """Genre → its column (see column_names)."""
    return dict(zip(labels.genres, column_names(labels.genres, reserved), strict=True))


def facts_of(folder: ModelFolder, content: Mapping[str, Any], how: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides the rows of a part, as JSON types. ``content``: digests of what is predicted."""
    decisions = folder.decisions.to_dict()
    return {
        "version": VERSION,
        "genres": list(folder.labels.genres),
        "columns": genre_columns(folder.labels),
        "labels": folder.labels.fingerprint,
        "weights": folder.fingerprint,
        "calibration": decisions["calibration"],
        "thresholds": decisions["thresholds"],
        "preprocessing": json.loads(json.dumps(asdict(folder.preprocessing))),
        **content,
        **how,
    }


def table_of(rows: Rows, labels: LabelSet, facts: dict[str, Any], key: str = "id") -> pa.Table:
    """Rows as an Arrow table with the facts in its schema; ``key`` is the column of their names."""
    failed = np.array([error is not None for error in rows.errors], dtype=bool)
    columns: dict[str, pa.Array] = {
        key: pa.array(rows.ids, pa.string()),
        "genres": pa.array(rows.names(labels), pa.list_(pa.string())),
    }
    for number, column in enumerate(genre_columns(labels, (*OWN, key)).values()):
        values = np.ascontiguousarray(rows.probabilities[:, number], dtype=np.float32)
        columns[column] = pa.array(values, pa.float32(), mask=failed)
    columns["error"] = pa.array(rows.errors, pa.string())
    if rows.embeddings is not None:
        flat = pa.array(rows.embeddings.astype(np.float32).ravel())
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(
            flat, rows.embeddings.shape[1], mask=pa.array(failed)
        )
    table = pa.table(columns)
    return table.replace_schema_metadata({KEY: json_text(facts)})


def write_rows(path: Path, rows: Rows, labels: LabelSet, facts: dict[str, Any], format: TableFormat) -> None:
    """Write one file (and its facts), atomically."""
    if format == "parquet":
        table = table_of(rows, labels, facts)
        with atomic_write(path) as stream:
            pq.write_table(table, stream, compression="zstd")
        return
    with atomic_write(path, "w") as stream:
        stream.write(csv_of(rows, labels) if format == "csv" else jsonl_of(rows, labels))
    write_json(_facts_path(path), facts)


def csv_of(rows: Rows, labels: LabelSet) -> str:
    """Genres joined by ``|``; float32 to the bit; nothing in rows with an error."""
    out = io.StringIO()
    nothing = [""] * len(labels)
    each = zip(rows.ids, rows.names(labels), shortest(rows.probabilities), rows.errors, strict=True)
    cells = (
        [sample, "|".join(names), *(numbers if error is None else nothing), error or ""]
        for sample, names, numbers, error in each
    )
    write_exact(out, itertools.chain([csv_header(list(genre_columns(labels).values()))], cells))
    return out.getvalue()


def csv_header(columns: Sequence[str]) -> list[str]:
    """The first line of a CSV with these columns of genres."""
    return ["id", "genres", *columns, "error"]


def jsonl_of(rows: Rows, labels: LabelSet, key: str = "id") -> str:
    """An object a line: id, genres, probabilities {genre: number}, error, and perhaps embedding."""
    lines = []
    names, numbers = rows.names(labels), shortest(rows.probabilities)
    embeddings = None if rows.embeddings is None else shortest(rows.embeddings)
    for row, error in enumerate(rows.errors):
        record: dict[str, Any] = {
            key: rows.ids[row],
            "genres": names[row],
            "probabilities": None,
            "error": error,
        }
        if error is None:
            record["probabilities"] = dict(zip(labels.genres, map(float, numbers[row]), strict=True))
        if embeddings is not None:
            record["embedding"] = None if error is not None else [float(text) for text in embeddings[row]]
        lines.append(json_text(record, allow_nan=False) + "\n")
    return "".join(lines)


def shortest(values: np.ndarray) -> list[Any]:
    """Texts of float32 numbers, as short as gives them back to the bit, in nested lists of the array's shape."""
    texts: list[Any] = np.asarray(values, np.float32).astype(str).tolist()
    return texts


def json_text(value: Any, indent: int | None = None, allow_nan: bool = True) -> str:
    """JSON in which characters that steer a terminal are escaped, as every reader of JSON understands."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=allow_nan)
    # They stand in strings only, so each may become what ASCII JSON has for it.
    return re.sub(
        r"[^\x00-\x7e]",
        lambda found: json.dumps(found[0])[1:-1] if printable(found[0]) != found[0] else found[0],
        text,
    )


def output_path(out: Path, name: str, format: TableFormat) -> Path:
    """``OUT/train-00000.parquet``."""
    return out / f"{name}.{format}"


def _facts_path(path: Path) -> Path:
    return path.with_name(path.name + FACTS)


def is_finished(path: Path, facts: dict[str, Any]) -> bool:
    """Whether this part's file is there, whole. Raises UserError if it is of another model, content or options."""
    found = _read_facts(path, facts)
    if found is None:
        return False
    if found != facts:
        raise UserError(
            f"{path} holds predictions of {_difference(found, facts)}; remove it or choose another --out"
        )
    return True


def refuse_others(out: Path, expected: Collection[str]) -> None:
    """Raise UserError if a folder holds files of rows that are not among the ``expected`` names.

    Whoever reads the folder takes all of them for one prediction.
    """
    endings = tuple(f".{format}" for format in get_args(TableFormat))
    others = sorted(name for name in names_in(out) - set(expected) if name.lower().endswith(endings))
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UserError(
            f"{out} holds files that are not of this prediction, but of other images or another --format: "
            f"{', '.join(others[:3])}{more}; remove them or choose another --out"
        )


def _read_facts(path: Path, wanted: dict[str, Any]) -> Any:
    """The facts of a file, None for one that is absent or of ours and not finished."""
    if not path.exists():
        return None
    if path.suffix == ".parquet":
        found = _parquet_facts(path)
    elif _facts_path(path).exists():
        found = read_json(_facts_path(path), "facts of predictions")
    elif _begins_as_ours(path, wanted):
        return None  # a kill came between a file and its facts
    else:
        raise UserError(f"{path} was not written by `posters predict`; remove it or choose another --out")
    if isinstance(found, dict):
        unknown = [name for name in ADDED if name in wanted and None in (found.get(name), wanted[name])]
        found = {**found, **{name: wanted[name] for name in unknown}}
    return found


def _parquet_facts(path: Path) -> Any:
    try:
        return json.loads((pq.read_schema(path).metadata or {}).get(KEY, b"null")) or {}
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}); remove it or choose another --out"
        ) from None


def _begins_as_ours(path: Path, facts: dict[str, Any]) -> bool:
    """Whether a text file is empty or begins as one of these facts does."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            if path.suffix == ".csv":
                columns = csv_header(list(facts["columns"].values()))
                return next(csv.reader(stream), columns) == columns
            record = json.loads(stream.readline() or "{}")
            return isinstance(record, dict) and record.keys() <= {*OWN, "probabilities"}
    except (OSError, ValueError, csv.Error, RecursionError):
        return False


#: Facts that files, or sets, of earlier versions do not state. They are taken for what is wanted.
ADDED = ("preprocessing", "index")

#: What a fact that differs is called in messages, the weightiest first.
WORDS = {
    "version": "another version of this toolkit",
    "labels": "a model with other genres",
    "weights": "another model",
    "content": "other images",
    "index": "another index of the same images, with other ids or genres",
    "calibration": "another calibration",
    "thresholds": "other thresholds",
    "preprocessing": "another preprocessing",
    "precision": "another precision",
    "tta": "another --tta",
    "embeddings": "another choice of --embeddings",
}


def _difference(found: Any, facts: dict[str, Any]) -> str:
    found = found if isinstance(found, dict) else {}
    differ = [words for name, words in WORDS.items() if found.get(name) != facts.get(name)]
    return " and ".join(differ[:2]) or "other columns"
