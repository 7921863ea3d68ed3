"""Files that a visitor of `posters app` can download: predictions, thresholds and corrections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from shards.storage.csv_text import write_for_people
from shards.storage.files import atomic_write
from shards.tables.corrections import GENRES, ID, SEPARATOR
from toolkit.app.board import Board
from toolkit.app.service import PredictionService
from toolkit.config.model_files import LABELS
from toolkit.inference.naming import PLAIN
from toolkit.inference.rows import Rows
from toolkit.model_folder.folder import write_labels
from toolkit.prediction.facts import facts_of
from toolkit.prediction.formats import FORMATS, Shown, ShownOptions

#: Formats of the predictions, as in ``posters predict``.
TABLES = ("csv", "json", "parquet")
CORRECTIONS = "corrections.csv"


def prediction_files(board: Board, service: PredictionService) -> list[Path | None]:
    """Write one file per format of TABLES with all uploads, as ``posters predict`` does. None without uploads."""
    if not board.posters and not board.refused:
        return [None] * len(TABLES)
    model = service.folder
    rows = rows_of(board, service)
    # Visitors on other machines must not see the paths of this machine.
    shown = replace(model, path=Path(model.path.resolve().name))
    facts = facts_of(replace(shown, decisions=replace(model.decisions, thresholds=rows.thresholds)), {}, PLAIN, {})
    paths: list[Path | None] = []
    for name in TABLES:
        path = board.folder / f"predictions.{name}"
        options = Shown(shown, str(service.device), ShownOptions(verbose=True))
        FORMATS[name].write(path, rows, facts, None if name == "parquet" else options)
        paths.append(path)
    return paths


def rows_of(board: Board, service: PredictionService) -> Rows:
    """Return a row for each upload: posters first, then the files that could not be used, with their errors."""
    folder, refused = service.folder, board.refused
    unknown = np.full((len(refused), len(folder.labels)), np.nan)
    return Rows(
        [poster.name for poster in board.posters] + [file.name for file in refused],
        np.concatenate([*(poster.probabilities[None] for poster in board.posters), unknown]),
        [*([None] * len(board.posters)), *(file.message for file in refused)],
        folder.labels,
        board.thresholds(folder),
        key="image",
    )


def labels_file(board: Board, service: PredictionService) -> Path | None:
    """Write a labels.json with the visitor's thresholds. None if the visitor changed nothing.

    The file replaces labels.json of the model folder.
    """
    if not board.changed:
        return None
    folder = service.folder
    given = {folder.labels.genres[column]: value for column, value in board.changed.items()}
    write_labels(board.folder, folder.labels, folder.decisions.with_thresholds(given, folder.labels), folder.path)
    return board.folder / LABELS


def corrections_file(board: Board) -> Path | None:
    """Write the corrections for ``posters shards build --corrections``. None if there are none."""
    if not board.corrections:
        return None
    path = board.folder / CORRECTIONS
    rows = [(sample_id, SEPARATOR.join(genres)) for sample_id, genres in board.corrections.items()]
    with atomic_write(path, "w") as stream:
        write_for_people(stream, [(ID, GENRES), *rows], end="\r\n")
    return path
