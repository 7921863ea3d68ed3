"""Calibration against scikit-learn and scipy on its stated objective, and on fresh simulated samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from metric_tools import calibration_summary
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from toolkit.config.schema import DecideConfig
from toolkit.decisions.calibration import BIAS_PRIOR, SCALE_PRIOR, SHARED_PRIOR, fit_calibration
from toolkit.decisions.cross_fit import CrossFit
from toolkit.metrics.helpers import cross_entropy, sigmoid

PREVALENCE = np.array([0.6, 0.3, 0.15, 0.08, 0.04, 0.015])


def chosen(targets, logits, wanted):
    """(calibration, held-out figures) of a split."""
    choice = CrossFit(targets, logits, DecideConfig(calibration=wanted, thresholds="global")).choose()
    return choice.calibration, choice.calibrations


def simulate(seed, count, *, scale=1.0, shift=0.0, separation=1.2):
    """Targets and logits; with scale 1 and shift 0 the logits are exactly the true log-odds."""
    rng = np.random.default_rng(seed)
    targets = rng.random((count, len(PREVALENCE))) < PREVALENCE
    scores = separation * targets + rng.normal(size=targets.shape)
    odds = np.log(PREVALENCE / (1 - PREVALENCE)) + separation * (scores - separation / 2)
    return targets, scale * odds + shift


def test_one_genre_is_plain_logistic_regression():
    # With one genre the shared means are its own: hardly a prior is left.
    targets, logits = simulate(0, 3000, scale=2.0, shift=1.0)
    for column in range(3):
        fitted = fit_calibration(targets[:, [column]], logits[:, [column]], "platt")
        # "C" so large that nothing is penalised
        referee = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(logits[:, [column]], targets[:, column])
        assert fitted.scale[0] == pytest.approx(referee.coef_[0, 0], rel=2e-3)
        assert fitted.bias[0] == pytest.approx(referee.intercept_[0], rel=2e-3)


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_scipy_finds_no_better_mode(method):
    targets, logits = simulate(1, 200, scale=1.7, shift=0.5)
    targets[:, -1] = False  # a genre without positives
    fitted = fit_calibration(targets, logits, method)
    genres = targets.shape[1]
    pivot = logits.mean(axis=0) if method == "platt" else np.zeros(genres)
    spread = np.sqrt(((logits - pivot) ** 2).mean())

    def objective(parameters):
        slope, shift = np.exp(parameters[:genres]), parameters[genres : 2 * genres]
        mean_slope, mean_shift = parameters[-2:]
        if method == "temperature":
            shift, mean_shift = np.zeros(genres), 0.0
        line = slope * (logits - pivot) / spread + pivot + shift
        loss = (np.logaddexp(0, line) - targets * line).sum()
        away = SCALE_PRIOR * (parameters[:genres] - mean_slope) ** 2 + BIAS_PRIOR * (shift - mean_shift) ** 2
        common = SHARED_PRIOR * ((mean_slope - np.log(spread)) ** 2 + mean_shift**2)
        return loss + (away.sum() + common) / 2

    start = np.zeros(2 * genres + 2)
    start[:genres] = start[-2] = np.log(spread)
    found = minimize(objective, start, method="BFGS", options={"gtol": 1e-6, "maxiter": 2000}).x
    slope = np.exp(found[:genres]) / spread
    shift = found[genres : 2 * genres] if method == "platt" else 0.0
    np.testing.assert_allclose(fitted.scale, slope, rtol=1e-3)
    np.testing.assert_allclose(fitted.bias, pivot + shift - slope * pivot, rtol=1e-3, atol=2e-3)
    if method == "temperature":
        assert not fitted.bias.any()


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_it_mends_a_distorted_model_on_fresh_samples(method):
    # Logits three times too large are what a temperature mends; a shift, as weighted losses leave, needs Platt.
    distortion = {"scale": 3.0, "shift": 0.0 if method == "temperature" else 2.0}
    targets, logits = simulate(2, 400, **distortion)
    fresh, fresh_logits = simulate(3, 20_000, **distortion)
    fitted = fit_calibration(targets, logits, method)
    before, after = fresh_logits, fitted(fresh_logits)
    best = cross_entropy(simulate(3, 20_000)[1], fresh).mean()
    assert cross_entropy(after, fresh).mean() < best + 0.01 < cross_entropy(before, fresh).mean() - 0.05
    ece = [calibration_summary(fresh, sigmoid(values))["ece"] for values in (before, after)]
    assert ece[1] < 0.02 < ece[0]


@pytest.mark.parametrize("method", ["none", "temperature", "platt"])
def test_the_ranking_stays(method):
    targets, logits = simulate(4, 500, scale=0.4)
    logits[:, 2] *= -1  # ranks the wrong way round: not for calibration to mend
    fitted = fit_calibration(targets, logits, method)
    assert (fitted.scale > 0).all()
    for column in range(targets.shape[1]):
        assert (np.argsort(fitted(logits)[:, column]) == np.argsort(logits[:, column])).all()
        assert average_precision_score(targets[:, column], fitted(logits)[:, column]) == pytest.approx(
            average_precision_score(targets[:, column], logits[:, column])
        )


def test_a_rare_genre_follows_the_others():
    # Every genre's logits are twice too large; the last has two positives, both scored low by chance.
    targets, logits = simulate(5, 400, scale=2.0)
    targets[:, -1] = False
    lowest = np.argsort(logits[:, -1])[:2]
    targets[lowest, -1] = True
    alone = fit_calibration(targets[:, [-1]], logits[:, [-1]], "platt").scale[0]
    together = fit_calibration(targets, logits, "platt").scale
    shared = np.exp(np.log(together[:-1]).mean())
    assert abs(np.log(together[-1] / shared)) < 0.5 * abs(np.log(alone / shared))
    # and with no positives at all it is still finite
    targets[:, -1] = False
    fitted = fit_calibration(targets, logits, "platt")
    assert np.isfinite(fitted.scale).all() and np.isfinite(fitted.bias).all()


@settings(max_examples=60, deadline=None)
@given(
    data=st.tuples(st.integers(1, 12), st.integers(1, 4)).flatmap(
        lambda shape: st.tuples(
            arrays(np.bool_, shape), arrays(np.float64, shape, elements=st.floats(-30, 30, width=32))
        )
    ),
    method=st.sampled_from(["temperature", "platt"]),
)
def test_any_split_gives_finite_numbers_that_fit_no_worse(data, method):
    targets, logits = data
    fitted = fit_calibration(targets, logits, method)
    assert np.isfinite(fitted.scale).all() and (fitted.scale > 0).all() and np.isfinite(fitted.bias).all()
    # The identity costs no prior, so the mode's loss is at most the identity's.
    assert cross_entropy(fitted(logits), targets).mean() <= cross_entropy(logits, targets).mean() * (1 + 1e-9) + 1e-12
    again = fit_calibration(targets, logits, method)
    assert (again.scale == fitted.scale).all() and (again.bias == fitted.bias).all()


def test_auto_takes_what_the_distortion_needs():
    for scale, shift, wanted in ((3.0, 0.0, "temperature"), (1.0, 2.0, "platt"), (2.0, -1.0, "platt")):
        targets, logits = simulate(6, 400, scale=scale, shift=shift)
        found, held_out = chosen(targets, logits, "auto")
        assert held_out.keys() == {"none", "temperature", "platt"}
        better = {name for name in held_out if held_out[name]["loss"] < held_out["none"]["loss"]}
        assert found.method in better and (found.method == wanted or wanted == "temperature")
        assert held_out[found.method]["ece"] <= held_out["none"]["ece"]


def test_auto_leaves_a_calibrated_model_alone_or_does_it_no_harm():
    methods, harm, forced = [], [], []
    for seed in range(20):
        targets, logits = simulate(seed, 150)
        fresh, fresh_logits = simulate(seed + 1000, 5000)
        found, _ = chosen(targets, logits, "auto")
        methods.append(found.method)
        harm.append(cross_entropy(found(fresh_logits), fresh).mean() - cross_entropy(fresh_logits, fresh).mean())
        assert (found.method == "none") == (harm[-1] == 0.0)
        always = fit_calibration(targets, logits, "platt")(fresh_logits)
        forced.append(cross_entropy(always, fresh).mean() - cross_entropy(fresh_logits, fresh).mean())
    assert methods.count("none") >= 15
    assert np.mean(harm) < 0.5 * np.mean(forced)  # what always calibrating would cost


def test_what_is_asked_for_is_not_compared():
    targets, logits = simulate(7, 60)
    for method in ("none", "temperature", "platt"):
        found, held_out = chosen(targets, logits, method)
        assert found.method == method and held_out == {}
    none = fit_calibration(targets, logits, "none")
    assert (none(logits) == logits).all()
    # too few samples for folds
    assert chosen(targets[:9], logits[:9], "auto")[0].method == "none"


@pytest.mark.parametrize("genres", [1, 7])
@pytest.mark.parametrize("samples", [1, 2, 12, 60])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-9, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("centre", [0.0, -3.0, 1e4])
def test_nearly_constant_and_huge_logits(genres: int, samples: int, share: float, scale: float, centre: float):
    rng = np.random.default_rng(2)
    truth = rng.random((samples, genres)) < share
    logits = centre + scale * rng.standard_normal((samples, genres))
    before = np.mean(np.logaddexp(0.0, logits) - truth * logits)
    for method in ("temperature", "platt"):
        with np.errstate(all="raise", under="ignore"):
            fitted = fit_calibration(truth, logits, method)
        assert np.isfinite(fitted.scale).all() and (fitted.scale > 0).all() and np.isfinite(fitted.bias).all()
        after = np.mean(np.logaddexp(0.0, fitted(logits)) - truth * fitted(logits))
        assert after <= before + 1e-9 * (1.0 + before)
