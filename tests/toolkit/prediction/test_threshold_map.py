"""Thresholds of a loaded model as a mapping: reading, setting, and what is said of mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing import fails

import toolkit


@pytest.fixture
def model(model_folder: Path) -> toolkit.Predictor:
    return toolkit.load_model(model_folder, device="cpu")


def test_a_set_threshold_decides(model: toolkit.Predictor, drawn_set: Path):
    image, genre = toolkit.open_shards(drawn_set)[0][0], model.genres[2]
    model.thresholds[genre] = 1.0
    assert genre not in model.predict(image)["genres"][0]
    model.thresholds[genre] = 0
    assert genre in model.predict(image)["genres"][0]


def test_it_reads_as_a_dict(model: toolkit.Predictor, model_folder: Path):
    assert dict(model.thresholds) == dict.fromkeys(model.genres, 0.5) == model.thresholds
    assert repr(model.thresholds) == repr(dict.fromkeys(model.genres, 0.5))
    assert "Drama" in model.thresholds and "Cooking" not in model.thresholds and len(model.thresholds) == 7
    assert model.thresholds.get("Cooking") is None
    model.thresholds = {"Drama": 0.9, "War": np.float32(0.25)}
    model.thresholds.update({"Horror": 0.1})
    changed = {"Drama": 0.9, "War": 0.25, "Horror": 0.1}
    assert model.thresholds == {**dict.fromkeys(model.genres, 0.5), **changed}
    assert set(toolkit.load_model(model_folder, device="cpu").thresholds.values()) == {0.5}


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), True, "0.5", None])
def test_a_wrong_value(value: Any, model: toolkit.Predictor):
    with fails("option-value", "'Drama'", repr(value), "from 0 to 1"):
        model.thresholds.update({"War": 0.9, "Drama": value})
    assert model.thresholds["War"] == 0.5


def test_an_unknown_genre_is_a_key_error_with_a_suggestion(model: toolkit.Predictor):
    with fails("option-value", "'Drana'", "'Drama'"):
        model.thresholds["Drana"] = 0.5
    with fails("option-value", "'Cooking'", "Comedy, Drama"):
        _ = model.thresholds["Cooking"]
    with pytest.raises(KeyError):
        _ = model.thresholds["Cooking"]
