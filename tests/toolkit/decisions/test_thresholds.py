"""The one threshold with the highest micro-F, against a brute-force search with the project's own metrics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from metric_tools import threshold_metrics

from toolkit.decisions.objective import Aim, single_threshold

F1 = Aim("f", 1.0)


def column(*values):
    return np.array(values, dtype=float).reshape(-1, 1)


@st.composite
def problems(draw):
    shape = draw(st.tuples(st.integers(1, 15), st.integers(1, 4)))
    targets = draw(arrays(np.bool_, shape))
    twentieths = draw(arrays(np.int64, shape, elements=st.integers(0, 20)))
    return targets, twentieths / 20


@pytest.mark.parametrize("beta", [1.0, 0.5])
@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_no_threshold_does_better(beta, problem):
    targets, probabilities = problem
    chosen = single_threshold(Aim("f", beta), targets, probabilities)
    key = "micro_f1" if beta == 1.0 else "micro_f0.5"
    value = threshold_metrics(targets, probabilities, chosen)[key]
    # Every score, and a grid between them: together every distinct set of predictions.
    for rival in np.union1d(np.linspace(0, 1, 101), probabilities):
        assert threshold_metrics(targets, probabilities, rival)[key] <= value + 1e-9
    if targets.any():
        assert (probabilities >= chosen).any()
        assert value > 0
    else:
        assert chosen == 0.5


def test_beats_a_grid_on_a_long_tailed_problem():
    rng = np.random.default_rng(1)
    prevalence = 0.6 / np.arange(1, 20) ** 1.5
    targets = rng.random((2000, 19)) < prevalence
    logits = np.log(prevalence / (1 - prevalence)) + 2 * (targets - 0.3) + rng.normal(size=targets.shape)
    probabilities = 1 / (1 + np.exp(-logits))
    chosen = single_threshold(F1, targets, probabilities)
    value = threshold_metrics(targets, probabilities, chosen)["micro_f1"]
    grid = [threshold_metrics(targets, probabilities, rival)["micro_f1"] for rival in np.linspace(0.01, 0.99, 99)]
    assert value >= max(grid)
    assert value > threshold_metrics(targets, probabilities, 0.5)["micro_f1"] + 0.01


def test_one_half_is_kept_where_it_is_as_good():
    # Anything in (0.1, 0.9] separates the classes.
    assert single_threshold(F1, column(1, 1, 0) > 0, column(0.95, 0.9, 0.1)) == 0.5


@pytest.mark.parametrize(("top", "named"), [(0.75, 1), (0.9, 4)])
def test_ties_go_to_the_nearest_to_one_half_then_to_the_higher(top, named):
    # Two positives, the first and the last: at the top score 2*1/(1+2) = 2/3, at 0.25 2*2/(4+2) = 2/3,
    # in between 2/4 and 2/5. 0.75 and 0.25 are equally near 0.5; 0.9 is farther from it than 0.25.
    scores = column(top, 0.7, 0.65, 0.25)
    assert (scores >= single_threshold(F1, column(1, 0, 0, 1) > 0, scores)).sum() == named


def test_something_is_predicted_when_every_score_is_low():
    scores = column(0.03, 0.02, 0.01)
    chosen = single_threshold(F1, column(1, 0, 0) > 0, scores)
    assert 0.02 < chosen <= 0.03 and type(chosen) is float


def test_equal_scores_are_never_split():
    # A sort may put the positive first, but a threshold of at most 0.4 names all three.
    for targets in (column(1, 0, 0), column(0, 0, 1)):
        assert single_threshold(F1, targets > 0, column(0.4, 0.4, 0.4)) <= 0.4


def test_the_order_of_the_samples_does_not_matter():
    rng = np.random.default_rng(2)
    targets = rng.random((300, 5)) < 0.3
    probabilities = rng.integers(0, 50, (300, 5)) / 50
    shuffle = rng.permutation(300)
    assert single_threshold(F1, targets, probabilities) == single_threshold(
        F1, targets[shuffle], probabilities[shuffle]
    )
