"""Sample weights in every metric: a sample with the weight k counts as k samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, f1_score, log_loss

from toolkit.decisions.decisions import Decisions
from toolkit.evaluation.results import Evaluation, evaluate_arrays
from toolkit.metrics.bootstrap import bootstrap, confidence_intervals
from toolkit.metrics.registry import METRICS, per_label_table, values
from toolkit.metrics.weighted import Outcome, Weighed

pytestmark = pytest.mark.filterwarnings("error")

GROUPS = ("decisions", "ranking", "calibration")


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(targets, probabilities, weights from 1 to 4). Coarse scores make ties common."""
    shape = draw(st.tuples(st.integers(2, 20), st.integers(1, 4)))
    targets = draw(arrays(np.bool_, shape))
    tenths = draw(arrays(np.int64, shape, elements=st.integers(0, 10)))
    return targets, tenths / 10, draw(arrays(np.int64, shape[0], elements=st.integers(1, 4)))


def evaluated(targets: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> Evaluation:
    genres = [f"g{number}" for number in range(targets.shape[1])]
    decisions = Decisions.plain(np.full(len(genres), 0.5))
    prevalence = np.full(len(genres), 0.3)
    return evaluate_arrays(targets, scores, genres, prevalence, decisions, split="val", shard_set="", weights=weights)


@given(problems())
@settings(max_examples=60, deadline=None)
def test_a_weight_is_a_number_of_repeats(problem: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    targets, scores, weights = problem
    rows = np.repeat(np.arange(len(weights)), weights)
    weighted = Outcome(targets, scores >= 0.5, scores, weights.astype(np.float64))
    repeated = Outcome(targets[rows], scores[rows] >= 0.5, scores[rows])
    for group in GROUPS:
        assert values(weighted, group) == pytest.approx(values(repeated, group), nan_ok=True), group
    assert values(replace(weighted, weights=weights * 0.01), "ranking") == pytest.approx(values(repeated, "ranking"))


@given(problems())
@settings(max_examples=30, deadline=None)
def test_a_whole_evaluation_is_that_of_the_repeats(problem: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Losses, calibration, baselines and genres too. Counts of posters are those of the posters."""
    targets, scores, weights = problem
    logits, rows = scores * 6 - 3, np.repeat(np.arange(len(weights)), weights)
    ours = evaluated(targets, logits, weights.astype(np.float64)).to_dict()
    theirs = evaluated(targets[rows], logits[rows]).to_dict()
    assert ours["weighted"] is True and "weighted" not in theirs
    assert ours["num_samples"] == len(targets) and theirs["num_samples"] == len(rows)
    for moment in ("before", "after"):
        curves = [evaluation["calibration"][moment].pop("curve") for evaluation in (ours, theirs)]
        for bin_of_ours, bin_of_theirs in zip(*curves, strict=True):
            for key in ("predicted", "observed"):
                assert bin_of_ours[key] == pytest.approx(bin_of_theirs[key])
        assert ours["calibration"][moment] == pytest.approx(theirs["calibration"][moment])
    for part in ("thresholds", "baselines"):
        for own, other in zip(ours[part], theirs[part], strict=True):
            assert own["metrics"] == pytest.approx(other["metrics"], nan_ok=True)
            assert (own.get("ranking") or {}) == pytest.approx(other.get("ranking") or {}, nan_ok=True)
    for own, other in zip(ours["per_genre"], theirs["per_genre"], strict=True):
        for key in ("ap", "roc_auc", "precision", "recall", "f1"):
            assert own[key] == pytest.approx(other[key])
    assert [row["support"] for row in ours["per_genre"]] == targets.sum(axis=0).tolist()


def test_scikit_learn_agrees() -> None:
    rng = np.random.default_rng(0)
    targets, scores, weights = rng.random((300, 3)) < 0.3, rng.random((300, 3)), rng.lognormal(size=300)
    outcome = Outcome(targets, scores >= 0.5, scores, weights)
    found = {key: value for group in GROUPS for key, value in values(outcome, group).items()}
    each = {"sample_weight": weights}
    assert found["mAP"] == pytest.approx(average_precision_score(targets, scores, average="macro", **each))
    for average in ("micro", "macro"):
        assert found[f"{average}_f1"] == pytest.approx(f1_score(targets, scores >= 0.5, average=average, **each))
    flat = np.repeat(weights, 3)
    assert found["loss"] == pytest.approx(log_loss(targets.ravel(), scores.ravel(), sample_weight=flat))
    plain = values(replace(outcome, weights=None), "decisions")
    assert plain["micro_f1"] != pytest.approx(found["micro_f1"], abs=1e-6)
    table = per_label_table(outcome, 0.5, ["a", "b", "c"])
    assert table["support"].tolist() == targets.sum(axis=0).tolist()


def test_intervals_are_around_the_weighted_values() -> None:
    rng = np.random.default_rng(1)
    targets, scores = rng.random((400, 2)) < 0.4, rng.random((400, 2))
    outcome = Outcome(targets, scores >= 0.5, scores, np.where(targets[:, 0], 3.0, 1.0))
    draws = bootstrap({"m": outcome}, rounds=50)["m"]
    for key, interval in confidence_intervals(draws).items():
        assert interval.value == pytest.approx(METRICS[key].value(Weighed(outcome)))
        assert interval.value is not None and interval.low is not None and interval.high is not None
        assert interval.low < interval.value < interval.high
