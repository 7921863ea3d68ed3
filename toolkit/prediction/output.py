"""Predictions of a few images: text for people; JSON, CSV, JSON Lines or Parquet for programs."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from shards.console import exact_stdout
from shards.errors import printable_line
from shards.storage.csv_text import write_exact
from shards.storage.files import atomic_write
from toolkit.data.sources.image_files import file_id
from toolkit.model_folder.folder import ModelFolder
from toolkit.prediction.formats import (
    OWN,
    Rows,
    facts_of,
    genre_columns,
    json_text,
    jsonl_of,
    shortest,
    table_of,
)

#: The column of the images' names.
KEY_COLUMN = "image"


@dataclass(frozen=True)
class Prediction:
    """One image's result: probabilities, or the reason why there are none."""

    name: str
    probabilities: np.ndarray | None
    """(G,) float64 in [0, 1], calibrated."""
    error: str | None = None


def named_genres(probabilities: np.ndarray, folder: ModelFolder) -> list[tuple[str, float]]:
    """(genre, probability) of the genres at or over their thresholds, most probable first."""
    return [
        (genre, p)
        for genre, p in ranked(probabilities, folder)
        if p >= folder.thresholds[folder.labels.index[genre]]
    ]


def ranked(probabilities: np.ndarray, folder: ModelFolder) -> list[tuple[str, float]]:
    """(genre, probability) of every genre, most probable first."""
    order = np.argsort(-probabilities, kind="stable")
    return [(folder.labels.genres[column], float(probabilities[column])) for column in order]


def write_predictions(
    predictions: Sequence[Prediction],
    folder: ModelFolder,
    device: str,
    output: Path | None,
    format: str,
    verbose: bool,
) -> None:
    """Write all results to ``output``, or to the screen, in one of predict_options.FILE_FORMATS."""
    if format == "parquet":
        assert output is not None  # see file_format
        table = table_of(
            _rows(predictions, folder), folder.labels, facts_of(folder, {"content": ""}, {}), KEY_COLUMN
        )
        with atomic_write(output) as stream:
            pq.write_table(table, stream, compression="zstd")
    else:
        if format == "text":
            text = as_text(predictions, folder, device, verbose)
        elif format == "json":
            text = as_json(predictions, folder, device, verbose)
        elif format == "csv":
            text = as_csv(predictions, folder)
        else:
            text = jsonl_of(_rows(predictions, folder), folder.labels, KEY_COLUMN)
        if output is None:
            (exact_stdout() if format == "csv" else sys.stdout).write(text)
            return
        with atomic_write(output, "w") as stream:
            stream.write(text)
    print(f"predictions    {output}")


def _rows(predictions: Sequence[Prediction], folder: ModelFolder) -> Rows:
    """The same as rows of a table."""
    nothing = np.full(len(folder.labels), np.nan)
    values = np.stack([nothing if p.probabilities is None else p.probabilities for p in predictions])
    return Rows(
        [p.name for p in predictions], values, values >= folder.thresholds, [p.error for p in predictions]
    )


def as_text(predictions: Sequence[Prediction], folder: ModelFolder, device: str, verbose: bool) -> str:
    """For people."""
    low, high = folder.thresholds.min(), folder.thresholds.max()
    threshold = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f} (per genre)"
    lines = [
        f"model      {printable_line(str(folder.path))}",
        f"genres     {len(folder.labels)}",
        f"threshold  {threshold}",
        f"device     {device}",
        "",
    ]
    shown = {genre: printable_line(genre) for genre in folder.labels.genres}
    for prediction in predictions:
        name = printable_line(prediction.name)
        if prediction.probabilities is None:
            lines.append(f"{name}: unreadable")
            continue
        named = ", ".join(
            f"{shown[genre]} ({p:.0%})" for genre, p in named_genres(prediction.probabilities, folder)
        )
        lines.append(f"{name}: {named or 'no genre reaches its threshold'}")
        if verbose:
            width = max(map(len, shown.values()))
            lines += [
                f"    {shown[genre]:<{width}}  {p:7.2%}"
                for genre, p in ranked(prediction.probabilities, folder)
            ]
    return "\n".join(lines) + "\n"


def as_json(predictions: Sequence[Prediction], folder: ModelFolder, device: str, verbose: bool) -> str:
    """An object with the model's facts and a list of results."""
    results: list[dict[str, Any]] = []
    for prediction in predictions:
        record: dict[str, Any] = {"image": prediction.name}
        if prediction.probabilities is None:
            record["error"] = prediction.error
        else:
            named = named_genres(prediction.probabilities, folder)
            record["genres"] = [genre for genre, _ in named]
            shown = ranked(prediction.probabilities, folder) if verbose else named
            record["probabilities"] = {genre: round(p, 6) for genre, p in shown}
        results.append(record)
    facts = {
        "model": file_id(str(folder.path)),
        "device": device,
        "calibration": folder.decisions.calibration,
        "thresholds": dict(zip(folder.labels.genres, folder.thresholds.tolist(), strict=True)),
        "predictions": results,
    }
    return json_text(facts, indent=2) + "\n"


def as_csv(predictions: Sequence[Prediction], folder: ModelFolder) -> str:
    """A row per image: image, genres (joined by |, most probable first), error, and the probability of every genre."""
    out = io.StringIO()
    columns = genre_columns(folder.labels, (*OWN, KEY_COLUMN)).values()
    rows = [[KEY_COLUMN, "genres", "error", *columns]]
    for prediction in predictions:
        values = prediction.probabilities
        named = [] if values is None else [genre for genre, _ in named_genres(values, folder)]
        numbers = [""] * len(folder.labels) if values is None else shortest(values)
        rows.append([prediction.name, "|".join(named), prediction.error or "", *numbers])
    write_exact(out, rows)
    return out.getvalue()
