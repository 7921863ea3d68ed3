"""Facts of a prediction file: the model, the data and the options that determine its rows.

The metadata of a Parquet file contains its facts (key ``poster_toolkit``). For other formats, a second file
``NAME.facts.json`` contains the facts and is written last. A prediction file is finished if its facts exist.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shards.errors import UserError, some
from shards.storage.files import names_in, read_json, write_json
from toolkit.inference.naming import NamingOptions
from toolkit.inference.rows import Rows, genre_columns
from toolkit.model_folder.folder import ModelFolder
from toolkit.prediction.formats import ENDINGS, FOLDER_FORMATS, FORMATS, REMEDY

#: Version of the columns. Increase it with every change of the columns.
VERSION = 2
#: Ending of the second file that contains the facts.
FACTS = ".facts.json"


def facts_of(
    folder: ModelFolder, content: Mapping[str, Any], naming: NamingOptions, how: dict[str, Any]
) -> dict[str, Any]:
    """Return the model, data and options of a prediction file in JSON types. ``content`` has digests of the data."""
    return {
        "version": VERSION,
        "genres": list(folder.labels.genres),
        "columns": genre_columns(folder.labels.genres),
        "labels": folder.labels.fingerprint,
        "weights": folder.fingerprint,
        "calibration": folder.decisions.to_dict()["calibration"],
        "thresholds": naming.thresholds(folder.thresholds, folder.labels).tolist(),
        "preprocessing": json.loads(json.dumps(asdict(folder.preprocessing))),
        **content,
        **how,
        **naming.facts(),
    }


def write_rows(path: Path, rows: Rows, facts: dict[str, Any]) -> None:
    """Write a prediction file and its facts (model, data, options) atomically. The ending selects the format."""
    format = FORMATS[ENDINGS[path.suffix]]
    format.write(path, rows, facts)
    if not format.holds_facts:
        write_json(_facts_path(path), facts)


def _facts_path(path: Path) -> Path:
    return path.with_name(path.name + FACTS)


def is_finished(path: Path, facts: dict[str, Any]) -> bool:
    """Return whether the file is complete. Raises UserError if it was made with a different model, data or options."""
    found = _read_facts(path, facts)
    if found is None:
        return False
    if found != facts:
        raise UserError("predictions-other", f"{path} contains predictions of {_difference(found, facts)}; {REMEDY}")
    return True


def refuse_others(out: Path, expected: Collection[str]) -> None:
    """Raise UserError if a folder contains prediction files whose names are not in ``expected``.

    Programs read all prediction files of a folder as one prediction.
    """
    endings = tuple(ending for ending, format in ENDINGS.items() if format in FOLDER_FORMATS)
    others = sorted(name for name in names_in(out) - set(expected) if name.lower().endswith(endings))
    if others:
        raise UserError(
            "predictions-other",
            f"{out} contains files of another prediction, with other images or another --format: "
            f"{some(others, 3)}; remove them or choose another --out",
        )


def _read_facts(path: Path, wanted: dict[str, Any]) -> Any:
    """Return the metadata of a prediction file (model, data, options). None if the file is missing or unfinished."""
    if not path.exists():
        return None
    format = FORMATS[ENDINGS[path.suffix]]
    if format.holds_facts:
        found = format.facts_in(path)
    elif _facts_path(path).exists():
        found = read_json(_facts_path(path), "facts of predictions")
    else:
        with contextlib.suppress(OSError, ValueError, csv.Error, RecursionError):
            with open(path, encoding="utf-8", newline="") as stream:
                if format.begins(stream, list(wanted["columns"].values())):
                    return None  # posters predict was killed before it wrote the facts
        raise UserError("path-exists", f"{path} was not written by `posters predict`; {REMEDY}")
    if isinstance(found, dict):
        unknown = [name for name in ADDED if name in wanted and None in (found.get(name), wanted[name])]
        found = {**found, **{name: wanted[name] for name in unknown}}
    return found


#: Facts that earlier versions did not write. A missing fact counts as equal.
ADDED = ("preprocessing", "index")

#: Fact → description for messages if the fact differs. The most important fact is first.
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
    "embeddings": "another choice of --embeddings",
}


def _difference(found: Any, facts: dict[str, Any]) -> str:
    found = found if isinstance(found, dict) else {}
    names = [*WORDS, *sorted((found.keys() | facts.keys()) - WORDS.keys() - {"genres", "columns"})]
    words = {name: f"another --{name.replace('_', '-')}" for name in names} | WORDS
    differ = [words[name] for name in names if found.get(name) != facts.get(name)]
    return " and ".join(differ[:2]) or "other columns"
