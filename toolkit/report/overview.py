"""The first screen of a report: the main metrics in plain words, strong and weak genres, and some posters.

All sentences are made from the tables of the same report, or from metrics on the same samples and resamples.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from shards.visuals.templates import hundred
from toolkit.metrics.bootstrap import COVERAGE, Draws, Interval, confidence_intervals, interval_of, label_differences_to
from toolkit.metrics.in_words import PRECISION_MEANS, RECALL_MEANS, precision_in_words, recall_in_words
from toolkit.metrics.judgement import BETTER, judged
from toolkit.metrics.registry import METRICS
from toolkit.metrics.weighted import Outcome
from toolkit.report.examples import Example, example_of
from toolkit.report.inputs import ReportInputs
from toolkit.report.per_label import FEW_POSITIVES, listed
from toolkit.report.summary import MODEL

#: A genre is rare if fewer than this share of the training posters have it.
RARE = 0.05
#: Numbers of genres that are named as strong or weak, and of posters on the first screen.
NAMED, POSTERS = 3, 6


def tiles(inputs: ReportInputs, draws: dict[str, Draws], rounds: int) -> list[dict[str, Any]]:
    """Return three or four tiles. Each has one sentence in ``words``, a value, its interval and an explanation."""
    found = confidence_intervals(draws[MODEL])
    named, true = found["micro_precision"], found["micro_recall"]
    if not inputs.model.named.any():
        return [_tile("precision", "It names no genre for any poster", Interval(None, None, None), "")]
    rows = [
        _tile("precision", precision_in_words(_value(named)), named, f"{PRECISION_MEANS}: {_span(named)}."),
        _tile("recall", recall_in_words(_value(true)), true, f"{RECALL_MEANS}: {_span(true)}."),
    ]
    rare = np.flatnonzero((inputs.train_prevalence < RARE) & inputs.targets.any(axis=0))
    if rare.size:
        outcome = Outcome(inputs.targets[:, rare], inputs.model.named[:, rare], weights=inputs.weights)
        recall = interval_of(METRICS["micro_recall"], outcome, rounds, inputs.units)
        names = listed([inputs.genres[column] for column in rare])
        explanation = f"Recall over the genres that fewer than {RARE:.0%} of the training posters have ({names}): "
        words = recall_in_words(_value(recall), "rare genres")
        rows.append(_tile("rare", words, recall, f"{explanation}{_span(recall)}."))
    return [*rows, _guessing(draws)]


def _guessing(draws: dict[str, Draws]) -> dict[str, Any]:
    """Return the tile of the baseline always-top-k with the highest micro-F1."""
    keys = [key for key in draws if key.startswith("top-")]
    best = max(keys, key=lambda key: draws[key].plain.metrics["micro_f1"][0])
    found = confidence_intervals(draws[best])
    right, true, k = found["micro_precision"], found["micro_recall"], int(best.removeprefix("top-"))
    rule = "the most common genre" if k == 1 else f"the {k} most common genres"
    return _tile(
        "guessing",
        f"Guessing gets {hundred(right.value)} of 100 right and finds {hundred(true.value)}",
        right,
        f"Always naming {rule} of the training posters, without the picture: precision {_span(right)}, recall "
        f"{_span(true)}. Of the rules with 1, 2 and 3 genres, this rule has the highest micro-F1.",
    )


def _tile(key: str, words: str, interval: Interval, explanation: str) -> dict[str, Any]:
    return {"key": key, "words": words, **interval._asdict(), "explanation": explanation}


def _value(interval: Interval) -> float:
    assert interval.value is not None  # precision and recall are 0 if nothing is named
    return interval.value


def _span(interval: Interval) -> str:
    if interval.value is None or interval.low is None or interval.high is None:
        return "not defined"
    return f"{interval.value:.3f}, {COVERAGE:.0%} interval {interval.low:.3f} to {interval.high:.3f}"


def strengths(rows: list[dict[str, Any]], plain: Draws) -> dict[str, list[dict[str, Any]]]:
    """Return the ``good`` and the ``bad`` rows of the table of genres, at most NAMED of each.

    Only genres with at least FEW_POSITIVES posters can be named. A genre is good if its F1 is better than the F1 of a
    rule that names the genre for every poster (the rule of judgement.py, corrected for all these genres). The good
    genres with the highest F1 are returned. The bad genres are the genres that are not good, with the lowest F1.

    rows: the table of genres, in the order of the model. plain: the resampled metrics of the model.
    """
    differences = label_differences_to(plain, "f1", np.array([_always(row) for row in rows]))
    known = [at for at, row in enumerate(rows) if row["support"] >= FEW_POSITIVES and row["f1"] is not None]
    words = judged([differences[at] for at in known], ["higher"] * len(known))
    good = [rows[at] for at, judgement in zip(known, words, strict=True) if judgement.words == BETTER]
    bad = sorted((rows[at] for at in known if rows[at] not in good), key=lambda row: row["f1"])[:NAMED]
    good = sorted(good, key=lambda row: -row["f1"])[:NAMED]
    keys = ("genre", "support", "precision", "recall", "f1")
    return {
        name: [{key: row[key] for key in keys} for row in chosen] for name, chosen in (("good", good), ("bad", bad))
    }


def _always(row: dict[str, Any]) -> float:
    """F1 of a rule that names the genre for every poster."""
    prevalence = row["prevalence"]
    return 2.0 * prevalence / (1.0 + prevalence)


def drawn_posters(inputs: ReportInputs) -> list[Example]:
    """Return posters that are chosen by a hash of their ids, so that the choice does not depend on the model.

    Of near-duplicates, only one poster can be chosen. Unreadable pictures are left out.
    """
    order = sorted(range(len(inputs.targets)), key=lambda row: hashlib.sha256(inputs.ids[row].encode()).digest())
    found: list[Example] = []
    units: set[int] = set()
    for row in order:
        unit = row if inputs.units is None else int(inputs.units[row])
        if unit not in units:
            units.add(unit)
            example = example_of(inputs, row, set())
            if example.picture is not None:
                found.append(example)
        if len(found) == POSTERS:
            break
    return found
