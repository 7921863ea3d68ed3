"""Cross-fitting: nothing is measured on samples that it was fitted on, and noise chooses nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_tools import calibration_summary, prediction_metrics
from sklearn.metrics import f1_score

from toolkit.config.schema import DecideConfig
from toolkit.decisions.cross_fit import CrossFit, HeldOut
from toolkit.decisions.decisions import choose_decisions
from toolkit.decisions.folds import FOLDS, FOLDS_OF_MANY, MANY, assign_folds, in_order, standard_error
from toolkit.decisions.objective import parse_aim, single_threshold
from toolkit.metrics.bootstrap import bootstrap
from toolkit.metrics.calibration_error import calibration_influence
from toolkit.metrics.helpers import sigmoid
from toolkit.metrics.weighted import Outcome

PREVALENCE = np.array([0.6, 0.4, 0.2, 0.1, 0.05, 0.02])
WAYS = ["auto", "genre", "global"]


def simulate(
    seed: int, count: int, skill: float = 0.8, scale: float = 1.0, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Targets, and logits that are log-odds of some skill, distorted."""
    rng = np.random.default_rng(seed)
    truth = rng.random((count, len(PREVALENCE))) < PREVALENCE
    odds = np.log(PREVALENCE / (1 - PREVALENCE)) + skill * (truth - 0.5) * skill + skill * rng.normal(size=truth.shape)
    return truth, (scale * odds + shift).astype(np.float32).astype(np.float64)


def groups_of(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, max(1, 3 * count // 4), count)


def choice_of(fits: CrossFit, out: frozenset[int] = frozenset()) -> list[Any]:
    choice = fits.choose(out)
    arrays = (choice.calibration.scale, choice.calibration.bias, choice.thresholds.values)
    return [array.tolist() for array in arrays] + [choice.slack, choice.calibrations, choice.compared]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 90),
    way=st.sampled_from(WAYS),
    grouped=st.booleans(),
    repeated=st.booleans(),
)
def test_the_order_of_samples_changes_no_bit(seed: int, count: int, way: Any, grouped: bool, repeated: bool):
    truth, logits = simulate(seed, count)
    if repeated:  # equal rows, some in a group and some not
        logits = np.round(logits)
        truth[::2], logits[::2] = truth[0], logits[0]
    groups = groups_of(seed, count) if grouped else None
    fits = CrossFit(truth, logits, DecideConfig(way), groups=groups)
    named = fits.named()
    order = np.random.default_rng(seed).permutation(count)
    moved = None if groups is None else groups[order] * 7 + 3  # numbers of groups are names
    again = CrossFit(truth[order], logits[order], DecideConfig(way), groups=moved)
    assert choice_of(fits) == choice_of(again)
    measured = [prediction_metrics(t, n) for t, n in ((truth, named), (truth[order], again.named()))]
    assert measured[0] == measured[1]
    if not repeated:
        assert (again.named() == named[order]).all()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(20, 80), way=st.sampled_from(WAYS), fold=st.integers(0, 4))
def test_no_look_at_the_fold_that_is_held_out(seed: int, count: int, way: Any, fold: int):
    """Whatever its labels and logits are, what is chosen for it is the same."""
    truth, logits = simulate(seed, count)
    fits = CrossFit(truth, logits, DecideConfig(way))
    expected = choice_of(fits, frozenset({fold}))
    other = CrossFit(truth, logits, DecideConfig(way))
    rng, rows = np.random.default_rng(seed), other.fold == fold
    other.truth, other.scores = other.truth.copy(), other.scores.copy()
    other.truth[rows] = rng.permuted(~other.truth[rows], axis=0)
    other.scores[rows] = rng.normal(size=other.scores[rows].shape) * 9
    assert choice_of(other, frozenset({fold})) == expected


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_small_splits_start_at_one_threshold(count: int):
    truth, logits = simulate(3, count)
    truth[:] = True
    fits = CrossFit(truth, logits)
    choice = fits.choose()
    assert choice.slack is None and choice.calibration.method == "none" and fits.named().shape == truth.shape
    if count == 1:
        assert (fits.named() == (sigmoid(logits) >= 0.5)).all()  # there is nothing to fit on


def test_pooled_figures_are_those_of_a_loop_over_folds():
    """scikit-learn is the referee of the figures, a loop that fits anew that of the fits shared between folds."""
    truth, logits = simulate(4, 150)
    for decide in (DecideConfig("global", "f1", "none"), DecideConfig("auto")):
        fits = CrossFit(truth, logits, decide)
        named = np.zeros_like(truth)
        for fold in range(FOLDS):
            held = fits.fold == fold
            rest = CrossFit(fits.truth[~held], fits.scores[~held], decide)
            if decide.thresholds == "global":
                single = single_threshold(parse_aim("f1"), fits.truth[~held], sigmoid(fits.scores[~held]))
                found = sigmoid(fits.scores[held]) >= single
            else:  # by the folds that are left, not by folds dealt anew
                rest.fold = fits.fold[~held][rest.order]
                found = rest.choose().named(fits.scores[held])
            named[fits.order[held]] = found
        assert (fits.named() == named).all()
        metrics = prediction_metrics(truth, fits.named())
        assert metrics["micro_f1"] == pytest.approx(f1_score(truth, named, average="micro"))
        assert metrics["macro_f1"] == pytest.approx(f1_score(truth, named, average="macro", zero_division=0))


def test_cross_fit_figures_are_those_of_new_samples_and_those_of_the_same_are_flattering():
    same, held_out, new = [], [], []
    for seed in range(12):
        truth, logits = simulate(seed, 100, skill=0.3)
        fresh, fresh_logits = simulate(seed + 100, 4000, skill=0.3)
        fits = CrossFit(truth, logits, DecideConfig("genre", "f1", "none"))
        choice = fits.choose()
        same.append(prediction_metrics(truth, choice.named(logits.astype(float)))["macro_f1"])
        held_out.append(prediction_metrics(truth, fits.named())["macro_f1"])
        new.append(prediction_metrics(fresh, choice.named(fresh_logits.astype(float)))["macro_f1"])
    assert np.mean(same) > np.mean(new) + 0.01
    assert abs(np.mean(held_out) - np.mean(new)) < 0.01


def test_thresholds_per_genre_stay_where_they_help_and_go_where_noise_is_all():
    kept = [choose_decisions(*simulate(seed, 400, skill=0.8)).per_label for seed in range(10)]
    assert sum(kept) >= 8
    # Genres alike in prevalence and skill: one threshold is right, and one per genre fits noise.
    alone = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        truth = rng.random((60, 5)) < 0.3
        logits = np.log(0.3 / 0.7) + 1.5 * (truth - 0.3) + rng.normal(size=truth.shape)
        found = choose_decisions(truth, logits)
        assert {"single", "per genre, slack 0.01"} <= found.chosen_on["cross_fit"].keys()
        alone.append(not found.per_label)
        assert ("did not help clearly" in found.source) == alone[-1]
    assert sum(alone) >= 15
    forced = choose_decisions(truth, logits, DecideConfig("genre"))
    assert forced.per_label and "cross_fit" not in forced.chosen_on


def test_duplicates_stay_in_one_fold_and_count_once():
    truth, logits = simulate(6, 120)
    copies = np.arange(360) % 120
    fits = CrossFit(truth[copies], logits[copies], groups=copies)
    by_group = {(tuple(row), fold) for row, fold in zip(fits.scores.tolist(), fits.fold.tolist(), strict=True)}
    assert len(by_group) == 120 and set(np.bincount(fits.units)) == {3}
    # Three copies of every sample are no more evidence than one: what is measured and how sure it is stays.
    rng = np.random.default_rng(0)
    named = [rng.random(truth.shape) < 0.4 for _ in range(2)]
    errors = []
    for rows in (np.arange(120), copies):
        pair = [HeldOut.of(truth[rows], n[rows], rows, 1.0) for n in named]
        errors.append(standard_error(pair[0].by_macro - pair[1].by_macro, rows))
    assert errors[0] == pytest.approx(errors[1])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60))
def test_every_sample_is_in_a_fold_with_its_group_and_folds_are_even(seed: int, count: int):
    truth, logits = simulate(seed, count)
    groups = groups_of(seed, count)
    order, units = in_order(truth, logits, groups)
    fold = assign_folds(truth[order], units)
    assert sorted(order.tolist()) == list(range(count))
    for group in np.unique(groups):
        assert len({*units[groups[order] == group]}) == len({*fold[groups[order] == group]}) == 1
    in_fold = np.bincount(fold[np.unique(units, return_index=True)[1]], minlength=FOLDS)
    assert in_fold.max() - in_fold.min() <= 1


def test_many_samples_have_fewer_folds():
    for count, folds in ((MANY - 1, FOLDS), (MANY, FOLDS_OF_MANY)):
        assert assign_folds(np.ones((count, 1), bool), np.arange(count)).max() + 1 == folds


def test_standard_errors_are_the_bootstraps():
    truth, logits = simulate(7, 400)
    probabilities = sigmoid(logits)
    named = {name: probabilities >= at for name, at in (("a", 0.5), ("b", 0.3))}
    draws = bootstrap({name: Outcome(truth, said, probabilities) for name, said in named.items()}, rounds=800)
    a, b = (HeldOut.of(truth, said, np.arange(400), 1.0) for said in named.values())
    units = np.arange(400)
    for key, ours in (("micro_f1", a.by_micro - b.by_micro), ("macro_f1", a.by_macro - b.by_macro)):
        spread = (draws["a"].resampled.metrics[key] - draws["b"].resampled.metrics[key]).std()
        assert standard_error(ours, units) == pytest.approx(spread, rel=0.15), key
    assert (a.micro, a.macro) == pytest.approx(
        (draws["a"].plain.metrics["micro_f1"][0], draws["a"].plain.metrics["macro_f1"][0])
    )
    values = np.random.default_rng(0).normal(size=50)
    error = standard_error((values - values.mean()) / 50, np.arange(50))
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(50))


def test_the_derivatives_of_the_calibration_error_are_numerical_ones():
    truth, logits = simulate(8, 40)
    probabilities = sigmoid(logits)
    error, influence = calibration_influence(truth, probabilities)
    assert error == pytest.approx(calibration_summary(truth, probabilities)["ece"])
    assert abs(influence.sum()) < 1e-12
    heavy = np.repeat(np.arange(40), 1000)
    for row in range(3):
        more = np.append(heavy, row)  # its weight is 1.001
        change = calibration_summary(truth[more], probabilities[more])["ece"] - error
        assert change == pytest.approx(influence[row] / 1000, rel=0.02, abs=1e-9)
