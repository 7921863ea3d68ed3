"""Sample weights in a training: in the loss of an update, in validation and in the commands after it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_tools import build, draw_posters, read_csv, write_csv
from torch.nn import functional as F
from train_tools import TINY_VIT, drawn_batches, make_updater, make_updates, state_of, tiny_config

from toolkit.cli.main import main
from toolkit.data.augment.mixup import draw_pairs
from toolkit.data.loader.loader import targets_of
from toolkit.metrics.helpers import cross_entropy
from toolkit.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = [*TINY_VIT, "--optim.name=momentum", "--optim.momentum=0", "--model.freeze=[]"]


@pytest.fixture(scope="module")
def weighted_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set with sample weights."""
    folder = tmp_path_factory.mktemp("weighted")
    source = draw_posters(folder, 60)
    rows = [(*row.values(), 0.1 + number % 5) for number, row in enumerate(read_csv(source.csv))]
    write_csv(source.csv, rows, ("id", "title", "year", "genre", "weight"))
    build(source, folder / "set", weight_column="weight")
    return folder / "set"


def test_a_loss_is_multiplied_by_the_weight_of_its_sample_over_the_mean_weight(weighted_set: Path, tmp_path: Path):
    train_step, plan = make_updater(weighted_set, tmp_path, *PLAIN)
    model, reader = train_step.plain_model, train_step.setup.train
    before = state_of(model)
    (batch,) = drawn_batches(train_step, plan, 0, 0)
    images = train_step.setup.preprocessing.normalize(batch.images)
    targets = targets_of(batch.micro_batch, reader)
    elements = F.binary_cross_entropy_with_logits(model(images), targets, reduction="none")
    assert reader.weights is not None and len(set(reader.weights.tolist())) == 5
    weights = torch.from_numpy(reader.weights[batch.micro_batch.indices] / reader.weights.mean()).float()
    (elements.sum(dim=1) * weights).mean().backward()
    expected = {name: before[name] - 0.1 * p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    (loss,) = make_updates(train_step, plan, 1, 0.1)
    assert loss == pytest.approx((elements * weights[:, None]).mean().item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-4, atol=1e-7)


def test_mixup_mixes_weights_as_it_mixes_targets(weighted_set: Path, tmp_path: Path):
    train_step, plan = make_updater(weighted_set, tmp_path, *PLAIN, "--augment.mixup=0.5")
    (batch,) = drawn_batches(train_step, plan, 0, 0)
    found, valid = train_step.losses(train_step.plain_model, batch, 0)
    train_step.mean_weight = None  # the same update without weights
    plain, _ = train_step.losses(train_step.plain_model, batch, 0)
    reader, config = train_step.setup.train, train_step.setup.config
    assert reader.weights is not None and bool(valid.all())
    expected = torch.from_numpy(reader.weights[batch.micro_batch.indices] / reader.weights.mean()).float()
    drawn = draw_pairs(config.augment, config.data.image_size, batch.micro_batch, config.train.seed, 0)
    assert len(drawn.first) and 0 < drawn.kept.min() < 1
    for first, kept in zip(drawn.first.tolist(), drawn.kept.tolist(), strict=True):
        a, b = expected[first].item(), expected[first + 1].item()
        expected[first], expected[first + 1] = kept * a + (1 - kept) * b, kept * b + (1 - kept) * a
    torch.testing.assert_close(found / plain, expected, rtol=1e-4, atol=1e-6)


def test_validation_and_evaluation_use_the_weights(weighted_set: Path, tmp_path: Path):
    """The loss of the epoch and of `posters evaluate` is the weighted mean of the losses in the prediction file."""
    run = tmp_path / "run"
    assert train(tiny_config("--train.epochs=1"), weighted_set, run) == 0
    assert main(["evaluate", "--model", str(run), "--shards", str(weighted_set), "--split", "val"]) == 0
    with np.load(run / "model" / "predictions-val.npz") as found:
        losses = cross_entropy(found["logits"].astype(np.float64), found["targets"].astype(bool)).mean(axis=1)
        weights = found["sample_weights"]
    expected = float(np.average(losses, weights=weights))
    assert expected != pytest.approx(float(losses.mean()), abs=1e-4)
    assert json.loads((run / "model" / "metrics-val.json").read_text())["loss"] == pytest.approx(expected, rel=1e-5)
    with open(run / "epochs.csv") as stream:
        (row,) = csv.DictReader(stream)
    assert float(row["val_loss"]) == pytest.approx(expected, rel=1e-3)
