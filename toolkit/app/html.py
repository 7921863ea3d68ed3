"""HTML parts of `posters app`: uploads, gallery, genres with thresholds, heat maps, and the result without text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shards.visuals.templates import render
from toolkit.app.board import Board
from toolkit.app.browse import PER_PAGE, Split, Wanted
from toolkit.app.overlays import REJECTED, TEXT, heat_picture, outlined, scale_colours
from toolkit.app.service import Line, Painted, Poster, PredictionService
from toolkit.app.wording import Wording
from toolkit.metrics.helpers import FloatArray

#: Number of the most probable genres in a table. Predicted genres are in the table even if they are less probable.
MAX_GENRES = 40
#: Differences of at least this number of percentage points are coloured.
MIN_SHOWN_CHANGE = 1.0


def genres_card(poster: Poster, board: Board, service: PredictionService) -> str:
    """Return the table of genres with probability, threshold and their ratio, most probable first."""
    folder = service.folder
    lines = service.lines(poster.probabilities, board.thresholds(folder))
    shown = _shown(lines)
    return render(
        "toolkit.app/genres.html",
        poster=poster,
        lines=shown,
        hidden=len(lines) - len(shown),
        columns=folder.labels.index,
        model=folder.thresholds.tolist(),
        changed=bool(board.changed),
        decisions=folder.decisions,
        words=service.words,
    )


def uploads_table(board: Board, service: PredictionService) -> str:
    """Return the table of all uploads: thumbnail, name, named genres and the most probable genre."""
    thresholds = board.thresholds(service.folder)
    rows = [
        (poster, board.named(poster, service.folder), service.lines(poster.probabilities, thresholds)[0])
        for poster in board.posters
    ]
    corrections, words = board.corrections, service.words
    return render("toolkit.app/uploads.html", rows=rows, chosen=board.chosen, corrections=corrections, words=words)


def gallery(split: Split, wanted: Wanted, board: Board, service: PredictionService) -> str:
    """Return a page of the gallery: the posters that the filter keeps, with true, wrong and missed genres."""
    thresholds = board.thresholds(service.folder)
    rows = split.rows(wanted, thresholds)
    pages = max(1, -(-len(rows) // PER_PAGE))
    board.page = min(board.page, pages - 1)
    start = board.page * PER_PAGE
    cards = [
        (row, split.ids[row], split.thumbnail(row), _verdicts(split, row, thresholds))
        for row in rows[start : start + PER_PAGE].tolist()
    ]
    return render(
        "toolkit.app/gallery.html",
        cards=cards,
        found=len(rows),
        first=start + 1,
        page=board.page,
        pages=pages,
        split=split.name,
        total=len(split.ids),
        words=service.words,
    )


def _verdicts(split: Split, row: int, thresholds: FloatArray) -> list[tuple[str, str, float]]:
    """Return (verdict, genre, probability) of the genres that are named or true, most probable first."""
    probabilities, true = split.probabilities[row], split.targets[row]
    found = []
    for column in np.argsort(-probabilities, kind="stable").tolist():
        named = probabilities[column] >= thresholds[column]
        if named or true[column]:
            verdict = "missed" if not named else "right" if true[column] else "wrong"
            found.append((verdict, split.genres[column], float(probabilities[column])))
    return found


def heat_card(poster: Poster, genre: str, heat: FloatArray | None, service: PredictionService) -> str:
    """Return the heat map of one genre, or the reason why there is no heat map."""
    image = poster.image
    box = service.folder.preprocessing.view(*image.size)
    return render(
        "toolkit.app/heat.html",
        poster=poster,
        genre=genre,
        picture=None if heat is None else heat_picture(image, heat, box),
        found=heat is not None and heat.max() > 0,
        whole=box == (0, 0, *image.size),
        colours=scale_colours(),
        service=service,
        words=service.words,
    )


def text_card(
    poster: Poster, painted: Painted, with_text: Sequence[Line], without: Sequence[Line], words: Wording
) -> str:
    """Return the poster with outlined text, the poster without text, and both predictions side by side."""
    after = {line.genre: line for line in without}
    pairs = [(line, after[line.genre]) for line in _shown(with_text)]
    return render(
        "toolkit.app/text.html",
        said="",
        words=words,
        painted=painted,
        outlined=outlined(poster.image, painted.polygons, painted.rejected),
        changes=[(old, new, 100.0 * (new.probability - old.probability)) for old, new in pairs],
        telling=MIN_SHOWN_CHANGE,
        text_colour=TEXT,
        rejected_colour=REJECTED,
    )


def _shown(lines: Sequence[Line]) -> list[Line]:
    return [line for rank, line in enumerate(lines) if line.named or rank < MAX_GENRES]
