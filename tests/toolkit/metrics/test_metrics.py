"""Metrics against values worked out by hand and against scikit-learn as a referee."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from metric_tools import outcome_of, threshold_metrics
from sklearn.metrics import accuracy_score, average_precision_score, precision_recall_fscore_support, roc_auc_score

from toolkit.metrics.helpers import check_arrays, clipped_cross_entropy, cross_entropy, sigmoid
from toolkit.metrics.registry import per_label_table, values

# A metric that warns on a genre without positives would flood a training log.
pytestmark = pytest.mark.filterwarnings("error")

GENRES = ["A", "B", "C"]
TARGETS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]])
PROBABILITIES = np.array([[0.9, 0.2, 0.1], [0.4, 0.8, 0.6], [0.6, 0.5, 0.2], [0.7, 0.55, 0.1]])
# Predicted at 0.5 (>=):     A        A    B    C
#   s0 {A}   right;  s1 {B, C} wrong;  s2 {A, B} wrong;  s3 {A, B} wrong
#   A: TP 2 (s0, s3), predicted 3, support 3
#   B: TP 2 (s1, s2), predicted 3, support 2
#   C: TP 0,          predicted 1, support 0
#   pooled: TP 4, predicted 7, support 5


def bce_from_logits(logits, targets):
    return cross_entropy(np.asarray(logits), np.asarray(targets)).mean()


def bce_from_probabilities(targets, probabilities):
    return clipped_cross_entropy(np.asarray(targets, dtype=bool), np.asarray(probabilities)).mean()


def ranking_metrics(targets, probabilities, genres):
    """The ranking group of the table, and the figures of each genre under it."""
    outcome = outcome_of(targets, probabilities=probabilities)
    each = [{g: None if math.isnan(v) else v for g, v in zip(genres, vs, strict=True)} for vs in outcome.ranking]
    loss = bce_from_probabilities(targets, probabilities)
    return {**values(outcome, "ranking"), "ap_per_genre": each[0], "roc_auc_per_genre": each[1], "loss": loss}


def genre_table(targets, probabilities, thresholds, genres):
    return per_label_table(outcome_of(targets, probabilities=probabilities), thresholds, genres)


@st.composite
def problems(draw, min_genres=1):
    """(targets, probabilities); scores on a coarse grid, so that ties are common."""
    shape = draw(st.tuples(st.integers(1, 25), st.integers(min_genres, 6)))
    targets = draw(arrays(np.int64, shape, elements=st.integers(0, 1)))
    tenths = draw(arrays(np.int64, shape, elements=st.integers(0, 10)))
    return targets, tenths / 10


def test_threshold_metrics_by_hand():
    assert threshold_metrics(TARGETS, PROBABILITIES, 0.5) == pytest.approx(
        {
            "subset_accuracy": 1 / 4,  # s0 only
            "predicted_per_sample": 7 / 4,
            "macro_genres": 2,  # A and B; C has no support
            "micro_precision": 4 / 7,
            "micro_recall": 4 / 5,
            "micro_f1": 2 / 3,  # 2*4 / (7 + 5)
            "micro_f0.5": 20 / 33,  # 1.25*4 / (0.25*5 + 7) = 5 / 8.25
            "macro_precision": 2 / 3,  # (2/3 + 2/3) / 2
            "macro_recall": 5 / 6,  # (2/3 + 1) / 2
            "macro_f1": 11 / 15,  # A 4/6, B 4/5
            "macro_f0.5": 29 / 42,  # A 2.5/3.75 = 2/3, B 2.5/3.5 = 5/7
        }
    )


def test_one_threshold_per_genre():
    # A at 0.65 predicts s0, s3: TP 2, predicted 2. B at 0.6 predicts s1: TP 1. C at 0.9: none.
    # Right: s0 {A}, s3 {A}; s1 {B} lacks A; s2 {} lacks B.
    result = threshold_metrics(TARGETS, PROBABILITIES, np.array([0.65, 0.6, 0.9]))
    assert result["micro_precision"] == 1.0
    assert result["micro_recall"] == pytest.approx(3 / 5)
    assert result["subset_accuracy"] == 0.5
    assert result["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_ranking_metrics_by_hand():
    # A, high to low: + (1/1) + (2/2) - + (3/4)  -> AP (1 + 1 + 3/4)/3 = 11/12; AUC 2 of 3 pairs
    # B, high to low: + (1/1) - + (2/3) -        -> AP (1 + 2/3)/2 = 5/6;      AUC 3 of 4 pairs
    result = ranking_metrics(TARGETS, PROBABILITIES, GENRES)
    assert result["ap_per_genre"] == {"A": pytest.approx(11 / 12), "B": pytest.approx(5 / 6), "C": None}
    assert result["roc_auc_per_genre"] == {"A": pytest.approx(2 / 3), "B": pytest.approx(3 / 4), "C": None}
    assert result["mAP"] == pytest.approx(7 / 8)
    assert result["roc_auc"] == pytest.approx(17 / 24)
    assert (result["num_genres_ap"], result["num_genres_roc_auc"]) == (2, 2)
    assert result["loss"] == bce_from_probabilities(TARGETS, PROBABILITIES)


def test_loss_by_hand():
    # -ln 0.8 for the positive, -ln(1 - 0.5) for the negative
    expected = (math.log(1.25) + math.log(2)) / 2
    assert bce_from_probabilities([[1, 0]], [[0.8, 0.5]]) == pytest.approx(expected)
    # 0.8 = sigmoid(ln 4), 0.5 = sigmoid(0)
    assert bce_from_logits([[math.log(4), 0.0]], [[1, 0]]) == pytest.approx(expected)


def test_loss_is_stable_at_the_ends():
    # Surely wrong twice by 1000 nats, surely right twice by none.
    assert bce_from_logits([[1000.0, -1000.0, 1000.0, -1000.0]], [[0, 1, 1, 0]]) == pytest.approx(500.0)
    assert bce_from_probabilities([[1, 0]], [[0.0, 1.0]]) == pytest.approx(-math.log(1e-7), rel=1e-6)
    assert sigmoid([-1000.0, 0.0, 1000.0]).tolist() == [0.0, 0.5, 1.0]


@given(arrays(np.float64, (5, 3), elements=st.floats(-12, 12)), arrays(np.bool_, (5, 3)))
def test_both_losses_agree_where_nothing_is_clipped(logits, targets):
    assert bce_from_logits(logits, targets) == pytest.approx(bce_from_probabilities(targets, sigmoid(logits)))


@settings(max_examples=150, deadline=None)
@given(problems(min_genres=2), st.integers(0, 10))
def test_threshold_metrics_agree_with_scikit_learn(problem, tenth):
    targets, probabilities = problem
    predicted = (probabilities >= tenth / 10).astype(int)
    supported = np.flatnonzero(targets.any(axis=0))
    result = threshold_metrics(targets, probabilities, tenth / 10)
    assert result["subset_accuracy"] == pytest.approx(accuracy_score(targets, predicted))
    assert result["macro_genres"] == len(supported)
    for beta, key in ((1.0, "f1"), (0.5, "f0.5")):
        for average, labels in (("micro", None), ("macro", supported)):
            if average == "macro" and not len(supported):
                expected = (0.0, 0.0, 0.0)
            else:
                expected = precision_recall_fscore_support(
                    targets, predicted, beta=beta, labels=labels, average=average, zero_division=0
                )[:3]
            names = (f"{average}_precision", f"{average}_recall", f"{average}_{key}")
            assert [result[name] for name in names] == pytest.approx(list(expected))


@settings(max_examples=100, deadline=None)
@given(problems())
def test_ranking_metrics_agree_with_scikit_learn(problem):
    targets, probabilities = problem
    num_samples, num_genres = targets.shape
    result = ranking_metrics(targets, probabilities, [str(genre) for genre in range(num_genres)])
    support = targets.sum(axis=0)
    ap = [average_precision_score(targets[:, g], probabilities[:, g]) for g in np.flatnonzero(support)]
    mixed = np.flatnonzero((support > 0) & (support < num_samples))
    auc = [roc_auc_score(targets[:, g], probabilities[:, g]) for g in mixed]
    assert result["mAP"] == (pytest.approx(np.mean(ap)) if ap else None)
    assert result["roc_auc"] == (pytest.approx(np.mean(auc)) if auc else None)
    assert (result["num_genres_ap"], result["num_genres_roc_auc"]) == (len(ap), len(auc))


def test_a_genre_without_positives_changes_no_macro_or_ranking_mean():
    with_c = threshold_metrics(TARGETS, PROBABILITIES, 0.5)
    without_c = threshold_metrics(TARGETS[:, :2], PROBABILITIES[:, :2], 0.5)
    for name in ("precision", "recall", "f1", "f0.5"):
        assert with_c[f"macro_{name}"] == without_c[f"macro_{name}"]
    # The false positive for C is a mistake all the same, and the pooled precision shows it.
    assert with_c["micro_precision"] < without_c["micro_precision"]
    with_c = ranking_metrics(TARGETS, PROBABILITIES, GENRES)
    without_c = ranking_metrics(TARGETS[:, :2], PROBABILITIES[:, :2], GENRES[:2])
    assert (with_c["mAP"], with_c["roc_auc"]) == (without_c["mAP"], without_c["roc_auc"])


def test_no_positive_at_all():
    nothing = np.zeros((3, 2))
    ranking = ranking_metrics(nothing, np.full((3, 2), 0.4), ["A", "B"])
    assert (ranking["mAP"], ranking["roc_auc"]) == (None, None)
    result = threshold_metrics(nothing, np.full((3, 2), 0.4), 0.5)
    assert (result["micro_f1"], result["macro_f1"], result["macro_genres"]) == (0.0, 0.0, 0)
    assert result["subset_accuracy"] == 1.0  # naming no genre is right for every sample


def test_a_genre_that_is_always_positive():
    targets = np.array([[1, 1], [1, 0], [1, 0]])
    result = ranking_metrics(targets, np.array([[0.2, 0.9], [0.5, 0.3], [0.1, 0.2]]), ["A", "B"])
    assert result["ap_per_genre"]["A"] == 1.0
    assert result["roc_auc_per_genre"] == {"A": None, "B": 1.0}
    assert result["roc_auc"] == 1.0


def test_tied_scores_rank_nothing():
    # Equal scores everywhere: AP is the prevalence, 1/4, whatever the order of the rows; AUC is 1/2.
    for row in range(4):
        targets = np.zeros((4, 1))
        targets[row] = 1
        result = ranking_metrics(targets, np.full((4, 1), 0.3), ["A"])
        assert (result["mAP"], result["roc_auc"]) == (0.25, 0.5)


def test_perfect_predictions():
    probabilities = np.where(TARGETS == 1, 0.9, 0.1)
    result = threshold_metrics(TARGETS, probabilities, 0.5)
    for name, value in result.items():
        if name not in ("predicted_per_sample", "macro_genres"):
            assert value == 1.0, name
    assert result["predicted_per_sample"] == 5 / 4
    ranking = ranking_metrics(TARGETS, probabilities, GENRES)
    assert (ranking["mAP"], ranking["roc_auc"]) == (1.0, 1.0)
    assert ranking["loss"] == pytest.approx(-math.log(0.9))


def test_shuffled_labels_score_as_chance():
    rng = np.random.default_rng(0)
    prevalence = np.array([0.6, 0.3, 0.1])
    targets = rng.random((20_000, 3)) < prevalence
    probabilities = np.clip(0.5 * targets + 0.5 * rng.random(targets.shape), 0, 1)
    assert ranking_metrics(targets, probabilities, GENRES)["mAP"] > 0.99
    shuffled = ranking_metrics(rng.permutation(targets), probabilities, GENRES)
    assert shuffled["mAP"] == pytest.approx(prevalence.mean(), abs=0.02)
    assert shuffled["roc_auc"] == pytest.approx(0.5, abs=0.02)


def test_per_label_table_by_hand():
    table = genre_table(TARGETS, PROBABILITIES, [0.5, 0.5, 0.7], GENRES)
    assert table.columns.tolist() == [
        "genre", "support", "prevalence", "ap", "roc_auc", "threshold", "precision", "recall", "f1",
    ]  # fmt: skip
    assert table["genre"].tolist() == GENRES
    assert table["support"].tolist() == [3, 2, 0]
    assert table["prevalence"].tolist() == [0.75, 0.5, 0.0]
    assert table["threshold"].tolist() == [0.5, 0.5, 0.7]
    nan = math.nan  # C: no positives, and never predicted at 0.7
    for column, expected in {
        "ap": [11 / 12, 5 / 6, nan],
        "roc_auc": [2 / 3, 3 / 4, nan],
        "precision": [2 / 3, 2 / 3, nan],
        "recall": [2 / 3, 1.0, nan],
        "f1": [2 / 3, 4 / 5, nan],
    }.items():
        assert table[column].tolist() == pytest.approx(expected, nan_ok=True), column


def test_per_label_table_tells_zero_from_undefined():
    # A has a positive but is never predicted: precision undefined, recall and F1 truly 0.
    # B has no positive but is predicted: precision truly 0, recall and F1 undefined.
    table = genre_table([[1, 0], [0, 0]], [[0.2, 0.9], [0.1, 0.1]], 0.5, ["A", "B"])
    assert table["precision"].tolist() == pytest.approx([math.nan, 0.0], nan_ok=True)
    assert table["recall"].tolist() == pytest.approx([0.0, math.nan], nan_ok=True)
    assert table["f1"].tolist() == pytest.approx([0.0, math.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("targets", "logits", "message"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3)), r"not empty, got shape \(0, 3\)"),
        ([1, 0], [0.1, 0.2], r"2-d .* got shape \(2,\)"),
        ([[2, 0]], [[0.1, 0.2]], "only 0 and 1"),
        ([[math.nan, 0]], [[0.1, 0.2]], "only 0 and 1"),
        ([[1, 0]], [[0.1, 0.2, 0.3]], r"logits must have shape \(1, 2\), got \(1, 3\)"),
        ([[1, 0]], [[0.1, math.nan]], "logits must be finite, got 1"),
    ],
)
def test_broken_input_is_refused(targets, logits, message):
    with pytest.raises(ValueError, match=message):
        check_arrays(targets, logits)


def test_checked_arrays_are_those_that_were_given():
    truth, scores = check_arrays([[1, 0], [0, 1]], np.array([[3, -1], [0, 7]], dtype=np.float32))
    assert truth.dtype == np.bool_ and truth.tolist() == [[True, False], [False, True]]
    assert scores.dtype == np.float64 and scores.tolist() == [[3.0, -1.0], [0.0, 7.0]]


def test_float32_and_bool_input_give_the_same_answer():
    exact = np.array([[0.75, 0.25], [0.5, 0.125]])  # exact in float32
    targets = np.array([[1, 0], [1, 1]])
    assert threshold_metrics(targets.astype(bool), exact.astype(np.float32), 0.5) == threshold_metrics(
        targets.astype(float), exact, 0.5
    )
