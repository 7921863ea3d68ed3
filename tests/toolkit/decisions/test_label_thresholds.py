"""The constrained F ascent: it climbs, keeps micro-F, smooths, and generalises where the naive choice fails."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from metric_tools import threshold_metrics

from toolkit.decisions.label_thresholds import COMMON_EVIDENCE, MACRO_WEIGHTS, ascend, balanced_thresholds
from toolkit.decisions.sweep import log_odds, make_sweep, smoothed_targets
from toolkit.metrics.helpers import sigmoid


def make_sweeps(truth, probabilities, expected=None):
    smoothed = smoothed_targets(truth, probabilities if expected is None else expected)
    return [make_sweep(truth[:, g], smoothed[:, g], probabilities[:, g]) for g in range(truth.shape[1])]


def f_measure(hits, named, support, beta):
    square = beta * beta
    return (1 + square) * hits / (square * support + named) if square * support + named else 0.0


def objective(sweeps, positions, beta, weight):
    """Micro-F + weight * macro-F of the smoothed counts, in plain words."""
    hits = [s.smooth[p] for s, p in zip(sweeps, positions, strict=True)]
    named = [s.named[p] for s, p in zip(sweeps, positions, strict=True)]
    support = [s.smooth[-1] for s in sweeps]
    active = [g for g, s in enumerate(sweeps) if s.support > 0]
    macro = [f_measure(hits[g], named[g], support[g], beta) for g in active]
    return f_measure(sum(hits), sum(named), sum(support), beta) + weight * (np.mean(macro) if macro else 0.0)


@st.composite
def problems(draw):
    shape = draw(st.tuples(st.integers(1, 15), st.integers(1, 4)))
    truth = draw(arrays(np.bool_, shape))
    probabilities = draw(arrays(np.int64, shape, elements=st.integers(1, 19))) / 20
    return truth, probabilities, draw(st.integers(1, 19)) / 20


@settings(max_examples=100, deadline=None)
@given(problem=problems(), beta=st.sampled_from([1.0, 0.5]), weight=st.sampled_from(MACRO_WEIGHTS))
def test_the_end_is_a_maximum_in_every_genre_and_not_under_the_start(problem, beta, weight):
    truth, probabilities, single = problem
    sweeps = make_sweeps(truth, probabilities)
    start = np.array([sweep.position(single) for sweep in sweeps])
    end = ascend(sweeps, start, beta, weight)
    value = objective(sweeps, end, beta, weight)
    assert value >= objective(sweeps, start, beta, weight) - 1e-12
    for genre, sweep in enumerate(sweeps):
        if sweep.support == 0:
            assert end[genre] == start[genre]
            continue
        for rival in range(len(sweep.named)):
            other = end.copy()
            other[genre] = rival
            assert objective(sweeps, other, beta, weight) <= value + 1e-9


@settings(max_examples=100, deadline=None)
@given(problem=problems(), beta=st.sampled_from([1.0, 0.5]), slack=st.sampled_from([0.0, 0.01, 0.2]))
def test_micro_f_never_falls_below_the_single_threshold_by_more_than_the_slack(problem, beta, slack):
    truth, probabilities, single = problem
    thresholds, weight = balanced_thresholds(make_sweeps(truth, probabilities), single, beta, slack)
    assert ((thresholds >= 0) & (thresholds <= 1)).all()
    key = "micro_f1" if beta == 1.0 else "micro_f0.5"
    least = threshold_metrics(truth, probabilities, single)[key]
    assert threshold_metrics(truth, probabilities, thresholds)[key] >= (1 - slack) * least - 1e-9
    assert (thresholds[~truth.any(axis=0)] == single).all()
    if weight == 0.0:
        assert (thresholds == single).all()


@pytest.mark.parametrize("support", [1, 2, 8, 60])
def test_few_positives_fall_back_toward_the_single_threshold(support):
    # One common genre, and one whose best threshold of its own is near 0.1 whatever its support.
    rng = np.random.default_rng(support)
    count = 400
    truth = np.zeros((count, 2), bool)
    truth[:240, 0] = True
    truth[:support, 1] = True
    probabilities = np.column_stack(
        [np.where(truth[:, 0], 0.7, 0.2) + 0.1 * rng.random(count), 0.05 + 0.01 * rng.random(count)]
    )
    probabilities[:support, 1] = 0.2 + 0.01 * rng.random(support)
    sweeps = make_sweeps(truth, probabilities, truth.astype(float))
    start = np.array([sweep.position(0.5) for sweep in sweeps])
    own = sweeps[1].threshold(int(ascend(sweeps, start, 1.0, 1.0)[1]), 0.5)
    assert own < 0.2
    thresholds, _ = balanced_thresholds(sweeps, 0.5, 1.0)
    keep = support / (support + COMMON_EVIDENCE)
    assert thresholds[1] == pytest.approx(sigmoid(keep * log_odds(own)))  # log-odds of 0.5 are 0
    assert thresholds[0] == 0.5  # as good as its own


PREVALENCE = np.array(
    [.64, .45, .25, .18, .14, .12, .1, .09, .07, .06, .055, .05, .045, .04, .03, .02, .012, .006, .003]
)  # fmt: skip


def long_tailed(rng, count, separation):
    """Calibrated probabilities of a weak model (ROC-AUC 0.6 to 0.7) on genres from 64% to 0.3%."""
    truth = rng.random((count, len(PREVALENCE))) < PREVALENCE
    scores = separation * truth + rng.normal(size=truth.shape)
    return truth, sigmoid(np.log(PREVALENCE / (1 - PREVALENCE)) + separation * (scores - separation / 2))


def test_fresh_samples_gain_macro_f1_at_no_micro_f1_where_the_naive_choice_drowns():
    gains: dict[str, list[tuple[float, float]]] = {"balanced": [], "slack": [], "naive": []}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        separation = rng.uniform(0.36, 0.74, len(PREVALENCE))
        truth, probabilities = long_tailed(rng, 400, separation)
        fresh, fresh_probabilities = long_tailed(rng, 10_000, separation)
        candidates = np.unique(probabilities)
        micro = [threshold_metrics(truth, probabilities, t)["micro_f1"] for t in candidates[::40]]
        single = float(candidates[::40][int(np.argmax(micro))])
        sweeps = make_sweeps(truth, probabilities)
        chosen, weight = balanced_thresholds(sweeps, single, 1.0)
        assert 0.0 < weight <= 1.0
        spending, _ = balanced_thresholds(sweeps, single, 1.0, slack=0.01)
        own = [2 * s.hits / (s.named + s.support + 1e-12) for s in sweeps]
        naive = np.array([s.threshold(int(np.argmax(f)), single) for s, f in zip(sweeps, own, strict=True)])
        before = threshold_metrics(fresh, fresh_probabilities, single)
        for name, thresholds in (("balanced", chosen), ("slack", spending), ("naive", naive)):
            after = threshold_metrics(fresh, fresh_probabilities, thresholds)
            gains[name].append((after["micro_f1"] - before["micro_f1"], after["macro_f1"] / before["macro_f1"]))
    micro, macro = np.mean(gains["balanced"], axis=0)
    assert micro > -0.005 and macro > 1.1
    spent_micro, spent_macro = np.mean(gains["slack"], axis=0)
    assert spent_micro > micro - 0.01 and spent_macro > 1.05 * macro
    assert np.mean(gains["naive"], axis=0)[0] < -0.05
