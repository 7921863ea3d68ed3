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
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import UserError, one_line
from shards.files import atomic_write, read_json, write_json
from shards.labels import LabelSet
from toolkit.decisions import Decisions
from toolkit.inference import Scored
from toolkit.model_folder import ModelFolder

TableFormat = Literal["parquet", "csv", "jsonl"]
#: Raised whenever a file of before would not have the columns of today.
VERSION = 2
KEY = b"poster_toolkit"
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
            [scored.errors.get(row) for row in range(len(ids))],
            None if scored.embeddings is None else spread(scored.embeddings),
        )

    def names(self, labels: LabelSet) -> list[list[str]]:
        """The genres that are named, in the model's order."""
        return [[labels.genres[column] for column in np.flatnonzero(row)] for row in self.named]


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


def facts_of(folder: ModelFolder, content: str, how: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides the rows of a part, as JSON types."""
    decisions = folder.decisions.to_dict()
    return {
        "version": VERSION,
        "genres": list(folder.labels.genres),
        "columns": genre_columns(folder.labels),
        "labels": folder.labels.fingerprint,
        "weights": folder.fingerprint,
        "calibration": decisions["calibration"],
        "thresholds": decisions["thresholds"],
        "content": content,
        **how,
    }


def table_of(rows: Rows, labels: LabelSet, facts: dict[str, Any]) -> pa.Table:
    """Rows as an Arrow table with the facts in its schema."""
    failed = np.array([error is not None for error in rows.errors], dtype=bool)
    columns: dict[str, pa.Array] = {
        "id": pa.array(rows.ids, pa.string()),
        "genres": pa.array(rows.names(labels), pa.list_(pa.string())),
    }
    for number, column in enumerate(genre_columns(labels).values()):
        values = np.ascontiguousarray(rows.probabilities[:, number], dtype=np.float32)
        columns[column] = pa.array(values, pa.float32(), mask=failed)
    columns["error"] = pa.array(rows.errors, pa.string())
    if rows.embeddings is not None:
        flat = pa.array(rows.embeddings.astype(np.float32).ravel())
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(
            flat, rows.embeddings.shape[1], mask=pa.array(failed)
        )
    table = pa.table(columns)
    return table.replace_schema_metadata({KEY: json.dumps(facts, ensure_ascii=False)})


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
    """Genres joined by ``|``; seven significant digits; nothing in rows with an error."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "genres", *genre_columns(labels).values(), "error"])
    for sample, names, values, error in _each(rows, labels):
        numbers = [""] * len(labels) if error is not None else [f"{value:.7g}" for value in values]
        writer.writerow([sample, "|".join(names), *numbers, error or ""])
    return out.getvalue()


def jsonl_of(rows: Rows, labels: LabelSet) -> str:
    """An object a line: id, genres, probabilities {genre: number}, error, and perhaps embedding."""
    lines = []
    for row, (sample, names, values, error) in enumerate(_each(rows, labels)):
        record: dict[str, Any] = {"id": sample, "genres": names, "probabilities": None, "error": error}
        if error is None:
            numbers = [float(f"{value:.7g}") for value in values]
            record["probabilities"] = dict(zip(labels.genres, numbers, strict=True))
        if rows.embeddings is not None:
            record["embedding"] = None if error else [float(f"{value:.7g}") for value in rows.embeddings[row]]
        lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    return "".join(lines)


def _each(rows: Rows, labels: LabelSet) -> Iterator[tuple[str, list[str], np.ndarray, str | None]]:
    return zip(rows.ids, rows.names(labels), rows.probabilities, rows.errors, strict=True)


def output_path(out: Path, name: str, format: TableFormat) -> Path:
    """``OUT/train-00000.parquet``."""
    return out / f"{name}.{format}"


def _facts_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.facts.json")


def is_finished(path: Path, facts: dict[str, Any]) -> bool:
    """Whether this part's file is there, whole. Raises UserError if it is of another model, content or options."""
    found = _read_facts(path)
    if found is None:
        return False
    if found != facts:
        raise UserError(
            f"{path} holds predictions of {_difference(found, facts)}; remove it or choose another --out"
        )
    return True


def _read_facts(path: Path) -> Any:
    if not path.exists():
        return None
    if path.suffix != ".parquet":
        beside = _facts_path(path)
        return read_json(beside, "facts of predictions") if beside.exists() else None
    try:
        return json.loads((pq.read_schema(path).metadata or {}).get(KEY, b"null")) or {}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}); remove it or choose another --out"
        ) from None


#: What a fact that differs is called in messages, the weightiest first.
WORDS = {
    "version": "another version of this toolkit",
    "labels": "a model with other genres",
    "weights": "another model",
    "content": "other images",
    "calibration": "another calibration",
    "thresholds": "other thresholds",
    "precision": "another precision",
    "tta": "another --tta",
    "embeddings": "another choice of --embeddings",
}


def _difference(found: Any, facts: dict[str, Any]) -> str:
    found = found if isinstance(found, dict) else {}
    differ = [words for name, words in WORDS.items() if found.get(name) != facts.get(name)]
    return " and ".join(differ[:2]) or "other columns"
