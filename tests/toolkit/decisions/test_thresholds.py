"""The chosen threshold against a brute-force search with the project's own metrics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from toolkit.decisions.global_threshold import choose_global_threshold
from toolkit.metrics.multilabel import threshold_metrics

AIMS = ("micro_f1", "macro_f1")


def column(*values):
    return np.array(values, dtype=float).reshape(-1, 1)


@st.composite
def problems(draw):
    shape = draw(st.tuples(st.integers(1, 15), st.integers(1, 4)))
    targets = draw(arrays(np.bool_, shape))
    twentieths = draw(arrays(np.int64, shape, elements=st.integers(0, 20)))
    return targets, twentieths / 20


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("aim", AIMS)
@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_no_threshold_does_better(aim, beta, problem):
    targets, probabilities = problem
    chosen = choose_global_threshold(targets, probabilities, aim, beta)
    key = aim if beta == 1.0 else aim.replace("f1", "f0.5")
    value = threshold_metrics(targets, probabilities, chosen)[key]
    # Every score, and a grid between them: together every distinct set of predictions.
    for rival in np.union1d(np.linspace(0, 1, 101), probabilities):
        assert threshold_metrics(targets, probabilities, rival)[key] <= value + 1e-9
    if targets.any():
        assert (probabilities >= chosen).any()
        assert value > 0
    else:
        assert chosen == 0.5


@pytest.mark.parametrize("aim", AIMS)
def test_beats_a_grid_on_a_long_tailed_problem(aim):
    rng = np.random.default_rng(1)
    prevalence = 0.6 / np.arange(1, 20) ** 1.5
    targets = rng.random((2000, 19)) < prevalence
    logits = np.log(prevalence / (1 - prevalence)) + 2 * (targets - 0.3) + rng.normal(size=targets.shape)
    probabilities = 1 / (1 + np.exp(-logits))
    chosen = choose_global_threshold(targets, probabilities, aim)
    value = threshold_metrics(targets, probabilities, chosen)[aim]
    grid = [threshold_metrics(targets, probabilities, rival)[aim] for rival in np.linspace(0.01, 0.99, 99)]
    assert value >= max(grid)
    assert value > threshold_metrics(targets, probabilities, 0.5)[aim] + 0.01


def test_the_aims_differ():
    # A: 3 positives at 0.9. B: 1 positive at 0.3 and, at 0.4, 4 negatives that must be named with it.
    # At 0.9: micro 6/(3+4) = 6/7,  macro (1 + 0)/2 = 1/2.
    # At 0.3: micro 8/(8+4) = 2/3,  macro (1 + 2*1/(5+1))/2 = 2/3.
    targets = np.array([[1, 1], [1, 0], [1, 0], [0, 0], [0, 0]])
    probabilities = np.array([[0.9, 0.3], [0.9, 0.4], [0.9, 0.4], [0.1, 0.4], [0.1, 0.4]])
    assert choose_global_threshold(targets, probabilities, "micro_f1") == 0.5  # same predictions as 0.9
    assert choose_global_threshold(targets, probabilities, "macro_f1") == 0.3


@pytest.mark.parametrize("aim", AIMS)
def test_one_half_is_kept_where_it_is_as_good(aim):
    # Anything in (0.1, 0.9] separates the classes.
    assert choose_global_threshold(column(1, 1, 0), column(0.95, 0.9, 0.1), aim) == 0.5


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.parametrize(("top", "expected"), [(0.75, 0.75), (0.9, 0.25)])
def test_ties_go_to_the_nearest_to_one_half_then_to_the_higher(aim, top, expected):
    # Two positives, the first and the last: at the top score 2*1/(1+2) = 2/3, at 0.25 2*2/(4+2) = 2/3,
    # in between 2/4 and 2/5. 0.75 and 0.25 are equally near 0.5; 0.9 is farther from it than 0.25.
    assert choose_global_threshold(column(1, 0, 0, 1), column(top, 0.7, 0.65, 0.25), aim) == expected


def test_rounding_noise_breaks_no_tie_of_the_macro_mean():
    # At 0.9: (A 1 + B 0)/2. At 0.4 all is named: (A 2/(3+1) + B 2/(3+1))/2. Both 1/2; 0.4 is nearer to 0.5.
    targets = np.array([[0, 0], [1, 0], [0, 1]])
    probabilities = np.array([[0.85, 0.4], [0.9, 0.55], [0.65, 0.4]])
    assert choose_global_threshold(targets, probabilities, "macro_f1") == 0.4


@pytest.mark.parametrize("aim", AIMS)
def test_something_is_predicted_when_every_score_is_low(aim):
    targets, probabilities = column(1, 0, 0), column(0.03, 0.02, 0.01)
    assert choose_global_threshold(targets, probabilities, aim) == 0.03


@pytest.mark.parametrize("aim", AIMS)
def test_equal_scores_are_never_split(aim):
    # A sort may put the positive first, but a threshold of 0.4 names all three.
    for targets in (column(1, 0, 0), column(0, 0, 1)):
        assert choose_global_threshold(targets, column(0.4, 0.4, 0.4), aim) == 0.4


def test_macro_ignores_a_genre_without_support_and_micro_does_not():
    # A: positives at 0.9 and 0.3, negatives at 0.1. B: no positive, 0.5 everywhere.
    targets = np.array([[1, 0], [1, 0], [0, 0], [0, 0]])
    probabilities = np.array([[0.9, 0.5], [0.3, 0.5], [0.1, 0.5], [0.1, 0.5]])
    # macro is A's F1 alone: 1 at 0.3.
    assert choose_global_threshold(targets, probabilities, "macro_f1") == 0.3
    # micro: 2*1/(1+2) = 2/3 at 0.9; below it B's four false positives: 2*2/(6+2) = 1/2 at 0.3.
    assert choose_global_threshold(targets, probabilities, "micro_f1") == 0.9
    # Nor do B's scores divide the stretch (0.6, 0.9] in which A is right.
    assert choose_global_threshold([[1, 0], [0, 0]], [[0.9, 0.8], [0.6, 0.8]], "macro_f1") == 0.9


@pytest.mark.parametrize("aim", AIMS)
def test_the_order_of_the_samples_does_not_matter(aim):
    rng = np.random.default_rng(2)
    targets = rng.random((300, 5)) < 0.3
    probabilities = rng.integers(0, 50, (300, 5)) / 50
    shuffle = rng.permutation(300)
    assert choose_global_threshold(targets, probabilities, aim) == choose_global_threshold(
        targets[shuffle], probabilities[shuffle], aim
    )


def test_float32_scores_keep_their_meaning():
    # The answer, a Python float, is the float32 score exactly: the same samples are named with it.
    probabilities = column(0.3, 0.2, 0.1).astype(np.float32)
    chosen = choose_global_threshold(column(1, 0, 0), probabilities)
    assert type(chosen) is float
    assert (probabilities >= chosen).ravel().tolist() == [True, False, False]


def test_broken_input_is_refused():
    with pytest.raises(ValueError, match="aim must be one of micro_f1, macro_f1, got 'accuracy'"):
        choose_global_threshold(column(1), column(0.5), "accuracy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        choose_global_threshold(column(1, 0), column(0.5, np.nan))
    with pytest.raises(ValueError, match="empty"):
        choose_global_threshold(np.zeros((0, 2)), np.zeros((0, 2)))
