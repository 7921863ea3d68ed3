"""Effects, their ratio and its sentence; metrics as scikit-learn has them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from toolkit.audit.effects import (
    CLEANED,
    CONTROLS,
    RAW,
    Ratio,
    control_effect,
    effect,
    genre_table,
    label_metrics,
    ratio_of_means,
    sentence,
    times,
)
from toolkit.audit.overview import advice, mean_interval
from toolkit.metrics.helpers import sigmoid

HALF = np.full(3, 0.5)


def test_an_effect_by_hand():
    before = np.array([[0.0, 2.0, -2.0], [1.0, 1.0, 1.0]], np.float32)
    after = np.array([[-1.0, 2.0, -2.0], [1.0, 1.0, 1.0]], np.float32)
    found = effect(before, after, HALF)
    moved = 0.5 - 1 / (1 + math.e)
    assert found.change == pytest.approx([moved / 3, 0.0])
    assert found.logit_change == pytest.approx([1 / 3, 0.0])
    assert found.largest == pytest.approx([moved, 0.0]) and found.genre[0] == 0
    assert found.flips == pytest.approx([1 / 3, 0.0]) and found.any_flip.tolist() == [1.0, 0.0]


def test_a_control_is_the_mean_of_its_draws_not_a_draw_of_the_mean():
    logits = np.zeros((1, 5, 3), np.float32)
    logits[0, CONTROLS, 0], logits[0, CONTROLS + 1, 0] = 2.0, -2.0
    found = control_effect(logits, HALF)
    assert found.change[0] == pytest.approx((sigmoid(2.0) - 0.5) / 3)
    assert found.any_flip[0] == 0.5  # 0.5 counts as named; only the draw below it flips


def test_the_ratio_is_one_of_means_and_its_interval_is_a_function_of_the_seed():
    rng = np.random.default_rng(0)
    control = rng.gamma(2.0, 0.02, 200)
    text = 3.0 * control * rng.uniform(0.5, 1.5, 200)
    found = ratio_of_means(text, control, seed=1)
    assert found.value == pytest.approx(text.mean() / control.mean())
    assert found.low is not None and found.high is not None and found.value is not None
    assert 2.5 < found.low < found.value < found.high < 3.5
    assert ratio_of_means(text, control, seed=1) == found
    assert sentence(found).startswith("Titles move predictions ") and "200 posters" in sentence(found)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    held = 0
    for seed in range(60):
        control = rng.gamma(2.0, 0.02, 80)
        text = rng.gamma(2.0, 0.04, 80)
        found = ratio_of_means(text, control, seed)
        assert found.low is not None and found.high is not None
        held += found.low <= 2.0 <= found.high
    assert held >= 51


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Ratio(3.14, 2.8, 3.42, 0.3, 0.1, 287), "Titles move predictions 3.1 times as much as the same area "
         "elsewhere (95% interval 2.8 to 3.4, 287 posters)."),
        (Ratio(0.62, 0.5, 0.8, 0.06, 0.1, 1287), "Titles move predictions less than the same area elsewhere: "
         "0.62 times as much (95% interval 0.50 to 0.80, 1,287 posters)."),
        (Ratio(1.1, 0.9, 1.3, 0.1, 0.1, 50), "No difference seen between titles and the same area elsewhere: the "
         "95% interval of the ratio, 0.90 to 1.30, contains 1 (50 posters)."),
        (Ratio(3.0, 1.5, 6.0, 0.3, 0.1, 12), "No difference seen between titles and the same area elsewhere: 12 "
         "posters are too few, a result needs at least 30."),
        (Ratio(7316.0, None, None, 0.3, 0.0001, 1), "No difference seen between titles and the same area elsewhere: "
         "1 poster is too few, a result needs at least 30."),
        (Ratio(7316.0, 0.9, math.inf, 0.3, 0.0001, 40), "No difference seen between titles and the same area "
         "elsewhere: the 95% interval of the ratio, above 0.90, contains 1 (40 posters)."),
        (Ratio(7316.0, 400.0, math.inf, 0.3, 0.0001, 40), "Titles move predictions more than 100 times as much as the "
         "same area elsewhere (95% interval above 100, 40 posters)."),
        (Ratio(None, None, None, 0.0, 0.0, 40), "Titles do not move predictions: painting over titles changes no "
         "probability, and painting over the same area elsewhere changes no probability (40 posters)."),
        (Ratio(math.inf, math.inf, math.inf, 0.25, 0.0, 40), "Titles move predictions by 0.250 on average. The same "
         "area elsewhere does not move predictions (40 posters)."),
        (Ratio(9.0, 4.0, math.inf, 0.25, 0.01, 40), "Titles move predictions 9.0 times as much as the same area "
         "elsewhere (95% interval above 4.0, 40 posters)."),
        (Ratio(None, None, None, None, None, 0), "No poster could be compared, so there is no result about titles."),
    ],
)  # fmt: skip
def test_the_sentence_is_right_in_every_case(ratio: Ratio, words: str):
    assert sentence(ratio) == words


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Ratio(None, None, None, None, None, 0), "none could be compared"),
        (Ratio(None, None, None, 0.0, 0.0, 40), "change nothing that this model says: no need"),
        (Ratio(3.0, 1.5, 6.0, 0.3, 0.1, 29), "Audit at least 30 posters with text: 29 are too few"),
        (Ratio(3.0, 1.5, 6.0, 0.001, 0.0003, 40), "hardly change more than saving the poster again as JPEG: no need"),
        (Ratio(3.0, 1.5, 6.0, 0.3, 0.1, 40), "uses titles (at least 1.50 times as much as other areas)"),
        (Ratio(math.inf, math.inf, math.inf, 0.3, 0.0, 40), "uses titles (at least 100 times as much as other areas)"),
        (Ratio(1.1, 0.5, 2.5, 0.1, 0.09, 40), "Audit more posters: titles can still matter 2.5 times"),
        (
            Ratio(0.9, 0.8, 1.1, 0.1, 0.11, 40),
            "at most 1.10 times as much as other areas (upper end of the interval): no",
        ),
        (
            Ratio(0.5, 0.4, 0.6, 0.1, 0.2, 40),
            "at most 0.60 times as much as other areas (upper end of the interval): no",
        ),
    ],
)
def test_the_advice_follows_from_the_interval(ratio: Ratio, words: str):
    said, command = advice(ratio, noise=0.001)
    assert words in said and bool(command) == ("uses titles" in said)


def test_an_interval_of_a_mean_holds_it_and_equal_values_have_none():
    flips = np.array([1.0] * 10 + [0.0] * 30)
    low, high = mean_interval(flips, 0)
    assert low is not None and high is not None and 0.1 <= low < 0.25 < high <= 0.4
    assert mean_interval(flips[:10], 0) == (None, None)


def test_nothing_over_nothing_and_something_over_nothing():
    nothing = np.zeros(40)
    assert ratio_of_means(nothing, nothing).value is None
    assert ratio_of_means(nothing + 0.1, nothing).value == math.inf
    assert ratio_of_means(nothing, nothing + 0.1).value == 0.0
    one_poster = np.where(np.arange(40) == 0, 0.4, 0.0)  # many samples have neither effect: no difference
    assert ratio_of_means(one_poster, nothing).low == 1.0
    assert ratio_of_means(nothing[:0], nothing[:0]).posters == 0
    one = ratio_of_means(nothing[:1] + 0.2, nothing[:1] + 0.1)
    assert one.value == pytest.approx(2.0) and one.low is None


def test_ratios_are_short():
    assert [times(v) for v in (0.062, 0.999, 1.04, 1.999, 3.14, 9.96, 1234.5)] == [
        "0.06", "1.00", "1.04", "2.0", "3.1", "10", "more than 100",
    ]  # fmt: skip


def test_what_titles_add_to_a_genre():
    logits = np.zeros((4, 5, 2), np.float32)
    logits[:, RAW, 0] = 3.0  # the text speaks for the first genre ...
    logits[:, CLEANED, 0] = -3.0
    logits[:, CONTROLS:, 0] = 3.0
    logits[:, RAW, 1] = -1.0  # ... and against the second
    logits[:, CONTROLS:, 1] = -1.0
    table = genre_table(logits, HALF[:2], ["A", "B"]).set_index("genre")
    assert table.loc["A", "title_adds"] == pytest.approx(sigmoid(3.0) - sigmoid(-3.0))
    assert table.loc["A", "gained"] == 4 and table.loc["A", "lost"] == 0
    assert table.loc["B", "title_adds"] < 0 and table.loc["B", "lost"] == 4
    assert table["control"].tolist() == [0.0, 0.0]


def test_metrics_are_scikit_learns():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(50, 5, 4)).astype(np.float32)
    targets = rng.random((50, 4)) < 0.3
    targets[:, 3] = False  # a genre without positives counts in no mean
    thresholds = np.array([0.3, 0.5, 0.6, 0.5])
    found = label_metrics(targets, logits, thresholds)
    for name, at in (("raw", 0), ("reencoded", 1), ("cleaned", 2)):
        scores = sigmoid(logits[:, at])
        ap = average_precision_score(targets[:, :3], scores[:, :3], average="macro")
        auc = roc_auc_score(targets[:, :3], scores[:, :3], average="macro")
        assert found[name]["mAP"] == pytest.approx(ap) and found[name]["roc_auc"] == pytest.approx(auc)
        named = scores >= thresholds
        assert found[name]["micro_f1"] == pytest.approx(f1_score(targets, named, average="micro"))
        assert found[name]["macro_f1"] == pytest.approx(f1_score(targets[:, :3], named[:, :3], average="macro"))
    draws = [average_precision_score(targets[:, :3], sigmoid(logits[:, k])[:, :3]) for k in (3, 4)]
    assert found["control"]["mAP"] == pytest.approx(np.mean(draws))
    assert found["control"]["num_genres_ap"] == 3
    nobody = label_metrics(np.zeros((50, 4), bool), logits, thresholds)
    assert nobody["raw"]["mAP"] is None and nobody["control"]["mAP"] is None
