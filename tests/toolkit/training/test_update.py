"""One update: the gradient is that of the stated loss, and every feature of it changes something."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from failing import fails
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from train_tools import TINY_VIT, drawn_batches, make_updater, make_updates, state_of

from toolkit.data.loader.loader import targets_of
from toolkit.data.sampling.plan import TrainPlan
from toolkit.distributed.collectives import seed_step
from toolkit.training.nonfinite import Guard
from toolkit.training.train_step import TrainStep

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = [*TINY_VIT, "--optim.name=momentum", "--optim.momentum=0", "--model.freeze=[]"]


def test_an_update_follows_the_gradient_of_the_sum_over_genres_and_mean_over_samples(shard_set: Path, tmp_path: Path):
    train_step, plan = make_updater(shard_set, tmp_path, *PLAIN)
    model = train_step.plain_model
    before = state_of(model)
    (batch,) = drawn_batches(train_step, plan, 0, 0)
    images = train_step.setup.preprocessing.normalize(batch.images)
    targets = targets_of(batch.micro_batch, train_step.setup.train)
    elements = F.binary_cross_entropy_with_logits(model(images), targets, reduction="none")
    elements.sum(dim=1).mean().backward()
    slopes = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    expected = {name: before[name] - 0.1 * slope for name, slope in slopes.items()}
    model.zero_grad()
    (loss,) = make_updates(train_step, plan, 1, 0.1)
    assert loss == pytest.approx(elements.mean().item(), rel=1e-5)  # what is logged is the mean over genres
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-4, atol=1e-7)


def test_clipping_is_of_that_gradient(shard_set: Path, tmp_path: Path):
    train_step, plan = make_updater(shard_set, tmp_path, *PLAIN, "--optim.clip_norm=0.01")
    before = state_of(train_step.plain_model)
    make_updates(train_step, plan, 1, 1.0)
    after = train_step.plain_model.state_dict()
    moved = torch.sqrt(sum(((after[n] - before[n]) ** 2).sum() for n in before))
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


def test_clipping_by_the_norm_of_the_guard_is_clipping(shard_set: Path, tmp_path: Path):
    results = []
    for guard in (True, False):
        train_step, plan, _ = guarded(shard_set, tmp_path, "stop", *PLAIN, "--optim.clip_norm=0.01")
        train_step.guard = train_step.guard if guard else None
        make_updates(train_step, plan, 2, 1.0)
        results.append(state_of(train_step.plain_model))
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


def test_an_update_is_seeded_as_torch_would_be(monkeypatch: pytest.MonkeyPatch):
    seeds: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(torch, "manual_seed", seeds.append)
        seed_step(3, 1, 2, 0, torch.device("cuda"))  # all generators
        assert len(seeds) == 1
        seed_step(3, 1, 2, 0, torch.device("cpu"))
        assert len(seeds) == 1
    found = torch.rand(5)
    torch.manual_seed(seeds[0])
    assert torch.equal(torch.rand(5), found)


def test_accumulation_leaves_the_update_as_it_is(shard_set: Path, tmp_path: Path):
    results = []
    for accumulation in (1, 3):
        train_step, plan = make_updater(shard_set, tmp_path, *PLAIN, accumulation=accumulation)
        losses = make_updates(train_step, plan, 3, 0.1)
        results.append((losses, state_of(train_step.plain_model)))
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
        train_step, plan = make_updater(shard_set, tmp_path, *PLAIN, *options)
        # A known model: with the same weights and samples only the option can make a difference.
        losses += make_updates(train_step, plan, 1, 0.0)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_recomputation_is_wired_in_and_changes_nothing(shard_set: Path, tmp_path: Path):
    results, passes = [], []
    for options in ([], ["--model.checkpointing=true"]):
        train_step, plan = make_updater(shard_set, tmp_path, *options)  # with BatchNorm and dropout
        calls: list[int] = []
        layer = train_step.plain_model.get_submodule("layer2.0.conv1")
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        make_updates(train_step, plan, 2, 0.01)
        results.append(state_of(train_step.plain_model))
        passes.append(len(calls))
    assert passes == [2, 4]
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


def test_an_epoch_of_genre_sampling_is_longer(shard_set: Path, tmp_path: Path):
    _, uniform = make_updater(shard_set, tmp_path)
    train_step, plan = make_updater(shard_set, tmp_path, "--data.sampling=genre", "--data.repeat_below=0.5")
    assert uniform.num_samples == len(train_step.setup.train) < plan.num_samples


def test_a_masked_row_weighs_nothing(shard_set: Path, tmp_path: Path):
    train_step, plan = make_updater(shard_set, tmp_path, *PLAIN)
    (batch,) = drawn_batches(train_step, plan, 0, 0)

    def loss() -> float:
        losses, valid = train_step.losses(train_step.plain_model, batch, 0)
        return float((losses * valid).sum())

    whole = loss()
    batch.micro_batch.valid[0] = False
    rest = loss()
    batch.micro_batch.valid[:] = False
    batch.micro_batch.valid[0] = True
    one = loss()
    assert whole == pytest.approx(rest + one, rel=1e-5) and one > 0


# --- what is not finite (whole runs: tests/faults/test_nonfinite.py) --------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts what makes a GPU's host wait: a tensor's value wanted in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def guarded(shard_set: Path, out: Path, on_nonfinite: Any, *options: str) -> tuple[TrainStep, TrainPlan, Guard]:
    train_step, plan = make_updater(shard_set, out, *options)
    train_step.guard = Guard(train_step.accelerator, on_nonfinite, train_step.setup.train.sample_id)
    return train_step, plan, train_step.guard


@pytest.mark.parametrize(("on_nonfinite", "waits"), [("stop", False), ("skip", True)])
def test_looking_for_what_is_not_finite_waits_for_the_device_only_where_it_must(
    shard_set: Path, tmp_path: Path, on_nonfinite: str, waits: bool
):
    counts = []
    for guard in (True, False):
        train_step, plan, _ = guarded(shard_set, tmp_path, on_nonfinite, "--optim.clip_norm=1")
        train_step.guard = train_step.guard if guard else None
        batches = [list(drawn_batches(train_step, plan, 0, step)) for step in range(3)]
        with Waits() as spy:
            for step, setup in enumerate(batches):
                train_step(iter(setup), 0, step, step + 1, 0.01)
        counts.append(spy.count)
    assert (counts[0] > counts[1]) == waits


def test_a_guard_changes_no_update(shard_set: Path, tmp_path: Path):
    """Of a model with BatchNorm and dropout, to the bit."""
    states = []
    for guard in (None, "stop", "skip"):
        train_step, plan, _ = guarded(shard_set, tmp_path, guard)
        train_step.guard = train_step.guard if guard else None
        make_updates(train_step, plan, 3, 0.01)
        states.append(state_of(train_step.plain_model))
    for other in states[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in states[0].items())


def spoil(train_step: TrainStep, sample: int) -> None:
    """Have the loss of one sample be NaN."""
    losses = train_step.losses

    def spoilt(model: Any, batch: Any, epoch: int) -> Any:
        values, valid = losses(model, batch, epoch)
        factors = np.where(batch.micro_batch.indices == sample, np.nan, 1.0).astype(np.float32)
        return values * torch.from_numpy(factors), valid

    train_step.losses = spoilt  # type: ignore[method-assign]


def test_the_first_of_many_is_told_and_memory_stays_bounded(
    shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("toolkit.training.nonfinite.MAX_UNCHECKED_UPDATES", 3)
    train_step, plan, guard = guarded(shard_set, tmp_path, "stop", *TINY_VIT, "--train.batch_size=14")
    sample = int(plan.keys(0, 1)[2])
    spoil(train_step, sample)
    make_updates(train_step, plan, 2, 0.01)  # nothing is said yet: nobody looked
    # All later updates are broken too, by the weights.
    with fails("not-finite", "epoch 1, step 2", "1 of 14 samples", guard.sample_id(sample)):
        make_updates(train_step, plan, 1, 0.01, first=3)
    guard.check()  # and said once


def test_of_many_samples_only_those_that_are_named_are_looked_up(
    shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An id may be a read of a shard's index."""
    train_step, plan, guard = guarded(shard_set, tmp_path, "stop", *TINY_VIT, "--train.batch_size=28")
    asked: list[int] = []

    def asking(sample: int) -> str:
        asked.append(sample)
        return f"p{sample}"

    monkeypatch.setattr(guard, "sample_id", asking)
    with torch.no_grad():
        next(train_step.plain_model.parameters()).fill_(torch.nan)
    make_updates(train_step, plan, 1, 0.01)
    with fails("not-finite", "all 28 samples", "18 more"):
        guard.check()
    assert len(asked) == 10


@contextlib.contextmanager
def scaled(train_step: TrainStep, scaler: Any) -> Iterator[Any]:
    """Put a gradient scaler where accelerate has it under fp16 on a GPU."""
    setup, accelerator = train_step.setup, train_step.accelerator
    accelerator.scaler = scaler
    setup.optimizer = AcceleratedOptimizer(setup.optimizer.optimizer, scaler=scaler)
    try:
        yield scaler
    finally:
        accelerator.scaler = None


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_under_a_gradient_scaler_infinite_gradients_are_its_own_business(
    shard_set: Path, tmp_path: Path, on_nonfinite: str
):
    """Scaled losses overflow until the scale is found; the scaler leaves those updates out itself."""
    train_step, plan, guard = guarded(
        shard_set, tmp_path, on_nonfinite, *TINY_VIT, "--optim.clip_norm=1", "--train.batch_size=14"
    )
    with scaled(train_step, torch.amp.GradScaler("cpu", init_scale=3e38, backoff_factor=1e-19)) as scaler:
        before = state_of(train_step.plain_model)
        _, counted = train_step(drawn_batches(train_step, plan, 0, 0), 0, 0, 1, 0.01)
        assert (counted, train_step.overflows) == (0, 1)
        guard.check()
        assert all(torch.equal(before[n], t) for n, t in train_step.plain_model.state_dict().items())
        assert scaler.get_scale() < 1e20
        spoil(train_step, int(plan.keys(0, 1)[0]))
        loss, counted = train_step(drawn_batches(train_step, plan, 0, 1), 0, 1, 2, 0.01)
        if on_nonfinite == "stop":
            with fails("not-finite", "step 2", "1 of 14 samples"):
                guard.check()
        else:
            assert (loss.tolist(), counted) == ([0.0, 0.0], 0)
            scale = scaler.get_scale()
            make_updates(train_step, plan, 1, 0.01, first=3)  # the scaler knows nothing of the one before
            assert scaler.get_scale() == scale
            now = train_step.plain_model.named_parameters()
            assert not any(torch.equal(before[name], p) for name, p in now if p.requires_grad)


def test_clipping_is_of_the_gradient_and_not_of_the_scaled_one(shard_set: Path, tmp_path: Path):
    """As without a scaler; and an update that overflows leaves BatchNorm's statistics as they were."""
    moved = []
    for scale in (0.0, 1024.0):
        train_step, plan = make_updater(shard_set, tmp_path, *PLAIN, "--optim.clip_norm=0.01")
        before = state_of(train_step.plain_model)
        with scaled(train_step, torch.amp.GradScaler("cpu", init_scale=scale) if scale else None):
            make_updates(train_step, plan, 1, 1.0)
        after = train_step.plain_model.state_dict()
        moved.append(float(torch.sqrt(sum(((after[n] - before[n]) ** 2).sum() for n in before))))
    assert moved == pytest.approx([0.01, 0.01], rel=1e-3)


def test_an_update_that_overflows_leaves_nothing_behind(shard_set: Path, tmp_path: Path):
    """Of a network with BatchNorm and a moving average; and it says its loss, for whom that is of use."""
    train_step, plan, _ = guarded(shard_set, tmp_path, "stop", "--train.ema=0.9")
    ema = train_step.setup.ema
    assert ema is not None
    before, average = state_of(train_step.plain_model), state_of(ema.module)
    with scaled(train_step, torch.amp.GradScaler("cpu", init_scale=float("inf"))):
        for step in range(2):
            sums, counted = train_step(drawn_batches(train_step, plan, 0, step), 0, step, 1, 0.01)
            assert counted == 0 and float(sums[0]) > 0 and train_step.overflows == step + 1
    for state, model in ((before, train_step.plain_model), (average, ema.module)):
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
