"""Formats of predictions, one class per format. To add a format, write a class and add it to FORMATS.
A file has these columns:

- id: the id of the sample. In results of a few images, this column is called ``image``.
- genres: the named genres (toolkit/inference/naming.py), in the order of the model.
- One float32 column of calibrated probabilities per genre. The column has the name of the genre, for filters such as
  ``df[df.Drama > 0.5]`` and ``SELECT id FROM 'PRED/*.parquet' WHERE Drama > 0.5``.
- error: null, or the reason why there is no prediction.
- embedding: a list of float32 numbers. This column is optional.

The options of the command import this module, so it does not load torch or pyarrow.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from shards.errors import UserError, did_you_mean, one_line, printable, printable_line
from shards.options import option
from shards.storage.csv_text import write_exact
from shards.storage.files import atomic_write
from toolkit.config.extensions import is_place, make, use
from toolkit.inference.rows import OWN, Line, Rows

if TYPE_CHECKING:
    from toolkit.model_folder.folder import ModelFolder

#: Key of the facts in the metadata of a Parquet file.
KEY = b"poster_toolkit"
REMEDY = "remove it or choose another --out"


@dataclass(frozen=True)
class ShownOptions:
    """Options for results of a few images."""

    verbose: bool = option(False, "-v")
    """Show the probability of every genre, the highest first."""


@dataclass(frozen=True)
class Shown:
    """The model, the device and the options for results of a few images."""

    folder: ModelFolder
    device: str
    options: ShownOptions


class Format:
    """Writes rows into a file. A text format defines ``text``. Any other format defines ``write``."""

    name: ClassVar[str]
    """Value of --format."""
    ending: ClassVar[str] = ""
    """Ending of the files, such as ``.txt``. Empty if the ending is a dot and the name of the format."""
    in_folders: ClassVar[bool] = False
    """Whether files in a folder of predictions can have this format."""
    holds_facts: ClassVar[bool] = False
    """Whether a file contains its facts (model, data, options). For other formats, a second file contains them."""
    embeddings: ClassVar[bool] = True
    screen: ClassVar[Literal["", "printable", "exact"]] = ""
    """On the screen, escape control characters always (printable) or on terminals only (exact). "": no screen."""

    def text(self, rows: Rows, shown: Shown | None) -> str:
        """Return the whole file as text. ``shown`` is None for a file in a folder of predictions."""
        raise NotImplementedError

    def write(self, path: Path, rows: Rows, facts: dict[str, Any], shown: Shown | None = None) -> None:
        """Write one file, atomically."""
        with atomic_write(path, "w") as stream:
            stream.write(self.text(rows, shown))

    def facts_in(self, path: Path) -> Any:
        """Return the metadata (model, data, options) of a file, or {}. Raises UserError if the file is damaged."""
        raise NotImplementedError

    def begins(self, stream: IO[str], columns: list[str]) -> bool:
        """Return whether the start of a file has this format and these genre columns. The file can be truncated."""
        raise NotImplementedError


class Parquet(Format):
    """A table for pandas and databases."""

    name, in_folders, holds_facts = "parquet", True, True

    def write(self, path: Path, rows: Rows, facts: dict[str, Any], shown: Shown | None = None) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        failed = np.array([error is not None for error in rows.errors], dtype=bool)
        named, offsets = rows.named()
        genres = pa.array(rows.labels.genres, pa.string()).take(pa.array(named, pa.int64()))
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), genres)
        columns = {rows.key: pa.array(rows.ids, pa.string()), "genres": lists}
        for column, values in zip(rows.columns, rows.probabilities.T.astype(np.float32, order="C"), strict=True):
            columns[column] = pa.array(values, pa.float32(), mask=failed)
        columns["error"] = pa.array(rows.errors, pa.string())
        if rows.embeddings is not None:
            # pyarrow before version 25 cannot write nulls in lists of a fixed size. A null has no numbers here.
            numbers = pa.array(rows.embeddings[~failed].astype(np.float32, copy=False).reshape(-1), pa.float32())
            ends = pa.array(np.cumsum([0, *np.where(failed, 0, rows.embeddings.shape[1])]), pa.int32())
            columns["embedding"] = pa.ListArray.from_arrays(ends, numbers, mask=pa.array(failed))
        table = pa.table(columns).replace_schema_metadata({KEY: json_text(facts)})
        with atomic_write(path) as stream:
            pq.write_table(table, stream, compression="zstd")

    def facts_in(self, path: Path) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return json.loads((pq.read_schema(path).metadata or {}).get(KEY, b"null")) or {}
        except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
            raise UserError("predictions-damaged", f"{path} cannot be read ({one_line(error)}); {REMEDY}") from None


class Csv(Format):
    """A CSV table. Genres are joined by ``|``, and numbers are exact. In a row with an error, the numbers are empty.

    For a few images, genres are sorted by probability, and the column ``error`` comes before the numbers.
    """

    name, in_folders, embeddings = "csv", True, False
    screen = "exact"

    def text(self, rows: Rows, shown: Shown | None) -> str:
        out = io.StringIO()
        nothing = [""] * len(rows.labels)
        names = [_named(lines) for lines in rows.ranked()] if shown else rows.names()
        each = zip(rows.ids, names, shortest(rows.probabilities), rows.errors, strict=True)
        cells = (
            _cells([sample, "|".join(named)], numbers if error is None else nothing, error or "", shown)
            for sample, named, numbers, error in each
        )
        header = _cells([rows.key, "genres"], rows.columns, "error", shown)
        write_exact(out, itertools.chain([header], cells))
        return out.getvalue()

    def begins(self, stream: IO[str], columns: list[str]) -> bool:
        header = _cells(["id", "genres"], columns, "error", None)
        return next(csv.reader(stream), header) == header


class JsonLines(Format):
    """One JSON object per line with id, genres, probabilities by genre, error, and optionally embedding."""

    name, in_folders = "jsonl", True

    def text(self, rows: Rows, shown: Shown | None) -> str:
        lines = []
        names, numbers = rows.names(), shortest(rows.probabilities)
        embeddings = None if rows.embeddings is None else shortest(rows.embeddings)
        for row, error in enumerate(rows.errors):
            by_genre = dict(zip(rows.labels.genres, map(float, numbers[row]), strict=True)) if error is None else None
            record: dict[str, Any] = {rows.key: rows.ids[row], "genres": names[row]}
            record |= {"probabilities": by_genre, "error": error}
            if embeddings is not None:
                record["embedding"] = [float(text) for text in embeddings[row]] if error is None else None
            lines.append(json_text(record, allow_nan=False) + "\n")
        return "".join(lines)

    def begins(self, stream: IO[str], columns: list[str]) -> bool:
        record = json.loads(stream.readline() or "{}")
        return isinstance(record, dict) and record.keys() <= {*OWN, "probabilities"}


class Json(Format):
    """One JSON object with a description of the model and a list of results."""

    name, screen = "json", "printable"

    def text(self, rows: Rows, shown: Shown | None) -> str:
        from toolkit.data.sources.image_files import file_id

        assert shown is not None
        results: list[dict[str, Any]] = []
        for image, lines, error in zip(rows.ids, rows.ranked(), rows.errors, strict=True):
            found = {line.genre: round(line.probability, 6) for line in lines if shown.options.verbose or line.named}
            result = {"genres": _named(lines), "probabilities": found} if error is None else {"error": error}
            results.append({"image": image, **result})
        facts = {
            "model": file_id(str(shown.folder.path)),
            "device": shown.device,
            "calibration": shown.folder.decisions.calibration,
            "thresholds": dict(zip(rows.labels.genres, rows.thresholds.tolist(), strict=True)),
            **rows.naming.facts(),
            "predictions": results,
        }
        return json_text(facts, indent=2) + "\n"


class Text(Format):
    """Text for the screen."""

    name, ending, screen = "text", ".txt", "printable"

    def text(self, rows: Rows, shown: Shown | None) -> str:
        assert shown is not None
        low, high = rows.thresholds.min(), rows.thresholds.max()
        threshold = f"threshold  {low:.2f}" if low == high else f"threshold  {low:.2f} to {high:.2f} (per genre)"
        rule = rows.naming.rule
        lines = [
            f"model      {printable_line(str(shown.folder.path))}",
            f"genres     {len(rows.labels)}",
            f"named      {rule} of each image" if rule else threshold,
            f"device     {shown.device}",
            "",
        ]
        names = {genre: printable_line(genre) for genre in rows.labels.genres}
        width = max(map(len, names.values()))
        for image, ranked, error in zip(map(printable_line, rows.ids), rows.ranked(), rows.errors, strict=True):
            if error is not None:
                lines.append(f"{image}: unreadable")
                continue
            named = ", ".join(f"{names[line.genre]} ({line.probability:.0%})" for line in ranked if line.named)
            lines.append(f"{image}: {named or 'no genre reaches its threshold'}")
            if shown.options.verbose:
                lines += [f"    {names[line.genre]:<{width}}  {line.probability:7.2%}" for line in ranked]
        return "\n".join(lines) + "\n"


#: The formats by name. The first format is the default for folders.
FORMATS: dict[str, Format] = {format.name: format for format in (Parquet(), Csv(), JsonLines(), Json(), Text())}
#: Ending of a file → name of its format.
ENDINGS = {format.ending or f".{name}": name for name, format in FORMATS.items()}
ENDING_OF = {name: ending for ending, name in ENDINGS.items()}
FOLDER_FORMATS = [name for name, format in FORMATS.items() if format.in_folders]


def format_name(text: str) -> str:
    """Return a value of --format: a name in FORMATS except text, which is the default on the screen, or MODULE:CLASS.

    Raises UserError for other names.
    """
    known = [name for name in FORMATS if name != Text.name and not is_place(name)]
    if text not in known and not is_place(text):
        near = did_you_mean(text, known)
        raise UserError(
            "option-value", f"--format must be {', '.join(known)} or MODULE:CLASS, not {text[:200]!r}{near}"
        )
    return text


def add_format(place: str, options: Mapping[str, Any]) -> None:
    """Add a format of the user, MODULE:CLASS, to the formats. Raises UserError if the class does not fit."""
    use("prediction format", place, "--format")
    made: Format = make("prediction format", place, options, "--format-options")
    if not re.fullmatch(r"\.[a-z][a-z0-9]{0,7}", made.ending):
        raise UserError(
            "option-value", f"--format {place} needs an attribute ending such as '.xml', not {made.ending!r}"
        )
    if ENDINGS.get(made.ending, place) != place:
        raise UserError(
            "option-value",
            f"--format {place} has the ending {made.ending}, which is the ending of {ENDINGS[made.ending]}",
        )
    FORMATS[place], ENDINGS[made.ending], ENDING_OF[place] = made, place, made.ending
    if made.in_folders and place not in FOLDER_FORMATS:
        FOLDER_FORMATS.append(place)


def _named(lines: Sequence[Line]) -> list[str]:
    return [line.genre for line in lines if line.named]


def _cells(first: list[str], numbers: list[str], error: str, shown: Shown | None) -> list[str]:
    return [*first, error, *numbers] if shown else [*first, *numbers, error]


def shortest(values: np.ndarray) -> list[Any]:
    """Return nested lists of texts. Each text is the shortest one that gives exactly the same float32 number."""
    texts: list[Any] = np.asarray(values, np.float32).astype(str).tolist()
    return texts


def json_text(value: Any, indent: int | None = None, allow_nan: bool = True) -> str:
    """Return JSON in which control characters of terminals are escaped. All JSON readers support these escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=allow_nan)
    # JSON has such characters only in strings, where escapes are valid.
    return re.sub(
        r"[^\x00-\x7e]", lambda found: json.dumps(found[0])[1:-1] if printable(found[0]) != found[0] else found[0], text
    )
