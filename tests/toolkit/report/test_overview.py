"""The first screen: its sentences follow from the metrics, and the advice from the tables."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_tools import GENRES, decisions, inputs, said, simulate
from sklearn.metrics import precision_score, recall_score

from toolkit.metrics.bootstrap import Draws, Measured
from toolkit.report.advice import NOTHING, advice
from toolkit.report.build import Report, build_report
from toolkit.report.glossary import GLOSSARY
from toolkit.report.overview import POSTERS, drawn_posters, strengths

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def report() -> Report:
    given = inputs()
    return build_report(replace(given, train_prevalence=np.array([0.5, 0.6, 0.25, 0.04, 0.001])), label_errors=False)


def test_the_tiles_are_scikit_learns(report: Report):
    targets, logits = simulate()
    named = decisions().named(logits)
    tiles = {tile["key"]: tile for tile in report.numbers["overview"]["tiles"]}
    guess = np.zeros_like(targets)
    guess[:, [1, 0]] = True  # the two most common genres of training
    expected = {
        "precision": precision_score(targets, named, average="micro"),
        "recall": recall_score(targets, named, average="micro"),
        "rare": recall_score(targets[:, 3], named[:, 3]),  # no poster has the other rare genre
        "guessing": precision_score(targets, guess, average="micro"),
    }
    assert list(tiles) == list(expected)
    for key, value in expected.items():
        tile = tiles[key]
        assert tile["value"] == pytest.approx(value) and tile["low"] < value < tile["high"]
        assert f"{100 * value:.0f}" in tile["words"] and f"{value:.3f}" in tile["explanation"]
    assert f"finds {100 * recall_score(targets, guess, average='micro'):.0f}" in tiles["guessing"]["words"]
    assert GENRES[3] in tiles["rare"]["explanation"]


def test_a_model_that_names_nothing_has_one_tile():
    given = inputs(other=False)
    silent = replace(given, model=said(given.model.logits, replace(decisions(), thresholds=np.ones(len(GENRES)))))
    (tile,) = build_report(silent, label_errors=False, rounds=5).numbers["overview"]["tiles"]
    assert tile["words"] == "It names no genre for any poster" and tile["value"] is None


def named_by(genres: list[tuple[str, int, float, float]], rounds: int = 4000) -> dict[str, list[str]]:
    """The strong and weak genres of (name, support, F1, share of resamples whose F1 is 0)."""
    rows = [
        {"genre": name, "support": support, "prevalence": support / 100, "precision": f1, "recall": f1, "f1": f1}
        for name, support, f1, _ in genres
    ]
    values = np.array([[0.0 if k < zeros * rounds else f1 for _, _, f1, zeros in genres] for k in range(rounds)])
    draws = Draws(Measured({}, {"f1": np.array([[f1 for _, _, f1, _ in genres]])}), Measured({}, {"f1": values}))
    return {key: [row["genre"] for row in chosen] for key, chosen in strengths(rows, draws).items()}


def test_a_genre_is_good_if_it_is_surely_better_than_naming_it_always():
    genres = [
        ("sure", 50, 0.9, 0.0), ("unsure", 50, 0.9, 0.04), ("few", 9, 1.0, 0.0), ("rare", 10, 0.4, 0.0),
        ("none", 10, 0.0, 0.0),
    ]  # fmt: skip
    assert named_by(genres) == {"good": ["sure", "rare"], "bad": ["none", "unsure"]}


def test_many_genres_need_more_evidence_each():
    """p is 0.04: enough for one genre, too little for one of twenty."""
    assert named_by([("A", 50, 0.9, 0.02)])["good"] == ["A"]
    assert named_by([(f"genre {k}", 50, 0.9, 0.02) for k in range(20)])["good"] == []


def test_a_good_genre_that_is_not_named_is_not_called_bad():
    genres = [(name, 50, f1, 0.0) for name, f1 in zip("ABCDE", (0.99, 0.98, 0.97, 0.96, 0.95), strict=True)]
    assert named_by(genres) == {"good": ["A", "B", "C"], "bad": []}


def test_the_posters_do_not_depend_on_the_model_and_are_no_near_duplicates():
    given = inputs(other=False)
    ids = [example.id for example in drawn_posters(given)]
    assert len(set(ids)) == len(ids) == POSTERS
    other = replace(given, model=said(-given.model.logits, decisions()))
    assert [example.id for example in drawn_posters(other)] == ids
    units = np.arange(len(given.targets)) // 60
    assert len(drawn_posters(replace(given, units=units))) == 2


# --- advice -------------------------------------------------------------------------------------------------------


def words(numbers: dict[str, Any]) -> str:
    return " | ".join(f"{row['words']} [{row['command']}]" for row in advice(numbers))


@pytest.fixture
def fine(report: Report) -> dict[str, Any]:
    """The tables of a report without a reason for advice."""
    numbers = deepcopy(report.numbers)
    numbers["facts"]["trained_elsewhere"] = False
    numbers["calibration"]["after"]["loss"] = numbers["calibration"]["before"]["loss"]
    for row in numbers["per_genre"]:
        row["support"] = 10
    for table in numbers["comparisons"]:
        for row in table["rows"]:
            row["words"] = "better"
    assert advice(numbers) == [NOTHING]
    return numbers


def test_each_rule_speaks_when_its_figures_do(fine: dict[str, Any]):
    def changed(**values: Any) -> str:
        return words(deepcopy(fine) | values)

    assert "test split [posters evaluate --split test]" in changed(split="val")
    assert "has not seen" in changed(facts=fine["facts"] | {"trained_elsewhere": True})
    assert "120 posters have labels" in changed(label_errors={"samples": 120}).replace("120 of 120", "120")
    assert "labels" not in changed(label_errors={"samples": 12})
    calibration = deepcopy(fine["calibration"])
    calibration["after"]["loss"] += 0.01
    assert "[posters tune --calibration none]" in changed(calibration=calibration)
    genres = deepcopy(fine["per_genre"])
    genres[0]["support"] = 9
    assert words(fine | {"per_genre": genres}).startswith("1 genre has fewer than 10 posters in this split: judge")


def test_advice_on_thresholds_needs_a_loss_and_no_gain(fine: dict[str, Any]):
    (table,) = [table for table in fine["comparisons"] if table["kind"] == "single"]
    rows = {row["metric"]: row for row in table["rows"]}
    rows["micro_f1"] |= {"words": "worse", "difference": -0.013}
    assert advice(fine) == [NOTHING]  # macro-F1 is better
    rows["macro_f1"]["words"] = "no difference seen"
    assert "cost 0.013 micro-F1" in words(fine) and "[posters tune --thresholds global]" in words(fine)


def test_a_model_like_guessing_is_told(fine: dict[str, Any]):
    rows = {row["metric"]: row for row in fine["comparisons"][0]["rows"]}
    rows["micro_f1"]["words"] = "worse"
    assert "has a higher micro-F1" in words(fine)
    rows["mAP"]["words"] = "no difference seen"
    assert words(fine).startswith("No difference to guessing was seen")


def test_the_glossary_of_the_docs_is_that_of_the_page():
    page = (DOCS / "reference" / "glossary.md").read_text(encoding="utf-8")
    rows = [line.strip("| \n").partition(" | ") for line in page.splitlines() if line.startswith("| ")][2:]
    assert {word: meaning for word, _, meaning in rows} == GLOSSARY
