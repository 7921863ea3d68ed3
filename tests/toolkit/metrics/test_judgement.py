"""Whether a difference is seen: interval and corrected p-value must agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.metrics.bootstrap import Difference
from toolkit.metrics.judgement import UNSEEN, holm, judged
from toolkit.metrics.registry import METRICS

PROBABILITIES = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12)


@pytest.mark.parametrize(
    ("metric", "interval", "p", "words"),
    [
        ("mAP", (0.01, 0.1), 0.01, "better"),
        ("mAP", (-0.1, -0.01), 0.01, "worse"),
        ("mAP", (-0.01, 0.1), 0.01, UNSEEN),
        ("mAP", (0.0, 0.1), 0.01, UNSEEN),
        ("mAP", (0.01, 0.1), 0.052, UNSEEN),
        ("mAP", (0.01, 0.1), 0.05, UNSEEN),
        ("loss", (0.01, 0.1), 0.01, "worse"),
        ("ece", (-0.1, -0.01), 0.01, "better"),
        ("predicted_per_sample", (0.01, 0.1), 0.01, "different"),
    ],
)
def test_words_of_a_difference(metric: str, interval: tuple[float, float], p: float, words: str):
    (found,) = judged([Difference(sum(interval) / 2, *interval, p)], [METRICS[metric].better])
    assert found == (words, p)


def test_an_undefined_difference_has_no_p_and_is_not_seen():
    assert judged([Difference(None, None, None, None)], ["higher"]) == [(UNSEEN, None)]


def test_more_rows_need_more_evidence():
    clear = Difference(0.1, 0.01, 0.2, 0.03)
    assert judged([clear], ["higher"])[0].words == "better"
    assert {row.words for row in judged([clear, clear], ["higher"] * 2)} == {UNSEEN}


def test_holm_by_hand():
    # sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, and never less than the one before
    assert holm([0.03, 0.01, None, 0.04, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])


@given(PROBABILITIES)
def test_holm_lies_between_the_plain_and_the_bonferroni_value(values: list[float | None]):
    corrected, count = holm(values), sum(value is not None for value in values)
    assert [value is None for value in corrected] == [value is None for value in values]
    known = [(p, q) for p, q in zip(values, corrected, strict=True) if p is not None and q is not None]
    assert all(p <= q <= min(1.0, count * p) + 1e-12 for p, q in known)
    order = sorted(known)
    assert np.all(np.diff([q for _, q in order]) >= 0)  # the order of the rows stays
