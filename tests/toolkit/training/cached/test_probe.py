"""The head that trains on cached features, and the whole model that it ends in."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from toolkit_helpers import weights_option
from train_tools import make_parts, tiny_config

from shards.dataset.manifest import Manifest
from toolkit.config.schema import Config, DataConfig, TrainConfig
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.models.factory import build_model, clean_state
from toolkit.models.heads import HeadSpec, backbone_features, classifier_path
from toolkit.training.batches import train_plan
from toolkit.training.cached.feature_files import Features
from toolkit.training.cached.probe import FeatureFeed, Probe, build_head, merge


def features(n: int, width: Any, seed: int, decoded: bool = True) -> Features:
    rng = np.random.default_rng(seed)
    flags = np.ones(n, dtype=bool) if decoded else rng.random(n) < 0.8
    return Features(rng.normal(2.0, 3.0, (n, width)).astype(np.float16), flags)


@pytest.mark.parametrize(
    "head",
    [
        HeadSpec("linear", (), 0.3),
        HeadSpec("mlp", (8, 6), 0.3),
        HeadSpec("mlp", (), 0.3),
        HeadSpec("ensemble", (8,), 0.3, 3),
    ],
)
@pytest.mark.parametrize("name", ["test_resnet", "convnext_atto", "test_vit"])
@pytest.mark.parametrize("standardize", [True, False])
def test_merging_gives_the_heads_logits_on_pixels(name: str, head: HeadSpec, standardize: bool):
    torch.manual_seed(1)
    size = 160 if name == "test_vit" else 32
    model = build_model(name, 4, head, size).eval()
    images = torch.randn(6, 3, size, size)
    with torch.inference_mode():
        found = backbone_features(model, images)
    views = [Features(found.half().numpy(), np.ones(6, dtype=bool))]
    probe = build_head(model, views, standardize, 0.3).eval()
    with torch.no_grad():  # as if trained
        for parameter in probe.classifier.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    before = copy.deepcopy(model.state_dict())
    whole = merge(model, probe)
    with torch.inference_mode():
        assert torch.allclose(whole(images), probe(found), atol=1e-3)
        assert not torch.allclose(whole(images), model(images), atol=1e-3)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert [name for name, _ in whole.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_standardising_gives_mean_zero_and_deviation_one():
    model = build_model("test_resnet", 4, HeadSpec("linear", (), 0.0), 32)
    views = [features(500, model.num_features, seed, decoded=False) for seed in (0, 1)]
    head = build_head(model, views, True, 0.0)
    rows = torch.from_numpy(np.concatenate([v.values[v.decoded] for v in views])).float()
    scaled = (rows - head.mean) / head.deviation
    assert scaled.mean(0).abs().max() < 1e-3 and (scaled.std(0, unbiased=False) - 1).abs().max() < 1e-3
    plain = build_head(model, views, False, 0.0)
    assert torch.equal((rows - plain.mean) / plain.deviation, rows)


HEADS = [
    HeadSpec("linear", (), 0.3),
    HeadSpec("mlp", (8, 6), 0.3),
    HeadSpec("mlp", (), 0.3),
    HeadSpec("levels", (), 0.3),
    HeadSpec("ensemble", (8,), 0.3, 3),
]


def make_probe(shard_set: Path, out: Path, head: HeadSpec, *options: str) -> Probe:
    """A run's probe before its first update, on standardised features."""
    config = tiny_config(
        "--model.freeze=[backbone]", weights_option(), "--train.feature_views=2", "--train.standardize=true",
        f"--model.head={head.kind}", f"--model.hidden={list(head.hidden)}", f"--model.members={head.members}",
        *options,
    )  # fmt: skip
    probe = make_parts(shard_set, config, out)[1].inputs
    assert isinstance(probe, Probe)
    return probe


def first_logits(probe: Probe) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, G) logits of the head before its first update, and of the model's own classifier, on the same features."""
    found = torch.from_numpy(probe.val.values).float()
    classifier = probe.model.get_submodule(classifier_path(probe.model)).eval()
    with torch.inference_mode():
        return probe.trained.eval()(found), classifier(found)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: f"{head.kind}-{len(head.hidden)}")
def test_a_head_that_comes_with_the_weights_starts_as_what_it_was(
    shard_set: Path, tmp_path: Path, head: HeadSpec, one_thread: None
):
    genres = len(Manifest.read(shard_set).labels)
    torch.manual_seed(5)
    source = build_model("test_resnet", genres, head, 32).eval()
    save_file(clean_state(source), tmp_path / "w.safetensors")
    probe = make_probe(shard_set, tmp_path, head, f"--model.weights={tmp_path / 'w.safetensors'}", "--model.prior=true")
    assert (probe.trained.deviation != 1).all() and (probe.trained.mean != 0).any()
    ours, plain = first_logits(probe)
    assert torch.allclose(ours, plain, atol=1e-4)
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(probe.model.eval()(images), source(images), atol=1e-6)
        assert torch.allclose(probe.whole(probe.trained).eval()(images), source(images), atol=1e-4)


@pytest.mark.parametrize("weights", ["none", "another size", "no head"])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: f"{head.kind}-{len(head.hidden)}")
def test_a_fresh_head_keeps_the_weights_that_were_drawn(
    shard_set: Path, tmp_path: Path, head: HeadSpec, weights: str, one_thread: None
):
    options = []
    if weights != "none":
        genres = 99 if weights == "another size" else 0
        save_file(clean_state(timm.create_model("test_resnet", num_classes=genres)), tmp_path / "w.safetensors")
        options.append(f"--model.weights={tmp_path / 'w.safetensors'}")
    probe = make_probe(shard_set, tmp_path, head, *options)
    drawn = probe.model.get_submodule(classifier_path(probe.model)).state_dict()
    assert all(torch.equal(tensor, drawn[name]) for name, tensor in probe.trained.classifier.state_dict().items())
    ours, plain = first_logits(probe)
    assert not torch.allclose(ours, plain, atol=1e-3)


def test_dropout_stands_before_the_classifier_in_training():
    model = build_model("test_vit", 4, HeadSpec("linear", (), 0.0), 160)
    head = build_head(model, [features(9, model.num_features, 0)], True, 0.5)
    rows = torch.randn(3, head.mean.numel())
    assert not torch.equal(head(rows), head(rows))
    head.eval()
    assert torch.equal(head(rows), head(rows))


def test_only_the_classifier_is_trained():
    model = build_model("test_resnet", 4, HeadSpec("mlp", (8,), 0.5), 32)
    head = build_head(model, [features(9, model.num_features, 0)], True, 0.5)
    wanted = sum(p.numel() for p in model.get_submodule(classifier_path(model)).parameters())
    assert sum(p.numel() for p in head.parameters()) == wanted


@pytest.fixture
def reader(shard_set: Path) -> ShardReader:
    return ShardReader.of_split(shard_set, "train", Manifest.read(shard_set))


def feed(reader: ShardReader, **options: object) -> FeatureFeed:
    config = Config(
        data=DataConfig(**options),  # type: ignore[arg-type]
        train=TrainConfig(batch_size=8),
    )
    views = [features(len(reader), 6, seed, decoded=False) for seed in range(3)]
    plan = train_plan(config, reader)
    return FeatureFeed(config.train, plan, views, features(7, 6, 9, decoded=False), Accelerator(cpu=True))


@pytest.mark.parametrize("sampling", ["uniform", "genre"])
def test_an_epoch_is_the_plans_with_the_views_in_turn(reader: ShardReader, sampling: str):
    source = feed(reader, sampling=sampling, repeat_below=0.5)
    for epoch in range(4):
        batches = list(source.batches(epoch, 0))
        expected = list(source.plan.rest_of_epoch(epoch, 0, 1))
        assert len(batches) == len(expected) == source.plan.steps_per_epoch
        for batch, micro_batch in zip(batches, expected, strict=True):
            assert (batch.micro_batch.indices == micro_batch.indices).all()
            for row, (sample, draw) in enumerate(zip(micro_batch.indices, micro_batch.repeat, strict=True)):
                view = source.views[(epoch + int(draw)) % 3]
                assert (batch.images[row].numpy() == view.values[sample].astype(np.float32)).all()
                assert batch.micro_batch.valid[row] == (micro_batch.valid[row] and view.decoded[sample])
    resumed = list(source.batches(2, 3))
    assert (resumed[0].micro_batch.indices == list(source.plan.rest_of_epoch(2, 0, 1))[3].indices).all()


def test_validation_gives_every_sample_its_logits(reader: ShardReader):
    source = feed(reader)
    linear = torch.nn.Linear(6, 2)
    logits, decoded = source.validate(linear)
    assert (decoded == source.val.decoded).all() and not decoded.all()
    with torch.inference_mode():
        expected = linear(torch.from_numpy(source.val.values).float()).numpy()
    assert np.allclose(logits[decoded], expected[decoded], atol=1e-6) and (logits[~decoded] == 0).all()
