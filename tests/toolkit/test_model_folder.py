"""The folder that leaves a training: loadable by plain timm, whole, and honest about damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from toolkit_helpers import make_model_folder

from shards.errors import UserError
from shards.labels import LabelSet
from toolkit.model_folder import load_model_folder, recover_model_folder
from toolkit.models import HeadSpec


def test_plain_timm_gives_the_same_logits(model_folder: Path):
    ours = load_model_folder(model_folder)
    theirs: Any = timm.create_model(f"local-dir:{model_folder}", pretrained=True).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(ours.model(images), theirs(images))
    cfg = theirs.pretrained_cfg
    assert list(cfg["input_size"]) == [3, 32, 32] and cfg["num_classes"] == len(ours.labels)
    assert list(cfg["label_names"]) == list(ours.labels.genres)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=theirs))
    assert "bilinear" in str(transform)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_models_of_a_fixed_size_too(tmp_path: Path, name: str):
    labels = LabelSet(("a", "b"))
    folder = make_model_folder(tmp_path / "m", labels, HeadSpec("linear", (), 0.0), size=64, name=name)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(load_model_folder(folder).model(images), theirs(images))


def test_mlp_head_round_trip(tmp_path: Path):
    labels = LabelSet(("a", "b", "c"))
    folder = make_model_folder(tmp_path / "m", labels, HeadSpec("mlp", (8, 4), 0.5))
    loaded = load_model_folder(folder)
    assert loaded.labels == labels and loaded.thresholds.tolist() == [0.5] * 3
    assert not loaded.model.training
    torch.manual_seed(0)  # the same weights again
    again = make_model_folder(tmp_path / "n", labels, HeadSpec("mlp", (8, 4), 0.5))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.model(images), load_model_folder(again).model(images))


def test_card_and_labels_tell_the_truth(model_folder: Path, labels: LabelSet):
    card = (model_folder / "README.md").read_text()
    assert all(genre in card for genre in labels.genres) and labels.fingerprint in card
    raw = json.loads((model_folder / "labels.json").read_text())
    assert raw["genres"] == list(labels.genres) and raw["fingerprint"] == labels.fingerprint


@pytest.fixture
def copy(model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "labels.json"])
def test_a_missing_file_is_named(copy: Path, name: str):
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"lacks {name}"):
        load_model_folder(copy)


def test_damaged_weights_are_noticed(copy: Path):
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="sha256"):
        load_model_folder(copy)


def test_edited_labels_are_noticed(copy: Path):
    raw = json.loads((copy / "labels.json").read_text())
    raw["genres"][0], raw["genres"][1] = raw["genres"][1], raw["genres"][0]
    (copy / "labels.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="fingerprint"):
        load_model_folder(copy)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"genres": 3}', "not json"])
@pytest.mark.parametrize("name", ["config.json", "labels.json"])
def test_malformed_json_is_one_line(copy: Path, name: str, text: str):
    (copy / name).write_text(text)
    with pytest.raises(UserError) as caught:
        load_model_folder(copy)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_no_folder():
    with pytest.raises(UserError, match="no model folder"):
        load_model_folder(Path("nowhere"))


def test_a_kill_between_the_two_renames_loses_nothing(copy: Path):
    copy.rename(copy.with_name("model.old"))
    half = copy.with_name("model.123.partial")
    half.mkdir()
    recover_model_folder(copy)
    assert np.isfinite(load_model_folder(copy).thresholds).all()
    assert not half.exists()
