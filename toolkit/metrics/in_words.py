"""Precision and recall in words for readers without knowledge of metrics. Report, demo and app show the same words."""

from __future__ import annotations

PRECISION_MEANS = "Precision (micro): the share of the named genres that the poster has"
RECALL_MEANS = "Recall (micro): the share of the true genres that the model names"


def precision_in_words(value: float, nouns: str = "genres") -> str:
    """Return a sentence about a precision from 0 to 1. ``nouns``: what the labels are."""
    return f"Of 100 {nouns} it names, {100 * value:.0f} are right"


def recall_in_words(value: float, kind: str = "genres that posters have") -> str:
    """Return a sentence about a recall from 0 to 1. ``kind``: the genres of which this share is found."""
    return f"Of 100 {kind}, it finds {100 * value:.0f}"
