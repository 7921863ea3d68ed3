"""Decisions: what they do to logits, how they are chosen, and that labels.json keeps every bit of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from metric_tools import threshold_metrics
from toolkit_helpers import with_threshold

from shards.errors import UserError
from toolkit.config.schema import DecideConfig
from toolkit.decisions.decisions import Decisions, choose_decisions
from toolkit.metrics.helpers import sigmoid

PREVALENCE = np.array([0.6, 0.4, 0.2, 0.1, 0.05, 0.02, 0.0])


def simulate(seed: int, count: int, scale: float = 2.0, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Targets, and float32 logits of a model that is twice too sure of itself and names too much."""
    rng = np.random.default_rng(seed)
    truth = rng.random((count, len(PREVALENCE))) < PREVALENCE
    odds = np.log(np.maximum(PREVALENCE, 0.01)) + 0.8 * (truth + rng.normal(size=truth.shape))
    return truth, (scale * odds + shift).astype(np.float32).astype(np.float64)


def same(a: Decisions, b: Decisions) -> bool:
    """Bit for bit."""
    return json.dumps(a.to_dict()) == json.dumps(b.to_dict())


def test_probabilities_and_names_by_hand():
    decisions = Decisions(
        np.array([0.5, 0.2]), np.array([2.0, 1.0]), np.array([0.0, -1.0]), 0.4, "f1", "platt", "words"
    )
    logits = np.array([[1.0, 0.0], [-1.0, -1.0]], np.float32)
    np.testing.assert_allclose(decisions.probabilities(logits), sigmoid([[2.0, -1.0], [-2.0, -2.0]]), rtol=1e-12)
    assert decisions.named(logits).tolist() == [[True, True], [False, False]]
    assert decisions.probabilities(logits).dtype == np.float64
    # any shape that ends in genres
    assert (decisions.probabilities(logits[:, None])[:, 0] == decisions.probabilities(logits)).all()
    assert decisions.per_label and not with_threshold(decisions, 0.9).per_label
    plain = Decisions.plain([0.5, 0.2])
    assert (plain.probabilities(logits) == sigmoid(logits)).all() and plain.calibration == "none"


def test_the_fingerprint_is_of_what_decides():
    first = choose_decisions(*simulate(0, 200))
    assert first.fingerprint == choose_decisions(*simulate(0, 200)).fingerprint
    assert len({first.fingerprint, *(with_threshold(first, value).fingerprint for value in (0.4, 0.5))}) == 3


@pytest.mark.parametrize("aim", ["f1", "f0.5", "precision>=0.5", "recall>=0.7"])
@pytest.mark.parametrize("thresholds", ["auto", "global", "genre"])
def test_neither_the_order_of_samples_nor_a_second_run_changes_a_bit(aim: str, thresholds: Any):
    truth, logits = simulate(1, 250)
    decide = DecideConfig(thresholds, aim)
    chosen = choose_decisions(truth, logits, decide)
    assert same(chosen, choose_decisions(truth, logits, decide))
    for seed in range(3):
        shuffle = np.random.default_rng(seed).permutation(len(truth))
        assert same(chosen, choose_decisions(truth[shuffle], logits[shuffle], decide))
    assert chosen.aim == aim and (thresholds == "auto" or chosen.per_label == (thresholds == "genre"))
    assert chosen.chosen_on["split"] == "val" and chosen.chosen_on["samples"] == 250


def test_slack_moves_thresholds_where_the_single_one_is_lucky():
    """No other keeps all of its micro-F0.5 here."""
    truth, logits = simulate(1, 250)
    assert not choose_decisions(truth, logits, DecideConfig("genre", "f0.5", max_micro_f_loss=0.0)).per_label
    chosen = choose_decisions(truth, logits, DecideConfig("genre", "f0.5", max_micro_f_loss=0.01))
    assert chosen.per_label and chosen.chosen_on["slack"] == 0.01


def test_a_genre_without_positives_has_the_single_threshold():
    for aim in ("f1", "f0.5", "recall>=0.7"):
        truth, logits = simulate(2, 300)
        chosen = choose_decisions(truth, logits, DecideConfig("genre", aim))
        assert not truth[:, -1].any() and chosen.thresholds[-1] == chosen.global_threshold
        assert np.count_nonzero(chosen.thresholds != chosen.global_threshold) >= 3  # others have their own
    nothing = choose_decisions(np.zeros_like(truth), logits)
    assert (nothing.thresholds == 0.5).all() and nothing.global_threshold == 0.5


@settings(max_examples=40, deadline=None)
@given(
    data=st.tuples(st.integers(1, 24), st.integers(1, 4)).flatmap(
        lambda shape: st.tuples(
            arrays(np.bool_, shape), arrays(np.float32, shape, elements=st.floats(-40, 40, width=32))
        )
    ),
    aim=st.sampled_from(["f1", "f0.5", "precision>=0.6", "recall>=0.9"]),
    calibration=st.sampled_from(["auto", "none", "temperature", "platt"]),
    max_micro_f_loss=st.sampled_from([0.0, 0.01, 0.3]),
)
def test_any_split_gives_decisions_that_keep_their_promise(
    data: Any, aim: str, calibration: Any, max_micro_f_loss: float
):
    truth, logits = data
    decide = DecideConfig("genre", aim, calibration, max_micro_f_loss)
    chosen = choose_decisions(truth, logits, decide)
    assert ((chosen.thresholds >= 0) & (chosen.thresholds <= 1)).all()
    if aim.startswith("f"):
        probabilities = chosen.probabilities(logits)
        own = threshold_metrics(truth, probabilities, chosen.thresholds)
        single = threshold_metrics(truth, probabilities, chosen.global_threshold)
        key = f"micro_{aim}"
        assert own[key] >= (1 - decide.max_micro_f_loss) * single[key] - 1e-9
    assert same(chosen, Decisions.from_dict(json.loads(json.dumps(chosen.to_dict())), truth.shape[1], "x"))


def test_calibration_and_thresholds_help_on_fresh_samples():
    truth, logits = simulate(3, 400)
    fresh, fresh_logits = simulate(4, 20_000)
    chosen = choose_decisions(truth, logits)
    plain = choose_decisions(truth, logits, DecideConfig("global", "f1", "none"))
    assert chosen.calibration == "platt" and plain.calibration == "none"
    assert chosen.chosen_on["held_out"]["platt"]["loss"] < chosen.chosen_on["held_out"]["none"]["loss"]
    after = threshold_metrics(fresh, chosen.probabilities(fresh_logits), chosen.thresholds)
    before = threshold_metrics(fresh, plain.probabilities(fresh_logits), plain.thresholds)
    assert after["macro_f1"] > 1.05 * before["macro_f1"]
    assert after["micro_f1"] > before["micro_f1"] - 0.005


def test_uncalibrated_models_get_smoothed_thresholds_too():
    # The expected positives behind the smoothing come from a fit of their own: raw probabilities would be far off.
    truth, logits = simulate(5, 400, scale=1.0, shift=3.0)
    chosen = choose_decisions(truth, logits, DecideConfig(calibration="none"))
    assert (chosen.scale == 1).all() and not chosen.bias.any()
    named = chosen.named(logits).mean(axis=0)
    calibrated = choose_decisions(truth, logits).named(logits).mean(axis=0)
    np.testing.assert_allclose(named[:4], calibrated[:4], atol=0.1)


def test_where_they_come_from_is_said():
    truth, logits = simulate(6, 100)
    assert choose_decisions(truth, logits, DecideConfig("global")).source == (
        "the one threshold with the highest micro-F1 on the validation split"
    )
    assert (
        "precision of at least 0.6 in each genre"
        in choose_decisions(truth, logits, DecideConfig(aim="precision>=0.6")).source
    )
    assert "dev split" in choose_decisions(truth, logits, split="dev").source


def test_old_files_that_knew_thresholds_only_still_load():
    old = {"genres": ["a", "b"], "fingerprint": "0", "thresholds": [0.3, 0.3], "threshold_source": "words"}
    loaded = Decisions.from_dict(old, 2, "labels.json")
    assert loaded.thresholds.tolist() == [0.3, 0.3] and loaded.global_threshold == 0.3
    assert loaded.calibration == "none" and loaded.source == "words"
    logits = np.array([[1.0, -2.0]], np.float32)
    assert (loaded.probabilities(logits) == sigmoid(logits)).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"thresholds": [0.5]}, "1 thresholds for 2 genres"),
        ({"thresholds": [0.5, 1.5]}, r"thresholds\[1\]: expected float <= 1"),
        ({"thresholds": [0.5, None]}, r"thresholds\[1\]: expected float, got null"),
        ({"thresholds": "high"}, "thresholds: expected array, got str"),
        ({"thresholds": [0.5, 10**400]}, r"thresholds\[1\]: "),
        ({"global_threshold": float("nan")}, "global_threshold: expected float >= 0"),
        ({"calibration": {"method": "platt"}}, "0 scales for 2 genres"),
        ({"calibration": []}, "calibration: expected object, got array"),
        ({"calibration": {"method": "magic"}}, "calibration.method: invalid enum value 'magic'"),
        ({"calibration": {"method": "platt", "scale": [1.0, 0.0], "bias": [0, 0]}}, "expected float > 0"),
        ({"calibration": {"method": "platt", "scale": [1.0], "bias": [0, 0]}}, "1 scales for 2 genres"),
        (
            {"calibration": {"method": "platt", "scale": [1, 1], "bias": [0, float("inf")]}},
            r"calibration\.bias\[1\]: expected float <= 1",
        ),
        ({"chosen_on": 3}, "chosen_on: expected object, got int"),
        ({"chosen_on": {"held_out": {"none": {"loss": "low", "ece": 0}}}}, "loss: expected float, got str"),
    ],
)
def test_impossible_numbers_are_refused_in_one_line(change: dict[str, Any], words: str):
    good = Decisions.plain([0.5, 0.4]).to_dict()
    assert Decisions.from_dict(good, 2, "labels.json").thresholds.tolist() == [0.5, 0.4]
    with pytest.raises(UserError, match=words) as caught:
        Decisions.from_dict({**good, **change}, 2, "labels.json")
    assert "labels.json" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="required field thresholds"):
        Decisions.from_dict({}, 2, "labels.json")


def test_broken_input_is_refused():
    with fails("option-value", "f0.5", "'accuracy'"):
        choose_decisions(np.array([[True]]), np.array([[0.0]]), DecideConfig(aim="accuracy"))
