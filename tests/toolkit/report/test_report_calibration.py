"""Calibration in the report, genre by genre: what the diagrams hold, of which genres, and what the page says."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from report_tools import GENRES, SAMPLES, decisions, inputs, said, simulate

from toolkit.metrics.helpers import sigmoid
from toolkit.report.build import Report, build_report, genre_calibration
from toolkit.report.output import render_page
from toolkit.report.plots.reliability_plots import MIN_POSITIVES, genre_bins


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(inputs(), label_errors=False, rounds=20)


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render_page(report)


def test_bins_of_a_genre_by_hand():
    before = np.array([0.9, 0.1, 0.5, 0.2] * 5)
    truth = np.array([True, False, True, False] * 5)
    low, high = genre_bins(truth, before, before / 2)
    assert low == {"count": 10, "observed": 0.0, "before": pytest.approx(0.15), "after": pytest.approx(0.075)}
    assert high == {"count": 10, "observed": 1.0, "before": pytest.approx(0.7), "after": pytest.approx(0.35)}


def test_calibration_of_each_genre_with_enough_posters(report: Report):
    targets, logits = simulate()
    found = report.numbers["calibration"]["genres"]
    commonest = sorted(range(len(GENRES)), key=lambda g: -targets[:, g].sum())
    assert list(found) == [GENRES[g] for g in commonest if targets[:, g].sum() >= MIN_POSITIVES] and len(found) == 3
    for genre, bins in found.items():
        column = GENRES.index(genre)
        sizes = [row["count"] for row in bins]
        assert sum(sizes) == SAMPLES and max(sizes) - min(sizes) <= 1
        for key, values in (
            ("before", sigmoid(logits)),
            ("after", decisions().probabilities(logits)),
            ("observed", targets),
        ):
            mean = sum(row["count"] * row[key] for row in bins) / SAMPLES
            assert mean == pytest.approx(values[:, column].mean()), key
        assert [row["after"] for row in bins] == sorted(row["after"] for row in bins)
    assert [row["genre"] for _, row in report.diagrams] == list(found)


def test_calibration_of_many_genres_is_capped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.report.build.MAX_DIAGRAMS", 2)
    given = inputs(other=False)
    assert list(genre_calibration(given)) == ["Drama", "Comedy"]


def test_calibration_of_each_genre_is_shown_before_and_after(page: str, report: Report):
    text = unescape(re.sub(r"<[^>]+>", " ", page))
    rows = {row["genre"]: row for row in report.numbers["per_genre"]}
    assert len(report.diagrams) == 3 and "3 of 5 genres have a diagram: the genres with at least 20 posters." in text
    for plot, row in report.diagrams:
        assert row == rows[row["genre"]] and row["genre"] in plot.alt and unescape(plot.alt) in unescape(page)
        assert f"error {row['ece_before']:.3f} → {row['ece']:.3f}" in text
    for row in rows.values():  # in the table
        assert f"<td>{row['ece_before']:.3f}</td><td>{row['ece']:.3f}</td></tr>" in page


def test_without_calibration_there_is_no_before_and_after():
    given = inputs(other=False)
    plain = replace(given, model=said(given.model.logits, decisions(False)))
    html = render_page(build_report(plain, label_errors=False, rounds=5))
    assert (
        "cal. error</th></tr>" in html
        and "<th>not calibrated</th></tr>" in html
        and "→" not in html
        and "Orange dots" not in html
    )
    few = replace(plain, targets=plain.targets & (np.arange(SAMPLES) < 15)[:, None])
    assert "Calibration per genre" in html
    assert "Calibration per genre" not in render_page(build_report(few, label_errors=False, rounds=5))


def test_many_genres_are_capped_and_that_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.report.build.MAX_DIAGRAMS", 2)
    html = render_page(build_report(inputs(other=False), label_errors=False, rounds=5))
    assert "2 of 5 genres have a diagram: the most common of the 3 genres with at least 20 posters." in html
