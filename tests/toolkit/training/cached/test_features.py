"""Cached features: those of the whole model, in sample order, read back and not computed again."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from failing import fails
from tqdm import tqdm

from shards.dataset.manifest import Manifest
from shards.inputs.images import ANY, decode
from toolkit.config.augmentation_registry import AugmentConfig
from toolkit.config.schema import Config, DataConfig, TrainConfig
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.models.factory import build_model
from toolkit.models.heads import HeadSpec, backbone_features, classifier_path
from toolkit.training.cached.feature_cache import FeatureBank, backbone_hash
from toolkit.training.cached.feature_files import read_features

SIZE = 32
PREPROCESSING = Preprocessing(SIZE, 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("test_resnet", 5, HeadSpec("linear", (), 0.3), SIZE).eval()


@pytest.fixture
def reader(shard_set: Path) -> ShardReader:
    return ShardReader.of_split(shard_set, "val", Manifest.read(shard_set))


def bank(model: torch.nn.Module, folder: Path, **augment: float) -> FeatureBank:
    config = Config(
        data=DataConfig(image_size=SIZE, workers=1),
        augment=AugmentConfig(**augment),  # type: ignore[arg-type]
        train=TrainConfig(eval_batch_size=4),
    )
    return FeatureBank(Accelerator(cpu=True), model, config, PREPROCESSING, folder, "set")


def test_features_are_what_the_classifier_is_given(
    model: torch.nn.Module, reader: ShardReader, tmp_path: Path, one_thread: None
):
    found = bank(model, tmp_path).evaluation_view(reader, "val")
    assert found.decoded.all() and found.values.shape == (len(reader), model.num_features)
    pixels = np.stack([PREPROCESSING.square(decode(reader.image_bytes(i), ANY)) for i in range(len(reader))])
    images = PREPROCESSING.normalize(torch.from_numpy(pixels))
    with torch.inference_mode():
        expected = model(images)
        classifier = model.get_submodule(classifier_path(model))
        assert torch.allclose(classifier(torch.from_numpy(found.values.copy())), expected, atol=0.02)
    assert expected.std() > 0.05  # the tolerance is small beside what the logits say


def test_what_was_computed_is_read_back(model: torch.nn.Module, reader: ShardReader, tmp_path: Path, one_thread: None):
    first = bank(model, tmp_path).training_view(reader, 1)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    again = bank(model, tmp_path).training_view(reader, 1)
    assert path.stat().st_mtime_ns == before and list(tmp_path.iterdir()) == [path]
    assert (again.values == first.values).all() and (again.decoded == first.decoded).all()


def test_the_bar_moves_with_every_batch(
    model: torch.nn.Module, reader: ShardReader, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
):
    moves: list[int] = []

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            moves.append(int(n or 0))
            return super().update(n)

    monkeypatch.setattr(
        "toolkit.training.cached.feature_cache.progress", lambda rows, *_, **__: Bar(total=rows, file=io.StringIO())
    )
    bank(model, tmp_path).evaluation_view(reader, "val")
    batches, last = divmod(len(reader), 4)
    assert moves == [4] * batches + [last] * bool(last) and batches > 1


def test_files_are_named_by_what_decides_them(
    model: torch.nn.Module, reader: ShardReader, tmp_path: Path, one_thread: None
):
    views = [
        bank(model, tmp_path).training_view(reader, 0),
        bank(model, tmp_path).training_view(reader, 1),
        bank(model, tmp_path, brightness=0.5).training_view(reader, 0),
        bank(model, tmp_path).evaluation_view(reader, "train"),
    ]
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    views.append(bank(model, tmp_path).training_view(reader, 0))
    assert len(list(tmp_path.iterdir())) == len(views)
    for i, one in enumerate(views):
        for other in views[:i]:
            assert not np.array_equal(one.values, other.values)


def test_the_hash_is_of_the_backbone_alone(model: torch.nn.Module):
    before = backbone_hash(model)
    with torch.no_grad():
        model.get_submodule(classifier_path(model)).weight.zero_()  # type: ignore[operator]
    assert backbone_hash(model) == before
    with torch.no_grad():
        next(model.buffers()).add_(1)
    assert backbone_hash(model) != before


def test_no_dropout_in_features(model: torch.nn.Module):
    images = torch.randn(3, 3, SIZE, SIZE)
    with torch.inference_mode():
        assert torch.equal(backbone_features(model, images), backbone_features(model, images))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"values": np.zeros((3, 4), np.float16)}, "decoded is not a file"),
        ({"values": np.zeros((3, 4), np.float64), "decoded": np.ones(3, bool)}, "other types or shapes"),
        ({"values": np.zeros((2, 4), np.float16), "decoded": np.ones(2, bool)}, "other types or shapes"),
        ({"values": np.full((3, 4), np.nan, np.float16), "decoded": np.ones(3, bool)}, "other types or shapes"),
        ({"values": np.array([{}]), "decoded": np.ones(3, bool)}, "allow_pickle"),
        (None, "not a zip file"),
    ],
)
def test_a_cache_that_holds_something_else_is_one_line(tmp_path: Path, arrays: dict[str, Any] | None, words: str):
    path = tmp_path / "train-0.npz"
    np.savez(path, **arrays) if arrays is not None else path.write_bytes(b"x")
    with fails("path-unreadable", path, words):
        read_features(path, 3)
    np.savez_compressed(path, values=np.zeros((3, 10**6), np.float16), decoded=np.ones(3, bool))
    with fails("path-unreadable", path, "larger than the file"):
        read_features(path, 3)


@pytest.mark.parametrize("scale", [1e6, 1e-9])
def test_features_that_half_precision_does_not_hold_are_kept(
    model: torch.nn.Module, reader: ShardReader, tmp_path: Path, scale: float, monkeypatch: pytest.MonkeyPatch
):
    """Neither an infinity nor 0 is made of them."""
    plain = bank(model, tmp_path / "plain").evaluation_view(reader, "val").values
    monkeypatch.setattr(
        "toolkit.training.cached.feature_cache.backbone_features", lambda *given: scale * backbone_features(*given)
    )
    found = bank(model, tmp_path / "scaled").evaluation_view(reader, "val").values
    with np.errstate(over="ignore"):
        half = (scale * plain).astype(np.float16)
    assert np.isinf(half).any() if scale > 1 else (half == 0).all()
    assert np.isfinite(found).all() and np.allclose(found, scale * plain, rtol=1e-4, atol=0)


def test_features_that_are_no_numbers_are_named(
    model: torch.nn.Module, reader: ShardReader, tmp_path: Path, one_thread: None
):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bn2.bias"):
                parameter.fill_(float("inf"))
    with fails("not-finite", f"{len(reader)} of {len(reader)} samples", "--train.precision", "--train.feature_views 0"):
        bank(model, tmp_path).evaluation_view(reader, "val")
    assert not list(tmp_path.iterdir())


def test_files_of_earlier_versions_are_read(
    model: torch.nn.Module, reader: ShardReader, tmp_path: Path, one_thread: None
):
    """And mapped where they lie: computing them again would take its time."""
    first = bank(model, tmp_path).evaluation_view(reader, "val")
    (path,) = tmp_path.iterdir()
    old = path.with_suffix(".npz")
    np.savez(old, values=first.values.astype(np.float16), decoded=first.decoded)
    path.unlink()
    again = bank(model, tmp_path).evaluation_view(reader, "val")
    assert list(tmp_path.iterdir()) == [old]
    assert again.values.dtype == np.float16 and (again.values == first.values.astype(np.float16)).all()
    assert (again.decoded == first.decoded).all()
    assert isinstance(again.values.base, np.memmap)
