"""What the trainer is given (setup.py): first biases, a head on cached features; and when it stops."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from toolkit_helpers import TINY, weights_option
from torch import nn
from train_tools import make_parts, tiny_config

from shards.errors import UserError
from toolkit.cli.main import main
from toolkit.config.values import HeadKind
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.models.factory import build_model, clean_state
from toolkit.models.heads import HeadSpec, head_prefixes
from toolkit.training import trainer, validation
from toolkit.training.cached.probe import Head, Probe
from toolkit.training.run import train
from toolkit.training.run_log import RunLog
from toolkit.training.setup import TrainingSetup

pytestmark = pytest.mark.usefixtures("one_thread")

CACHED = ["--model.freeze=[backbone]", weights_option(), "--train.feature_views=2"]


def parts_of(shard_set: Path, out: Path, *options: str) -> TrainingSetup:
    return make_parts(shard_set, tiny_config(*options), out)[1]


def test_the_time_of_writing_a_row_is_part_of_the_next_ones(
    shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows: list[dict[str, Any]] = []

    def slow(self: RunLog, row: dict[str, Any]) -> None:
        rows.append(row)
        time.sleep(0.5)

    monkeypatch.setattr(RunLog, "step", slow)
    assert train(tiny_config("--train.epochs=1", "--train.log_steps=1"), shard_set, tmp_path / "run") == 0
    assert len(rows) > 2 and all(20 / row["images_per_s"] > 0.4 for row in rows[1:])  # of 20 images or fewer


# --- the prior --------------------------------------------------------------------------------------------------------


@pytest.fixture
def log_odds(shard_set: Path) -> torch.Tensor:
    """(G,) of the genres' shares in training."""
    share = ShardReader.of_split(shard_set, "train").targets.mean(axis=0)
    return torch.logit(torch.from_numpy(np.clip(share, 1e-4, 1 - 1e-4)).float())


def head_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The classifier's parameters."""
    return {n: p.detach() for n, p in model.named_parameters() if n.startswith(head_prefixes(model))}


def last_bias(model: nn.Module) -> torch.Tensor:
    return [tensor for name, tensor in head_state(model).items() if name.endswith("bias")][-1]


def test_without_a_prior_biases_know_nothing_of_prevalence(shard_set: Path, tmp_path: Path, log_odds: torch.Tensor):
    assert not torch.allclose(last_bias(parts_of(shard_set, tmp_path).model), log_odds, atol=0.1)


@pytest.mark.parametrize("head", ["mlp", "linear", "levels"])
@pytest.mark.parametrize("cached", [[], CACHED], ids=["pixels", "cached"])
@pytest.mark.parametrize("weights", ["none", "another size", "no head"])
def test_a_fresh_head_starts_at_the_prior(
    shard_set: Path, tmp_path: Path, log_odds: torch.Tensor, head: HeadKind, cached: list[str], weights: str
):
    options = ["--model.prior=true", f"--model.head={head}", *cached]
    if weights != "none":
        state = clean_state(
            timm.create_model("test_resnet", num_classes=len(log_odds) + 1 if weights != "no head" else 0)
        )
        save_file(state, tmp_path / "w.safetensors")
        options.append(f"--model.weights={tmp_path / 'w.safetensors'}")
    setup = parts_of(shard_set, tmp_path, *options)
    torch.testing.assert_close(last_bias(setup.model), log_odds)


@pytest.mark.parametrize("head", ["mlp", "linear", "levels"])
@pytest.mark.parametrize("cached", [[], CACHED], ids=["pixels", "cached"])
def test_a_head_that_comes_with_its_weights_keeps_its_biases(
    shard_set: Path, tmp_path: Path, log_odds: torch.Tensor, head: HeadKind, cached: list[str]
):
    """As in training on from an earlier RUN/model/model.safetensors."""
    torch.manual_seed(5)
    source = build_model("test_resnet", len(log_odds), HeadSpec(head, (8,), 0.5), 32)
    save_file(clean_state(source), tmp_path / "w.safetensors")
    setup = parts_of(
        shard_set, tmp_path, "--model.prior=true", f"--model.head={head}", *cached,
        f"--model.weights={tmp_path / 'w.safetensors'}",
    )  # fmt: skip
    for kept, tensor in zip(head_state(setup.model).values(), head_state(source).values(), strict=True):
        assert torch.equal(kept, tensor)


@pytest.mark.parametrize("size", ["another", "the same"])
def test_a_head_of_the_hub_is_kept_if_it_fits(
    shard_set: Path, tmp_path: Path, log_odds: torch.Tensor, size: str, monkeypatch: pytest.MonkeyPatch
):
    genres = len(log_odds) + (size == "another")
    torch.manual_seed(5)
    source = timm.create_model("test_resnet", num_classes=genres)
    save_file(clean_state(source), tmp_path / "hub.safetensors")
    overlay = {"file": str(tmp_path / "hub.safetensors"), "num_classes": genres}
    from_hub = partial(timm.create_model, pretrained_cfg_overlay=overlay)
    monkeypatch.setattr("toolkit.models.factory.timm.create_model", from_hub)
    options = ["--model.pretrained=true", "--model.prior=true"]
    linear = parts_of(shard_set, tmp_path, *options, "--model.head=linear").model
    assert torch.equal(linear.get_parameter("conv1.0.weight"), source.get_parameter("conv1.0.weight"))
    torch.testing.assert_close(last_bias(linear), last_bias(source) if size == "the same" else log_odds)
    # The reference head is ours, whatever the hub has.
    torch.testing.assert_close(last_bias(parts_of(shard_set, tmp_path, *options).model), log_odds)


# --- a head on cached features ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("standardize", [True, False])
def test_features_are_standardised_if_asked(shard_set: Path, tmp_path: Path, standardize: bool):
    setup = parts_of(shard_set, tmp_path, *CACHED, f"--train.standardize={str(standardize).lower()}")
    assert isinstance(setup.inputs, Probe) and setup.model is setup.inputs.trained
    head = setup.inputs.trained
    rows = torch.from_numpy(np.concatenate([view.values for view in setup.inputs.views])).float()
    scaled = (rows - head.mean) / head.deviation
    if standardize:
        assert scaled.mean(0).abs().max() < 1e-2 < rows.mean(0).abs().max()
        assert not torch.equal(head.deviation, torch.ones_like(head.deviation))
    else:
        assert torch.equal(scaled, rows)


@pytest.mark.parametrize("kind", ["linear", "levels", "mlp"])
def test_dropout_stands_before_each_layer_once(shard_set: Path, tmp_path: Path, kind: str):
    """An mlp head has it within, as on pixels; the others get theirs from the probe."""
    model = parts_of(shard_set, tmp_path, *CACHED, f"--model.head={kind}", "--model.dropout=0.3").model
    assert isinstance(model, Head)
    inner = [m.p for m in model.classifier.modules() if isinstance(m, nn.Dropout)]
    assert (model.dropout.p, inner) == ((0.0, [0.3]) if kind == "mlp" else (0.3, []))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--train.auto_batch=true", "train.auto_batch false"),
        ("--augment.mixup=0.2", "augment.mixup"),
        ("--optim.layer_decay=0.8", "optim.layer_decay 1"),
        ("--model.drop_path=0.1", "model.drop_path 0"),
        ("--model.checkpointing=true", "model.checkpointing false"),
        ("--model.freeze=[stem]", "model.freeze [backbone]"),
        ("--model.freeze=[backbone@1]", "model.freeze [backbone]"),
        ("--model.freeze=[backbone, layer4@1]", "model.freeze [layer4@1] cannot be combined"),
        ("--model.freeze=[backbone, fc]", "model.freeze [fc] cannot be combined"),
    ],
)
def test_what_a_head_alone_would_pass_over_is_refused_before_features_are_computed(
    shard_set: Path, tmp_path: Path, option: str, words: str
):
    with pytest.raises(UserError) as caught:
        parts_of(shard_set, tmp_path, *CACHED, option)
    message = str(caught.value)
    assert words in message and "--train.feature_views 0" in message and "\n" not in message
    assert not (tmp_path / "features").exists()


# --- early stopping ---------------------------------------------------------------------------------------------------


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation losses of six epochs as a test wants them; all else is as it is."""
    losses: Iterator[float] = iter([3.0, 2.0, 2.5, 1.0, 1.0, 0.5])

    def validate(*args: Any) -> validation.ValidationResult:
        verdict = validation.validate(*args)
        return replace(verdict, evaluation=replace(verdict.evaluation, loss=next(losses)))

    monkeypatch.setattr(trainer, "validate", validate)


@pytest.mark.parametrize(
    ("patience", "epochs", "best"),
    [(1, 3, 2), (2, 6, 6), (0, 6, 6)],  # a loss as good as the best is no better one
)
@pytest.mark.usefixtures("scripted")
def test_patience_ends_training_and_the_best_epoch_stays(
    shard_set: Path, tmp_path: Path, patience: int, epochs: int, best: int, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    run = tmp_path / "run"
    options = ["--train.epochs=6", f"--train.patience={patience}", "--train.keep_checkpoints=9"]
    assert main(["train", "--shards", str(shard_set), "--out", str(run), *TINY, *options]) == 0
    with open(run / "epochs.csv") as stream:
        assert len(list(csv.DictReader(stream))) == epochs
    assert ("early stopping: 1 epochs without a better loss" in caplog.text) == (epochs < 6)
    assert json.loads((run / "model" / "config.json").read_text())["poster_toolkit"]["epoch"] == best
    saved = load_file(run / "model" / "model.safetensors")
    states = [
        torch.load(path / "state.pt", weights_only=True)["model"] for path in sorted((run / "checkpoints").iterdir())
    ]
    same = [all(torch.equal(saved[name], state[name]) for name in saved) for state in states]
    assert same == [number == best for number in range(1, epochs + 1)]
