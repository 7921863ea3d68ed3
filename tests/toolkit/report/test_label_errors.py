"""Likely label errors: planted ones are found, and cleanlab itself is the referee."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from report_tools import inputs

from shards.errors import UserError
from toolkit.report import label_errors
from toolkit.report.examples import ERRORS_SHOWN, error_group
from toolkit.report.label_errors import LabelError, find_label_errors

GENRES = ["Comedy", "Drama", "Horror", "War"]
needs_cleanlab = pytest.mark.skipif(not label_errors.have_cleanlab(), reason="cleanlab is not installed")


def planted() -> tuple[np.ndarray, np.ndarray, set[int]]:
    """A good model's probabilities, targets of which six are swapped, and which."""
    rng = np.random.default_rng(0)
    targets = rng.random((150, 4)) < [0.5, 0.4, 0.2, 0.1]
    probabilities = np.clip(np.where(targets, 0.9, 0.08) + rng.normal(0, 0.04, targets.shape), 0.01, 0.99)
    wrong = {7, 30, 61, 88, 101, 140}
    for row in wrong:
        # Surer than the model usually is, which is what confident learning asks for.
        probabilities[row, row % 3] = 0.98 if targets[row, row % 3] else 0.02
        targets[row, row % 3] ^= True
    return targets, probabilities, wrong


@needs_cleanlab
def test_planted_errors_come_first_with_their_genre():
    targets, probabilities, wrong = planted()
    found = find_label_errors(targets, probabilities, GENRES)
    assert {error.sample for error in found[: len(wrong)]} == wrong
    for error in found[: len(wrong)]:
        column = error.sample % 3
        (flag,) = [flag for flag in error.flags if flag.genre == GENRES[column]]
        assert flag.given == targets[error.sample, column]
        assert flag.probability == probabilities[error.sample, column]
        assert flag.given == (flag.probability < 0.5)  # the model thinks the opposite
    scores = [error.score for error in found]
    assert scores == sorted(scores)


@needs_cleanlab
def test_suspects_are_cleanlabs():
    from cleanlab.multilabel_classification.filter import find_label_issues

    targets, probabilities, _ = planted()
    lists = [np.flatnonzero(row).tolist() for row in targets]
    expected = np.flatnonzero(find_label_issues(lists, probabilities, n_jobs=1))
    found = find_label_errors(targets, probabilities, GENRES)
    assert sorted(error.sample for error in found) == expected.tolist()


@needs_cleanlab
def test_genres_that_all_or_none_have_are_left_out():
    targets, probabilities, wrong = planted()
    targets[:, 3] = False
    found = find_label_errors(targets, probabilities, GENRES)
    assert "War" not in {flag.genre for error in found for flag in error.flags}
    assert {error.sample for error in found} >= wrong
    assert find_label_errors(np.ones((5, 4), dtype=bool), np.full((5, 4), 0.5), GENRES) == []


def test_without_cleanlab_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(UserError, match="finding label errors needs cleanlab"):
        find_label_errors(*planted()[:2], GENRES)


def test_of_near_duplicates_only_the_first_error_has_a_picture():
    found, given = [LabelError(sample, 0.1, []) for sample in range(60)], inputs(other=False)
    assert [example.sample for example in error_group(given, found).examples] == list(range(ERRORS_SHOWN))
    pairs = replace(given, units=np.arange(len(given.targets)) // 2)
    assert [example.sample for example in error_group(pairs, found).examples] == list(range(0, 2 * ERRORS_SHOWN, 2))
