"""Aims: what is understood, and that validation reaches what is stated."""

from __future__ import annotations

import numpy as np
import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from metric_tools import threshold_metrics

from shards.errors import UserError
from toolkit.config.schema import Config, DecideConfig
from toolkit.config.validation import check_config
from toolkit.decisions.objective import NAMES_NOTHING, Aim, parse_aim, single_threshold, thresholds_per_label

GOOD = ["f1", "f0.5", "precision>=0.6", "recall>=.8", "precision >= 1.0", "recall>=0", "precision>=1"]
BAD = ["", "f2", "F1", "macro_f1", "precision", "precision>0.6", "recall>=1.2", "recall>=-1", "precision>=x", "f1 f1x"]


@pytest.mark.parametrize("text", GOOD)
def test_aims_are_read_back_as_they_are_written(text):
    aim = parse_aim(text)
    assert parse_aim(str(aim)) == aim
    check_config(Config(decide=DecideConfig(aim=text)))


def test_what_they_mean():
    assert parse_aim("f0.5") == Aim("f", 0.5) and parse_aim("precision>=0.6") == Aim("precision", 0.6)
    assert str(Aim("recall", 0.8)) == "recall>=0.8" and str(Aim("f", 1.0)) == "f1"


@pytest.mark.parametrize("text", BAD)
def test_others_are_refused_in_one_line_here_and_in_a_config(text):
    with fails("option-value", "f1", "f0.5", "precision>=X", "recall>=X", repr(text)):
        parse_aim(text)
    with pytest.raises(UserError, match=r"decide\.aim"):
        check_config(Config(decide=DecideConfig(aim=text)))


@st.composite
def problems(draw):
    shape = draw(st.tuples(st.integers(1, 20), st.integers(1, 4)))
    truth = draw(arrays(np.bool_, shape))
    return truth, draw(arrays(np.int64, shape, elements=st.integers(0, 19))) / 20


@settings(max_examples=150, deadline=None)
@given(problem=problems(), level=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]))
def test_levels_are_reached_in_every_genre(problem, level):
    truth, probabilities = problem
    for kind in ("precision", "recall"):
        aim = Aim(kind, level)
        single = single_threshold(aim, truth, probabilities)
        thresholds, weight = thresholds_per_label(aim, truth, probabilities, probabilities, single)
        assert weight is None and ((thresholds >= 0) & (thresholds <= 1)).all()
        named = probabilities >= thresholds
        hits = (named & truth).sum(axis=0)
        if kind == "precision":
            assert (hits >= level * named.sum(axis=0) - 1e-9).all()
            assert (named.any(axis=0) | (thresholds == NAMES_NOTHING)).all()
        else:
            assert (hits >= level * truth.sum(axis=0) - 1e-9).all()
            assert (thresholds[~truth.any(axis=0)] == single).all()


@settings(max_examples=100, deadline=None)
@given(problem=problems(), level=st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_one_threshold_reaches_its_level_and_no_better_one_does(problem, level):
    truth, probabilities = problem
    if not truth.any():
        assert single_threshold(Aim("recall", level), truth, probabilities) == 0.5
        return
    recall = single_threshold(Aim("recall", level), truth, probabilities)
    assert threshold_metrics(truth, probabilities, recall)["micro_recall"] >= level - 1e-9
    for rival in np.unique(probabilities[probabilities > recall]):
        # a higher one that names less
        assert (
            threshold_metrics(truth, probabilities, rival)["micro_recall"] < level
            or ((probabilities >= rival) == (probabilities >= recall)).all()
        )
    precision = single_threshold(Aim("precision", level), truth, probabilities)
    reached = threshold_metrics(truth, probabilities, precision)["micro_precision"]
    assert reached >= level - 1e-9 or not (probabilities >= precision).any()
    for rival in np.unique(probabilities[probabilities < precision]):
        assert threshold_metrics(truth, probabilities, rival)["micro_precision"] < level


def test_a_lucky_positive_sets_no_threshold():
    # The best score of a rare genre is its one positive: its observed precision there is 1, what the calibrated
    # probabilities expect is 0.1.
    truth = np.zeros((200, 1), bool)
    probabilities = np.linspace(0.0, 0.1, 200).reshape(-1, 1)
    truth[-1] = True
    thresholds, _ = thresholds_per_label(Aim("precision", 0.6), truth, probabilities, probabilities, 0.5)
    assert thresholds[0] == NAMES_NOTHING
    certain = np.where(truth, 0.99, 0.001)  # here they agree
    thresholds, _ = thresholds_per_label(Aim("precision", 0.6), truth, certain, certain, 0.5)
    assert ((certain >= thresholds) == truth).all()


def test_precision_takes_the_most_recall():
    truth = np.array([1, 1, 0, 1, 0, 0, 1, 0], bool).reshape(-1, 1)
    probabilities = np.linspace(0.95, 0.05, 8).reshape(-1, 1)
    # Precisions down the list: 1, 1, 2/3, 3/4, 3/5, 1/2, 4/7, 1/2. Expected ones are as good.
    thresholds, _ = thresholds_per_label(Aim("precision", 0.55), truth, probabilities, truth.astype(float), 0.5)
    assert (probabilities >= thresholds).sum() == 7
    thresholds, _ = thresholds_per_label(Aim("precision", 0.7), truth, probabilities, truth.astype(float), 0.5)
    assert (probabilities >= thresholds).sum() == 4
