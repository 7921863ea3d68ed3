"""A metric of the user in a report: its interval is that of the same known metric, and its name is escaped."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from report_tools import SAMPLES, inputs
from sklearn.metrics import f1_score

from toolkit.config.extensions import register
from toolkit.evaluation.results import own_metrics
from toolkit.metrics.registry import Metric
from toolkit.report.build import build_report
from toolkit.report.output import render_page
from toolkit.report.summary import headline, own_rows, resampled

ROUNDS = 100


class Shared:
    """Micro-F1, as a user would compute it."""

    def __call__(self, truth: np.ndarray, named: np.ndarray, probabilities: np.ndarray) -> float:
        return float(f1_score(truth, named, average="micro", zero_division=0))


class Weighted:
    """Micro-F1 with sample weights."""

    def __call__(
        self, truth: np.ndarray, named: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None
    ) -> float:
        return float(f1_score(truth, named, average="micro", zero_division=0, sample_weight=weights))


class Fragile(Shared):
    """Fails on samples that occur twice, so on every resample."""

    def __call__(self, truth: np.ndarray, named: np.ndarray, probabilities: np.ndarray) -> float:
        if len(np.unique(probabilities, axis=0)) < len(probabilities):
            raise ValueError("samples occur twice")
        return super().__call__(truth, named, probabilities)


def own(kind: type) -> list[Metric]:
    register(kind)
    return own_metrics(f"{kind.__module__}:{kind.__qualname__}", {})


@pytest.mark.parametrize("units", [None, np.arange(SAMPLES) // 3], ids=["samples", "near-duplicates"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_interval_is_that_of_the_same_known_metric(units: np.ndarray | None, weighted: bool):
    weights = np.linspace(0.5, 3, SAMPLES) if weighted else None
    for kind in (Weighted, Shared) if weights is None else (Weighted,):
        given = replace(inputs(), units=units, weights=weights, own=own(kind))
        known = {row["metric"]: row for row in headline(resampled(given, ROUNDS))}["micro_f1"]
        (row,) = own_rows(given, ROUNDS)
        assert row["metric"] == row["name"] == kind.__name__
        for bound in ("value", "low", "high"):
            assert row[bound] == pytest.approx(known[bound], abs=1e-9)
        assert row["low"] < row["value"] < row["high"]


def test_a_metric_without_the_argument_counts_all_samples_alike():
    weights = np.linspace(0.5, 3, SAMPLES)
    (plain,), (same,) = (own_rows(replace(inputs(), weights=w, own=own(Shared)), ROUNDS) for w in (None, weights))
    assert plain == same


def test_a_metric_that_fails_on_a_resample_has_no_interval(caplog: pytest.LogCaptureFixture):
    (row,) = own_rows(replace(inputs(), own=own(Fragile)), ROUNDS)
    assert row["value"] > 0 and row["low"] is None and row["high"] is None
    (line,) = caplog.messages
    assert line.startswith("Fragile has no interval in the report") and "samples occur twice" in line


def test_metrics_of_the_user_are_rows_with_escaped_names():
    """A metric without an interval has the word "none" there."""
    undefined = Metric("<b>mine</b>", "<b>mine</b>", lambda weighed: np.array([np.nan]), "own")
    constant = Metric("two", "two", lambda w: np.full(1 if w.weights is None else len(w.weights), 2.0), "own")
    page = render_page(build_report(replace(inputs(), own=[undefined, constant]), label_errors=False, rounds=20))
    table = page[page.index('id="headline"') : page.index('id="baselines"')]
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", table)
    intervals = {name: interval for name, _, interval in rows}
    assert intervals["&lt;b&gt;mine&lt;/b&gt;"] == "none" and "<b>mine" not in page
    assert ("two", "2.000", "2.000 to 2.000") in rows
    assert [name for name, interval in intervals.items() if interval == "none"] == ["&lt;b&gt;mine&lt;/b&gt;"]
