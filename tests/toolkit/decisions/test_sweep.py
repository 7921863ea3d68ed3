"""A sweep's counts against counting, and its thresholds against what they name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from toolkit.decisions.sweep import OWN_EVIDENCE, log_odds, make_sweep, smoothed_targets

columns = st.integers(1, 30).flatmap(
    lambda count: st.tuples(
        arrays(np.bool_, count), arrays(np.float64, count, elements=st.integers(0, 20).map(lambda n: n / 20))
    )
)


@settings(max_examples=150, deadline=None)
@given(column=columns, near=st.floats(0, 1))
def test_every_position_is_what_its_threshold_names(column, near):
    truth, probabilities = column
    smoothed = 0.25 * truth + 0.1
    sweep = make_sweep(truth, smoothed, probabilities)
    assert len(sweep.named) == len(set(probabilities)) + 1
    for position in range(len(sweep.named)):
        threshold = sweep.threshold(position, near)
        assert 0.0 <= threshold <= 1.0
        if position == 0 and probabilities.max() == 1.0:
            continue  # no threshold up to 1 leaves out a probability of 1
        named = probabilities >= threshold
        assert sweep.position(threshold) == position
        assert sweep.named[position] == named.sum()
        assert sweep.hits[position] == (named & truth).sum()
        assert sweep.smooth[position] == pytest.approx(smoothed[named].sum())
    assert sweep.threshold(sweep.position(near), near) == near  # it names the same already


def test_thresholds_keep_away_from_scores():
    sweep = make_sweep(np.array([True, False]), np.array([1.0, 0.0]), np.array([0.8, 0.2]))
    assert sweep.threshold(1) == pytest.approx(0.5)  # the middle in log-odds
    assert sweep.threshold(0) == 0.9 and sweep.threshold(2) == 0.1


def test_rare_genres_are_smoothed_more():
    rng = np.random.default_rng(0)
    truth = rng.random((1000, 2)) < (0.6, 0.005)
    expected = np.full((1000, 2), 0.3)
    smoothed = smoothed_targets(truth, expected)
    for column, support in enumerate(truth.sum(axis=0)):
        own = support / (support + OWN_EVIDENCE)
        np.testing.assert_allclose(smoothed[:, column], np.where(truth[:, column], own, 0) + (1 - own) * 0.3)
    assert (smoothed_targets(np.zeros((3, 1), bool), expected[:3, :1]) == 0.3).all()


def test_log_odds_are_finite_and_inverse():
    assert np.isfinite(log_odds([0.0, 1.0])).all()
    values = np.linspace(-20, 20, 41)
    np.testing.assert_allclose(log_odds(1 / (1 + np.exp(-values))), values, atol=1e-6)
