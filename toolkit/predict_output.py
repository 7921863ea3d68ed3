"""Predictions as text for people, JSON or CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.files import atomic_write
from toolkit.model_folder import ModelFolder


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
    format: str | None,
    verbose: bool,
) -> None:
    """Write all results to ``output``, or to the screen. The format follows the file's ending unless named."""
    if format is None and output is not None and output.suffix.lower() in (".json", ".csv"):
        format = output.suffix.lower().removeprefix(".")
    render = {"json": as_json, "csv": as_csv, None: as_text}[format]
    text = render(predictions, folder, device, verbose)
    if output is None:
        sys.stdout.write(text)
        return
    with atomic_write(output, "w") as stream:
        stream.write(text)
    print(f"predictions    {output}")


def as_text(predictions: Sequence[Prediction], folder: ModelFolder, device: str, verbose: bool) -> str:
    """For people."""
    low, high = folder.thresholds.min(), folder.thresholds.max()
    threshold = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f} (per genre)"
    lines = [
        f"model      {folder.path}",
        f"genres     {len(folder.labels)}",
        f"threshold  {threshold}",
        f"device     {device}",
        "",
    ]
    for prediction in predictions:
        if prediction.probabilities is None:
            lines.append(f"{prediction.name}: unreadable")
            continue
        named = ", ".join(f"{genre} ({p:.0%})" for genre, p in named_genres(prediction.probabilities, folder))
        lines.append(f"{prediction.name}: {named or 'no genre reaches its threshold'}")
        if verbose:
            width = max(len(genre) for genre in folder.labels.genres)
            lines += [
                f"    {genre:<{width}}  {p:7.2%}" for genre, p in ranked(prediction.probabilities, folder)
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
        "model": str(folder.path),
        "device": device,
        "calibration": folder.decisions.calibration,
        "thresholds": dict(zip(folder.labels.genres, folder.thresholds.tolist(), strict=True)),
        "predictions": results,
    }
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def as_csv(predictions: Sequence[Prediction], folder: ModelFolder, device: str, verbose: bool) -> str:
    """A row per image: image, genres (joined by |), error, and with ``verbose`` a probability column per genre."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image", "genres", "error", *(folder.labels.genres if verbose else ())])
    for prediction in predictions:
        values = prediction.probabilities
        named = [] if values is None else [genre for genre, _ in named_genres(values, folder)]
        row = [prediction.name, "|".join(named), prediction.error or ""]
        if verbose:
            row += [""] * len(folder.labels) if values is None else [f"{p:.6f}" for p in values]
        writer.writerow(row)
    return out.getvalue()
