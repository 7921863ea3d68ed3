"""Which genres a prediction names: thresholds of single genres, the k most probable genres, and bad values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from failing import fails

from shards.dataset.labels import LabelSet
from toolkit.inference.naming import EVERY, NamingOptions, parse_thresholds

LABELS = LabelSet(("Drama", "Sci-Fi", "Film Noir", "a=b", "0.5"))
OWN = np.array([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["0.3"], [0.3] * 5),
        (["Drama=0.9"], [0.9, 0.2, 0.3, 0.4, 0.5]),
        (["Drama=0.9", "0.3", "a=b=0"], [0.9, 0.3, 0.3, 0.0, 0.3]),
        (["Film Noir=1", "Film Noir=0.25"], [0.1, 0.2, 0.25, 0.4, 0.5]),  # the last value
        (["0.5=0.75"], [0.1, 0.2, 0.3, 0.4, 0.75]),
    ],
)
def test_given_thresholds_replace_the_models(texts: list[str], expected: list[float]):
    options = NamingOptions(threshold=parse_thresholds(texts))
    assert options.thresholds(OWN, LABELS).tolist() == expected
    assert (
        OWN.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5] and NamingOptions().thresholds(OWN, LABELS).tolist() == OWN.tolist()
    )


@pytest.mark.parametrize("text", ["", "Drama", "Drama=", "=0.5", "Drama=half", "0,5", "Drama=0.5="])
def test_other_texts_are_refused(text: str):
    with fails("option-value", "--threshold", "GENRE=NUMBER", repr(text)):
        parse_thresholds([text])


@pytest.mark.parametrize("number", ["7", "-0.1", "nan", "inf"])
def test_a_threshold_is_from_0_to_1(number: str):
    with fails("option-value", "--threshold must be from 0 to 1", float(number)):
        parse_thresholds([number])
    with fails("option-value", "'a=b'", "from 0 to 1", float(number)):
        parse_thresholds([f"a=b={number}"])
    for value in (float(number), {EVERY: float(number)}):  # in Python, too
        with fails("option-value", "--threshold", float(number)):
            NamingOptions(threshold=value)


@pytest.mark.parametrize(("genre", "facts"), [("drama", ["'drama'", "'Drama'"]), ("xyz", ["'xyz'", "Film Noir, a=b"])])
def test_a_genre_that_the_model_lacks_is_refused(genre: str, facts: list[str]):
    with fails("option-value", "--threshold", *facts):
        NamingOptions(threshold={genre: 0.5}).thresholds(OWN, LABELS)


def test_the_most_probable_genres_are_named():
    table = np.array([[0.1, 0.9, 0.5, 0.5, 0.2], [0.0] * 5, [math.nan] * 5])
    for k, expected in ((1, [[1], [0], []]), (2, [[1, 2], [0, 1], []]), (5, [[0, 1, 2, 3, 4]] * 2 + [[]])):
        options = NamingOptions(top_k=k)
        assert [np.flatnonzero(row).tolist() for row in options.named(table, OWN)] == expected
        assert [np.flatnonzero(options.named(row, OWN)).tolist() for row in table] == expected
        assert options.facts() == {"top_k": k} and options.thresholds(OWN, LABELS).tolist() == OWN.tolist()


def test_k_is_from_1_to_the_number_of_genres():
    NamingOptions(top_k=5).require_fit(LABELS)
    with fails("option-value", "--top-k", "5", "6"):
        NamingOptions(top_k=6).require_fit(LABELS)
    with fails("option-value", "--top-k", "0"):
        NamingOptions(top_k=0)
    both: dict[str, Any] = {"top_k": 2, "threshold": 0.5}
    with fails("option-conflict", "--top-k", "--threshold"):
        NamingOptions(**both)


def test_two_genres_in_one_option_are_told_apart():
    with fails("option-value", "the model has no genre ", "; give --threshold once for each genre"):
        NamingOptions(threshold=parse_thresholds(["Drama=0.5,Comedy=0.4"])).require_fit(LABELS)
