"""The bootstrap, and the weighted metrics under it: scikit-learn with sample weights is the referee."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from metric_tools import calibration_summary, outcome_of, threshold_metrics
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    fbeta_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from toolkit.metrics.bootstrap import (
    Difference,
    bootstrap,
    confidence_intervals,
    label_differences,
    label_intervals,
    measured,
    paired_difference,
    resample_weights,
)
from toolkit.metrics.helpers import clipped_cross_entropy
from toolkit.metrics.registry import METRICS, values
from toolkit.metrics.weighted import Outcome

pytestmark = pytest.mark.filterwarnings("error")

PREVALENCE = np.array([0.6, 0.3, 0.1, 0.05, 0.02])


def simulate(num_samples: int, seed: int = 0, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Targets of long-tailed prevalence, and calibrated probabilities of some skill."""
    rng = np.random.default_rng(seed)
    targets = rng.random((num_samples, 5)) < PREVALENCE
    logits = skill * (rng.normal(size=targets.shape) + targets - 0.5) + np.log(PREVALENCE / (1 - PREVALENCE))
    return targets, 1 / (1 + np.exp(-logits))


@st.composite
def problems(draw):
    """(targets, probabilities, weights); coarse scores, so that ties are common, and some weights of 0."""
    shape = draw(st.tuples(st.integers(2, 20), st.integers(1, 4)))
    targets = draw(arrays(np.int64, shape, elements=st.integers(0, 1)))
    tenths = draw(arrays(np.int64, shape, elements=st.integers(0, 10)))
    weights = draw(arrays(np.int64, shape[0], elements=st.integers(0, 3)).filter(lambda w: w.any()))
    return targets, tenths / 10, weights


@given(problems())
@settings(max_examples=60, deadline=None)
def test_weights_of_one_give_the_plain_metrics(problem):
    targets, probabilities, _ = problem
    outcome = outcome_of(targets, probabilities >= 0.5, probabilities)
    found = measured(outcome, np.ones((1, len(targets))))
    plain = threshold_metrics(targets, probabilities, 0.5) | values(outcome, "ranking")
    plain |= calibration_summary(targets, probabilities)
    plain["loss"] = clipped_cross_entropy(targets.astype(bool), probabilities).mean()
    assert found.metrics.keys() == {key for key, metric in METRICS.items() if not metric.count}
    for name, got in found.metrics.items():
        if plain[name] is None:
            assert np.isnan(got[0])
        else:
            assert got[0] == pytest.approx(plain[name], abs=1e-12), name


@given(problems())
@settings(max_examples=60, deadline=None)
def test_weighted_metrics_are_scikit_learns(problem):
    targets, probabilities, weights = problem
    named = probabilities >= 0.4
    found = measured(outcome_of(targets, named, probabilities), weights[None])
    got = {name: values[0] for name, values in found.metrics.items()}
    support = weights @ targets
    some, both = np.flatnonzero(support > 0), np.flatnonzero((support > 0) & (support < weights.sum()))
    columns = [(targets[:, g], probabilities[:, g]) for g in range(targets.shape[1])]
    expected = {
        "mAP": [average_precision_score(*columns[g], sample_weight=weights) for g in some],
        "roc_auc": [roc_auc_score(*columns[g], sample_weight=weights) for g in both],
        "loss": [log_loss(t, np.clip(p, 1e-7, 1 - 1e-7), sample_weight=weights, labels=[0, 1]) for t, p in columns],
    }
    for name, each in expected.items():
        assert got[name] == pytest.approx(np.mean(each), abs=1e-9) if each else np.isnan(got[name])
    # One column per element: micro averages weigh every element of a sample alike.
    flat = {"y_true": targets.ravel(), "y_pred": named.ravel(), "zero_division": 0}
    flat["sample_weight"] = np.repeat(weights, targets.shape[1])
    assert got["micro_f1"] == pytest.approx(f1_score(**flat))
    assert got["micro_f0.5"] == pytest.approx(fbeta_score(**flat, beta=0.5))
    assert got["micro_precision"] == pytest.approx(precision_score(**flat))
    assert got["micro_recall"] == pytest.approx(recall_score(**flat))
    f1 = [f1_score(targets[:, g], named[:, g], sample_weight=weights, zero_division=0) for g in some]
    assert got["macro_f1"] == pytest.approx(np.mean(f1) if f1 else 0.0)
    right = (targets == named).all(axis=1)
    exact = accuracy_score(np.ones(len(right)), right, sample_weight=weights)
    assert got["subset_accuracy"] == pytest.approx(exact)


def test_repeating_samples_is_the_same_as_weighing_them():
    targets, probabilities = simulate(60)
    weights = np.random.default_rng(1).integers(0, 4, size=60)
    rows = np.repeat(np.arange(60), weights)
    whole = measured(outcome_of(targets, probabilities > 0.3, probabilities), weights[None].astype(np.float64))
    part = outcome_of(targets[rows], probabilities[rows] > 0.3, probabilities[rows])
    again = measured(part, np.ones((1, len(rows))))
    for name in whole.metrics:
        assert whole.metrics[name] == pytest.approx(again.metrics[name], nan_ok=True), name
    for name in whole.per_label:
        assert whole.per_label[name] == pytest.approx(again.per_label[name], nan_ok=True), name


def test_genres_without_positives_in_a_resample_count_in_no_mean():
    targets = np.array([[1, 1], [1, 0], [0, 0]])
    probabilities = np.array([[0.9, 0.8], [0.2, 0.9], [0.6, 0.1]])
    found = measured(
        outcome_of(targets, probabilities > 0.5, probabilities), np.array([[0.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    )
    assert np.isnan(found.per_label["ap"][0, 1]) and not np.isnan(found.per_label["ap"][1, 1])
    assert found.metrics["mAP"][0] == found.per_label["ap"][0, 0]
    assert found.metrics["macro_f1"][0] == found.per_label["f1"][0, 0]


def test_a_resample_draws_as_many_samples_as_there_are():
    weights = np.concatenate(list(resample_weights(50, rounds=300, seed=5)))
    assert weights.shape == (300, 50) and (weights.sum(axis=1) == 50).all()
    # Drawn with replacement: a sample is left out of (1 - 1/50)^50 = 36% of the resamples, and comes once on average.
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.01)
    assert weights.mean(axis=0) == pytest.approx(np.ones(50), abs=0.25)


def test_resamples_do_not_depend_on_how_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch):
    whole = np.concatenate(list(resample_weights(30, rounds=40, seed=2)))
    monkeypatch.setattr("toolkit.metrics.bootstrap.CHUNK", 100)
    parts = list(resample_weights(30, rounds=40, seed=2))
    assert len(parts) > 10 and np.array_equal(np.concatenate(parts), whole)


def test_intervals_hold_the_value_and_shrink_with_more_samples():
    widths = []
    for num_samples in (150, 2400):
        targets, probabilities = simulate(num_samples)
        answers = {"model": Outcome(targets, probabilities >= 0.3, probabilities)}
        intervals = confidence_intervals(bootstrap(answers, rounds=300)["model"])
        for name, (value, low, high) in intervals.items():
            assert value is not None and low is not None and high is not None
            assert low <= value <= high, name
        assert intervals["mAP"].value == pytest.approx(
            np.mean([average_precision_score(targets[:, g], probabilities[:, g]) for g in range(5)])
        )
        widths.append({name: high - low for name, (_, low, high) in intervals.items()})  # type: ignore[operator]
    for name in ("mAP", "micro_f1", "loss", "subset_accuracy", "roc_auc"):
        assert widths[1][name] < 0.5 * widths[0][name], name  # 16 times the samples: a quarter of the width


@pytest.mark.parametrize("times", [2, 5])
def test_a_set_with_every_poster_several_times_says_no_more_than_with_each_once(times: int):
    targets, probabilities = simulate(150)
    once = bootstrap({"model": Outcome(targets, probabilities >= 0.3, probabilities)}, rounds=200)["model"]
    many, scores = np.tile(targets, (times, 1)), np.tile(probabilities, (times, 1))
    units = np.tile(np.arange(150), times)
    answers = {"model": Outcome(many, scores >= 0.3, scores)}
    together = bootstrap(answers, rounds=200, units=units)["model"]
    alone = confidence_intervals(bootstrap(answers, rounds=200)["model"])
    for name, interval in confidence_intervals(once).items():
        assert confidence_intervals(together)[name] == pytest.approx(interval, abs=1e-9), name
        low, high = interval.low, interval.high
        assert alone[name].high - alone[name].low < 0.85 * (high - low), name  # type: ignore[operator]
    for metric in ("ap", "f1"):
        for ours, theirs in zip(label_intervals(together, metric), label_intervals(once, metric), strict=True):
            assert (ours.low, ours.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(0, 100))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_samples_of_a_unit_are_drawn_together(numbers: list[int], seed: int):
    units = np.unique(numbers, return_inverse=True)[1]
    weights = np.concatenate(list(resample_weights(len(units), rounds=50, seed=seed, units=units)))
    assert weights.shape == (50, len(units)) and (weights.sum(axis=1) > 0).all()
    of_units = np.stack([weights[:, units == unit][:, 0] for unit in range(units.max() + 1)], axis=1)
    assert (weights == of_units[:, units]).all() and (of_units.sum(axis=1) == units.max() + 1).all()
    alone = np.concatenate(list(resample_weights(len(units), rounds=50, seed=seed)))
    each = np.concatenate(list(resample_weights(len(units), rounds=50, seed=seed, units=np.arange(len(units)))))
    assert (alone == each).all()


def test_an_interval_is_about_as_wide_as_theory_has_it():
    targets, probabilities = simulate(500)
    answers = {"model": Outcome(targets, probabilities >= 0.5, probabilities)}
    value, low, high = confidence_intervals(bootstrap(answers)["model"])["subset_accuracy"]
    assert value is not None and low is not None and high is not None
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(value * (1 - value) / 500), rel=0.1)


def test_a_model_does_not_differ_from_itself():
    targets, probabilities = simulate(100)
    answers = {name: Outcome(targets, probabilities >= 0.3, probabilities.copy()) for name in ("a", "b")}
    draws = bootstrap(answers, rounds=100)
    for name, difference in paired_difference(draws["a"], draws["b"]).items():
        assert difference == Difference(0.0, 0.0, 0.0, 1.0), name
        assert not difference.excludes_zero
    for difference in label_differences(draws["a"], draws["b"], "ap"):
        assert difference.value in (0.0, None) and not difference.excludes_zero


def test_a_better_model_is_told_from_noise_and_noise_is_not():
    targets, good = simulate(800, skill=1.5)
    rng = np.random.default_rng(3)
    noise = np.clip(good + rng.normal(0, 1e-4, good.shape), 0, 1)
    poor = np.clip(rng.permuted(good, axis=0), 0, 1)
    answers = {name: Outcome(targets, p >= 0.3, p) for name, p in (("good", good), ("noise", noise), ("poor", poor))}
    draws = bootstrap(answers, rounds=300)
    against_poor = paired_difference(draws["good"], draws["poor"])
    assert against_poor["mAP"].excludes_zero and against_poor["mAP"].value > 0.1 and against_poor["mAP"].p < 0.01  # type: ignore[operator]
    assert against_poor["loss"].excludes_zero and against_poor["loss"].value < 0  # type: ignore[operator]
    assert not paired_difference(draws["good"], draws["noise"])["mAP"].excludes_zero
    # Paired: the difference of two like models is known far better than either.
    difference = paired_difference(draws["good"], draws["noise"])["mAP"]
    alone = confidence_intervals(draws["good"])["mAP"]
    assert difference.high - difference.low < 0.2 * (alone.high - alone.low)  # type: ignore[operator]


def test_the_order_of_the_pair_turns_the_sign():
    targets, good = simulate(200)
    answers = {"a": Outcome(targets, good >= 0.3, good), "b": Outcome(targets, good >= 0.1, 1 - good)}
    draws = bootstrap(answers, rounds=100)
    there, back = paired_difference(draws["a"], draws["b"]), paired_difference(draws["b"], draws["a"])
    for name, (value, low, high, p) in there.items():
        assert back[name] == pytest.approx((-value, -high, -low, p)), name  # type: ignore[operator]


def test_what_gives_no_probabilities_has_no_ranking():
    targets, probabilities = simulate(50)
    draws = bootstrap(
        {"top": Outcome(targets, np.ones_like(targets)), "model": Outcome(targets, targets, probabilities)}, rounds=20
    )
    assert "mAP" not in confidence_intervals(draws["top"])
    assert set(paired_difference(draws["model"], draws["top"])) == set(draws["top"].plain.metrics)


def test_a_genre_without_positives_has_no_interval():
    targets, probabilities = simulate(40)
    targets[:, 4] = False
    draws = bootstrap({"model": Outcome(targets, targets, probabilities)}, rounds=20)["model"]
    *some, none = label_intervals(draws, "ap")
    assert none == (None, None, None)
    assert all(low <= high for _, low, high in some if low is not None and high is not None)


def test_all_are_of_the_same_samples():
    targets, _ = simulate(10)
    with pytest.raises(ValueError):
        bootstrap({"one": Outcome(targets, targets), "other": Outcome(targets[:5], targets[:5])})
