"""One update: the gradient is that of the stated loss, and every feature of it changes something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from train_tools import TINY_VIT, drawn_batches, make_updater, make_updates, state_of

from toolkit.data.loader import targets_of

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = [*TINY_VIT, "--optim.name=momentum", "--optim.momentum=0", "--model.freeze=[]"]


def test_an_update_follows_the_gradient_of_the_sum_over_genres_and_mean_over_samples(
    shard_set: Path, tmp_path: Path
):
    updater, plan = make_updater(shard_set, tmp_path, *PLAIN)
    model = updater.plain_model
    before = state_of(model)
    (batch,) = drawn_batches(updater, plan, 0, 0)
    images = updater.parts.preprocessing.normalize(batch.images)
    targets = targets_of(batch.share, updater.parts.train.targets)
    elements = F.binary_cross_entropy_with_logits(model(images), targets, reduction="none")
    elements.sum(dim=1).mean().backward()
    slopes = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    expected = {name: before[name] - 0.1 * slope for name, slope in slopes.items()}
    model.zero_grad()
    (loss,) = make_updates(updater, plan, 1, 0.1)
    assert loss == pytest.approx(elements.mean().item(), rel=1e-5)  # what is logged is the mean over genres
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-4, atol=1e-7)


def test_clipping_is_of_that_gradient(shard_set: Path, tmp_path: Path):
    updater, plan = make_updater(shard_set, tmp_path, *PLAIN, "--optim.clip_norm=0.01")
    before = state_of(updater.plain_model)
    make_updates(updater, plan, 1, 1.0)
    after = updater.plain_model.state_dict()
    moved = torch.sqrt(sum(((after[n] - before[n]) ** 2).sum() for n in before))
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


def test_accumulation_leaves_the_update_as_it_is(shard_set: Path, tmp_path: Path):
    results = []
    for accumulation in (1, 3):
        updater, plan = make_updater(shard_set, tmp_path, *PLAIN, accumulation=accumulation)
        losses = make_updates(updater, plan, 3, 0.1)
        results.append((losses, state_of(updater.plain_model)))
    (alone, whole), (parted, cut) = results
    assert parted == pytest.approx(alone, rel=1e-5)
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "option",
    [
        "--loss.name=asl",
        "--loss.name=focal",
        "--loss.name=weighted",
        "--loss.name=balanced",
        "--loss.smoothing=0.1",
        "--augment.mixup=0.5",
        "--augment.cutmix=0.5",
        "--augment.brightness=0.5",
        "--augment.contrast=0.5",
        "--augment.saturation=0.5",
        "--augment.randaugment=2",
        "--augment.erase=1",
        "--model.drop_path=0.5",
        "--model.dropout=0.5",
    ],
)
def test_what_an_update_should_feel_is_wired_in(shard_set: Path, tmp_path: Path, option: str):
    losses = []
    for options in ([], [option]):
        updater, plan = make_updater(shard_set, tmp_path, *PLAIN, *options)
        # A known model: with the same weights and samples only the option can make a difference.
        losses += make_updates(updater, plan, 1, 0.0)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_recomputation_is_wired_in_and_changes_nothing(shard_set: Path, tmp_path: Path):
    results, passes = [], []
    for options in ([], ["--model.checkpointing=true"]):
        updater, plan = make_updater(shard_set, tmp_path, *options)  # with BatchNorm and dropout
        calls: list[int] = []
        layer = updater.plain_model.get_submodule("layer2.0.conv1")
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        make_updates(updater, plan, 2, 0.01)
        results.append(state_of(updater.plain_model))
        passes.append(len(calls))
    assert passes == [2, 4]
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


def test_an_epoch_of_genre_sampling_is_longer(shard_set: Path, tmp_path: Path):
    _, uniform = make_updater(shard_set, tmp_path)
    updater, plan = make_updater(shard_set, tmp_path, "--data.sampling=genre", "--data.repeat_below=0.5")
    assert uniform.num_samples == len(updater.parts.train) < plan.num_samples


def test_a_masked_row_weighs_nothing(shard_set: Path, tmp_path: Path):
    updater, plan = make_updater(shard_set, tmp_path, *PLAIN)
    (batch,) = drawn_batches(updater, plan, 0, 0)
    whole = float(updater.loss(updater.plain_model, batch, 0))
    batch.share.valid[0] = False
    rest = float(updater.loss(updater.plain_model, batch, 0))
    batch.share.valid[:] = False
    batch.share.valid[0] = True
    one = float(updater.loss(updater.plain_model, batch, 0))
    assert whole == pytest.approx(rest + one, rel=1e-5) and one > 0
