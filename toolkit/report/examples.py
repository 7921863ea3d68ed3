"""Posters to look at, with their pictures: the best, the worst, the most confident errors, the likely label errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from shards.inputs.images import ANY, BadImage, decode, jpeg
from toolkit.metrics.multilabel import PROBABILITY_CLIP, FloatArray, clipped_cross_entropy
from toolkit.report.inputs import ReportInputs
from toolkit.report.label_errors import LabelError

#: Posters per group.
POSTERS_PER_GROUP = 12
#: Pixels of a picture at most, which the page shows at half of it, and bytes.
PICTURE, MOST_BYTES = (320, 480), 25_000
#: Shares in training under this count as this: a genre that was never seen has no logit.
RARE_GENRES = 1e-4

#: (named, true) -> what can be said of a genre; ``neither`` is shown only where there is a reason to tell of it.
VERDICTS = {(True, True): "right", (True, False): "wrong", (False, True): "missed", (False, False): "neither"}
#: A sample, and the genres for which it is shown.
Told = tuple[int, set[str]]


@dataclass(frozen=True)
class Line:
    """A genre under a poster."""

    genre: str
    verdict: str
    """Of `VERDICTS`."""
    probability: float
    told: bool
    """Whether the poster is shown because of this genre."""


@dataclass(frozen=True)
class Example:
    """A poster of the page."""

    sample: int
    id: str
    picture: bytes | None
    """A small JPEG; None if the image cannot be read."""
    true: list[str]
    lines: list[Line]

    def facts(self) -> dict[str, Any]:
        """What goes into metrics.json."""
        said = {line.genre: round(line.probability, 6) for line in self.lines}
        named = [line.genre for line in self.lines if line.verdict in ("right", "wrong")]
        return {"id": self.id, "true": self.true, "named": named, "probabilities": said}


@dataclass(frozen=True)
class Group:
    """Posters that are shown for one reason."""

    key: str
    title: str
    why: str
    examples: list[Example]


def choose_groups(inputs: ReportInputs) -> list[Group]:
    """Best, worst, wrong genres and missed genres; a poster comes at most once per group."""
    model, truth = inputs.model, inputs.targets
    clipped = np.clip(model.probabilities, PROBABILITY_CLIP, 1.0 - PROBABILITY_CLIP)
    losses = clipped_cross_entropy(truth, model.probabilities).mean(axis=1)
    hits, sizes = (truth & model.named).sum(axis=1), truth.sum(axis=1) + model.named.sum(axis=1)
    f1 = 2.0 * hits / np.maximum(sizes, 1)
    exact = (truth == model.named).all(axis=1)
    best = [(int(row), set[str]()) for row in np.lexsort((losses, ~exact)) if exact[row]][:POSTERS_PER_GROUP]
    worst = [(int(row), set[str]()) for row in np.lexsort((-losses, f1)) if not exact[row]][:POSTERS_PER_GROUP]
    moved = evidence(clipped, inputs.train_prevalence)
    wrong = _extremes(inputs, np.where(model.named & ~truth, moved, -np.inf))
    missed = _extremes(inputs, np.where(truth & ~model.named, -moved, -np.inf))
    bold = "The genre in bold is farthest {} what its share of the training posters would suggest."
    fewest = "Fewest genres right, by the poster's own F1; most loss first."
    return [
        _group(inputs, "best", "All right, and most certain", "Every genre right; least loss first.", best),
        _group(inputs, "worst", "Worst", fewest, worst),
        _group(inputs, "wrong", "Most confident: named, but wrong", bold.format("above"), wrong),
        _group(inputs, "missed", "Most confident: true, but not named", bold.format("below"), missed),
    ]


def error_group(inputs: ReportInputs, errors: Iterable[LabelError]) -> Group:
    """The likely label errors."""
    why = "The genres in bold are those whose given label the model contradicts; the likeliest errors come first."
    told = [(error.sample, {flag.genre for flag in error.flags}) for error in errors]
    return _group(inputs, "label-errors", "Likely label errors", why, told)


def evidence(probabilities: FloatArray, prevalence: FloatArray) -> FloatArray:
    """(N, G): how far the picture moved the model from the genre's share in training, in the logit.

    What a model is sure of is not its highest probability: 30% are a bold word for a genre that one poster in a
    hundred has, and 60% a cautious one for a genre that most have.
    """
    usual = np.clip(prevalence, RARE_GENRES, 1.0 - RARE_GENRES)
    return np.log(probabilities / (1.0 - probabilities)) - np.log(usual / (1.0 - usual))


def _extremes(inputs: ReportInputs, values: FloatArray) -> list[Told]:
    """The samples of the highest finite values (N, G), and the genre of each one's highest."""
    columns = values.argmax(axis=1)
    highest = values[np.arange(len(values)), columns]
    order = np.argsort(-highest, kind="stable")[:POSTERS_PER_GROUP]
    return [(int(row), {inputs.genres[columns[row]]}) for row in order if np.isfinite(highest[row])]


def _group(inputs: ReportInputs, key: str, title: str, why: str, chosen: Iterable[Told]) -> Group:
    return Group(key, title, why, [example_of(inputs, *told) for told in chosen])


def example_of(inputs: ReportInputs, sample: int, told: set[str]) -> Example:
    """A poster with its true genres, those named, and those in ``told``; the most probable first."""
    model, truth = inputs.model, inputs.targets[sample]
    lines = []
    for column in np.argsort(-model.probabilities[sample], kind="stable"):
        genre, named, true = inputs.genres[column], bool(model.named[sample, column]), bool(truth[column])
        if named or true or genre in told:
            probability = float(model.probabilities[sample, column])
            lines.append(Line(genre, VERDICTS[named, true], probability, genre in told))
    picture = small_picture(inputs.picture, sample)
    return Example(sample, inputs.ids[sample], picture, inputs.genres_of(sample), lines)


def small_picture(picture: Callable[[int], bytes], sample: int) -> bytes | None:
    """A poster as a small JPEG; None if it cannot be decoded."""
    try:
        small = decode(picture(sample), ANY)
    except (OSError, BadImage):
        return None  # the card says so; the page is worth having without it
    small.thumbnail(PICTURE, Image.Resampling.LANCZOS)
    return _small_jpeg(small)


def _small_jpeg(image: Image.Image) -> bytes:
    """A JPEG of at most `MOST_BYTES`: of less quality, then of fewer pixels, until it is."""
    while True:
        for quality in (82, 70, 55):
            data = jpeg(image, quality, optimize=True)
            if len(data) <= MOST_BYTES or min(image.size) < 8:
                return data
        image = image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)))
