"""Calibration errors and reliability curves against a plain loop and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from metric_tools import calibration_summary

from toolkit.metrics.calibration_error import label_calibration_errors

BENCH = Path(__file__).parents[2] / "bench"


def plain_ece(targets, probabilities, bins):
    """As the definition reads, an element at a time."""
    held: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for y, p in zip(targets.ravel(), probabilities.ravel(), strict=True):
        held[min(int(p * bins), bins - 1)].append((float(y), float(p)))
    error = 0.0
    for bin in held:
        if bin:
            frequency = sum(y for y, _ in bin) / len(bin)
            confidence = sum(p for _, p in bin) / len(bin)
            error += len(bin) / targets.size * abs(frequency - confidence)
    return error


problems = st.tuples(st.integers(1, 30), st.integers(1, 4)).flatmap(
    lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.float64, shape, elements=st.floats(0, 1, width=32)))
)


@settings(max_examples=100, deadline=None)
@given(problem=problems, bins=st.integers(1, 20))
def test_it_is_the_plain_definition(problem, bins):
    targets, probabilities = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.metrics.calibration_error.BINS", bins)
        error = calibration_summary(targets, probabilities)["ece"]
        errors = label_calibration_errors(targets, probabilities)
    assert error == pytest.approx(plain_ece(targets, probabilities, bins), abs=1e-12)
    for column in range(targets.shape[1]):
        alone = plain_ece(targets[:, [column]], probabilities[:, [column]], bins)
        assert errors[column] == pytest.approx(alone, abs=1e-12)


def test_by_hand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.metrics.calibration_error.BINS", 2)
    targets = np.array([[1, 0], [1, 0], [0, 0], [1, 1]])
    probabilities = np.array([[0.9, 0.1], [0.7, 0.1], [0.7, 0.2], [0.7, 0.1]])
    # Halves: upper 4 elements of genre 0, mean 0.75, 3 of 4 positive: 0; lower: mean 0.125, 1 of 4: 0.125.
    assert calibration_summary(targets, probabilities)["ece"] == pytest.approx(0.5 * 0.125)
    assert label_calibration_errors(targets, probabilities) == pytest.approx([0.0, 0.125])
    low, high = calibration_summary(targets, probabilities)["curve"]
    assert low == {"centre": 0.25, "count": 4, "predicted": pytest.approx(0.125), "observed": pytest.approx(0.25)}
    assert (high["centre"], high["count"], high["observed"]) == (0.75, 4, 0.75)


def test_pooling_may_hide_what_genres_show():
    # One genre named too often, the other too seldom by as much, at the same probability.
    targets = np.array([[0, 1], [0, 1], [0, 1], [0, 1]])
    probabilities = np.full((4, 2), 0.5)
    assert calibration_summary(targets, probabilities)["ece"] == 0.0
    assert label_calibration_errors(targets, probabilities).tolist() == [0.5, 0.5]
    summary = calibration_summary(targets, probabilities)
    assert (summary["ece"], summary["ece_macro"], len(summary["curve"])) == (0.0, 0.5, 15)


def test_frequencies_that_are_met_give_no_error_and_others_do():
    rng = np.random.default_rng(0)
    probabilities = rng.random((20_000, 3))
    targets = rng.random((20_000, 3)) < probabilities
    assert calibration_summary(targets, probabilities)["ece"] < 0.01
    assert calibration_summary(targets, probabilities**2)["ece"] > 0.1


@settings(max_examples=50, deadline=None)
@given(problem=problems)
def test_a_curve_holds_every_element_once(problem):
    targets, probabilities = problem
    rows = calibration_summary(targets, probabilities)["curve"]
    assert sum(row["count"] for row in rows) == targets.size
    assert all((row["predicted"] is None) == (row["count"] == 0) == (row["observed"] is None) for row in rows)
    positives = sum(row["count"] * row["observed"] for row in rows if row["count"])
    assert positives == pytest.approx(targets.sum())


def test_chance_alone_gives_an_error_that_shrinks_with_the_samples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from study_tables import calibration_error_by_chance

    rng = np.random.default_rng(0)
    scores = rng.random((400, 5)) * 0.4
    mean, low, high = calibration_error_by_chance(scores)
    assert 0 < low < mean < high
    right = calibration_summary(rng.random(scores.shape) < scores, scores)["ece"]
    wrong = calibration_summary(rng.random(scores.shape) < scores / 2, scores)["ece"]
    assert low <= right <= high < wrong
    more, _, _ = calibration_error_by_chance(np.tile(scores, (25, 1)))
    assert more == pytest.approx(mean / 5, rel=0.3)
    assert calibration_error_by_chance(np.array([[0.0, 1.0]])) == (0.0, 0.0, 0.0)
