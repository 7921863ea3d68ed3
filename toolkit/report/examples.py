"""Example posters of the page: the best, the worst, the most confident errors, and likely label errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from shards.inputs.images import ANY, BadImage, decode, jpeg
from toolkit.metrics.helpers import PROBABILITY_CLIP, BoolArray, FloatArray, IntArray, clipped_cross_entropy
from toolkit.report.inputs import ReportInputs
from toolkit.report.label_errors import LabelError

#: Maximum number of posters per group.
POSTERS_PER_GROUP = 12
#: Maximum number of likely label errors with pictures.
ERRORS_SHOWN = 24
#: Maximum width and height of a picture in pixels, and maximum bytes as JPEG. The page shows them at half this size.
MAX_PICTURE_SIZE, MAX_PICTURE_BYTES = (320, 480), 25_000
#: Smaller shares of a genre in training are raised to this share, since the logit of 0 is not finite.
MIN_PREVALENCE = 1e-4

#: (genre is predicted, genre is true) → verdict on the genre. ``neither`` occurs only for likely label errors.
VERDICTS = {(True, True): "right", (True, False): "wrong", (False, True): "missed", (False, False): "neither"}
#: The number of a sample, and the genres that are the reason to show the sample.
ChosenSample = tuple[int, set[str]]


@dataclass(frozen=True)
class Line:
    """One genre in the list under a poster."""

    genre: str
    verdict: str
    """A value of `VERDICTS`."""
    probability: float
    is_reason: bool
    """Whether the poster is shown because of this genre."""


@dataclass(frozen=True)
class Example:
    """A poster on the page."""

    sample: int
    id: str
    picture: bytes | None
    """A small JPEG, or None if the image cannot be read."""
    true: list[str]
    lines: list[Line]

    def facts(self) -> dict[str, Any]:
        """Return the entry of this poster in metrics.json."""
        probabilities = {line.genre: round(line.probability, 6) for line in self.lines}
        named = [line.genre for line in self.lines if line.verdict in ("right", "wrong")]
        return {"id": self.id, "true": self.true, "named": named, "probabilities": probabilities}


@dataclass(frozen=True)
class Group:
    """Posters that are shown for one reason."""

    key: str
    title: str
    why: str
    examples: list[Example]


def choose_groups(inputs: ReportInputs) -> list[Group]:
    """Return four groups of posters: best, worst, most confident false positives, most confident false negatives."""
    model, truth = inputs.model, inputs.targets
    clipped = np.clip(model.probabilities, PROBABILITY_CLIP, 1.0 - PROBABILITY_CLIP)
    losses = clipped_cross_entropy(truth, model.probabilities).mean(axis=1)
    hits, sizes = (truth & model.named).sum(axis=1), truth.sum(axis=1) + model.named.sum(axis=1)
    f1 = 2.0 * hits / np.maximum(sizes, 1)
    exact = (truth == model.named).all(axis=1)
    best = [(row, set[str]()) for row in _first(inputs, np.lexsort((losses, ~exact)), exact)]
    worst = [(row, set[str]()) for row in _first(inputs, np.lexsort((-losses, f1)), ~exact)]
    moved = logit_difference(clipped, inputs.train_prevalence)
    wrong = _extremes(inputs, np.where(model.named & ~truth, moved, -np.inf))
    missed = _extremes(inputs, np.where(truth & ~model.named, -moved, -np.inf))
    bold = "Genres in bold have a probability far {} their share in training. The largest logit difference is first."
    lowest = "The posters with the lowest F1. Among posters with equal F1, the highest loss is first."
    return [
        _group(inputs, "best", "Best", "All genres are correct. The lowest loss is first.", best),
        _group(inputs, "worst", "Worst", lowest, worst),
        _group(inputs, "wrong", "Most confident wrong genres (false positives)", bold.format("above"), wrong),
        _group(inputs, "missed", "Most confident missed genres (false negatives)", bold.format("below"), missed),
    ]


def error_group(inputs: ReportInputs, errors: Iterable[LabelError]) -> Group:
    """Return the group of likely label errors, at most `ERRORS_SHOWN`. Of near-duplicates, only the first is shown."""
    why = "The model contradicts the labels of the genres in bold. The most probable errors are first."
    first: dict[int, LabelError] = {}
    for error in errors:
        first.setdefault(error.sample if inputs.units is None else int(inputs.units[error.sample]), error)
    shown = islice(first.values(), ERRORS_SHOWN)
    chosen = [(error.sample, {flag.genre for flag in error.flags}) for error in shown]
    return _group(inputs, "label-errors", "Likely label errors", why, chosen)


def logit_difference(probabilities: FloatArray, prevalence: FloatArray) -> FloatArray:
    """Return the logits of (N, G) ``probabilities`` minus the logits of the (G,) shares of the genres in training.

    The difference measures confidence. A probability of 30% is high for a genre that 1% of the posters have, and low
    for a genre that 60% of the posters have.
    """
    usual = np.clip(prevalence, MIN_PREVALENCE, 1.0 - MIN_PREVALENCE)
    return np.log(probabilities / (1.0 - probabilities)) - np.log(usual / (1.0 - usual))


def _extremes(inputs: ReportInputs, values: FloatArray) -> list[ChosenSample]:
    """Return the samples with the highest finite entries of (N, G) ``values``, each with the genre of this entry."""
    columns = values.argmax(axis=1)
    highest = values[np.arange(len(values)), columns]
    order = np.argsort(-highest, kind="stable")
    return [(row, {inputs.genres[columns[row]]}) for row in _first(inputs, order, np.isfinite(highest))]


def _first(inputs: ReportInputs, order: IntArray, wanted: BoolArray) -> list[int]:
    """Return the first samples of ``order`` that are ``wanted``. Of near-duplicates, only the first one is returned."""
    units, found = np.arange(len(order)) if inputs.units is None else inputs.units, dict[int, int]()
    for row in order[wanted[order]]:
        found.setdefault(int(units[row]), int(row))
        if len(found) == POSTERS_PER_GROUP:
            break
    return list(found.values())


def _group(inputs: ReportInputs, key: str, title: str, why: str, chosen: Iterable[ChosenSample]) -> Group:
    return Group(key, title, why, [example_of(inputs, *sample) for sample in chosen])


def example_of(inputs: ReportInputs, sample: int, reasons: set[str]) -> Example:
    """Return a poster with its genres: true, predicted, or in ``reasons``. The most probable genre is first."""
    model, truth = inputs.model, inputs.targets[sample]
    lines = []
    for column in np.argsort(-model.probabilities[sample], kind="stable"):
        genre, named, true = inputs.genres[column], bool(model.named[sample, column]), bool(truth[column])
        if named or true or genre in reasons:
            probability = float(model.probabilities[sample, column])
            lines.append(Line(genre, VERDICTS[named, true], probability, genre in reasons))
    picture = small_picture(inputs.picture, sample)
    return Example(sample, inputs.ids[sample], picture, inputs.genres_of(sample), lines)


def small_picture(picture: Callable[[int], bytes], sample: int) -> bytes | None:
    """Return a poster as a small JPEG, or None if the poster cannot be decoded."""
    try:
        small = decode(picture(sample), ANY)
    except (OSError, BadImage):
        return None  # the page then shows "unreadable image"
    small.thumbnail(MAX_PICTURE_SIZE, Image.Resampling.LANCZOS)
    return _small_jpeg(small)


def _small_jpeg(image: Image.Image) -> bytes:
    """Return a JPEG of at most `MAX_PICTURE_BYTES`. Reduce the quality first, and then the size."""
    while True:
        for quality in (82, 70, 55):
            data = jpeg(image, quality, optimize=True)
            if len(data) <= MAX_PICTURE_BYTES or min(image.size) < 8:
                return data
        image = image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)))
