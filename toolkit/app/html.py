"""HTML parts of `posters app`: genres with thresholds, heat maps, and the result without text."""

from __future__ import annotations

from collections.abc import Sequence

from shards.visuals.templates import render
from toolkit.app.overlays import REJECTED, TEXT, heat_picture, outlined, scale_colours
from toolkit.app.service import Line, Painted, Poster, PredictionService
from toolkit.metrics.helpers import FloatArray

#: Number of the most probable genres in a table. Predicted genres are in the table even if they are less probable.
MAX_GENRES = 40
#: Differences of at least this number of percentage points are coloured.
MIN_SHOWN_CHANGE = 1.0


def genres_card(poster: Poster, lines: Sequence[Line], service: PredictionService) -> str:
    """Return the table of genres with probability, threshold and their ratio, most probable first."""
    shown = _shown(lines)
    return render(
        "toolkit.app/genres.html",
        poster=poster,
        lines=shown,
        hidden=len(lines) - len(shown),
        decisions=service.folder.decisions,
    )


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
    )


def text_card(poster: Poster, painted: Painted, with_text: Sequence[Line], without: Sequence[Line]) -> str:
    """Return the poster with outlined text, the poster without text, and both predictions side by side."""
    after = {line.genre: line for line in without}
    pairs = [(line, after[line.genre]) for line in _shown(with_text)]
    return render(
        "toolkit.app/text.html",
        said="",
        painted=painted,
        outlined=outlined(poster.image, painted.polygons, painted.rejected),
        changes=[(old, new, 100.0 * (new.probability - old.probability)) for old, new in pairs],
        telling=MIN_SHOWN_CHANGE,
        text_colour=TEXT,
        rejected_colour=REJECTED,
    )


def _shown(lines: Sequence[Line]) -> list[Line]:
    return [line for rank, line in enumerate(lines) if line.named or rank < MAX_GENRES]
