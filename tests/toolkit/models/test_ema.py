"""The moving average: another thing than the weights, by the stated recursion; what is judged is what is saved."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from toolkit_helpers import TINY
from train_tools import make_parts, make_updater, make_updates, state_of, tiny_config

from toolkit.cli.main import main
from toolkit.metrics.helpers import cross_entropy
from toolkit.models.ema import build_ema
from toolkit.models.factory import build_model
from toolkit.models.heads import HeadSpec

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = ["--train.ema=0.9", "--model.freeze=[stem]"]


def test_no_decay_no_average():
    assert build_ema(torch.nn.Linear(1, 1), 0.0) is None


def test_it_is_the_stated_recursion_and_not_the_weights(shard_set: Path, tmp_path: Path):
    train_step, plan = make_updater(shard_set, tmp_path, *OPTIONS)
    ema = train_step.setup.ema
    assert ema is not None
    expected = {k: v.double() for k, v in state_of(train_step.plain_model).items()}
    for number in range(1, 7):
        make_updates(train_step, plan, 1, 0.01, first=number)
        decay = min(0.9, 1 - number ** (-2 / 3))  # 0 after the first update, then rising
        for name, value in train_step.plain_model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value.double()
            else:
                expected[name] = value.double()
    live, average = train_step.plain_model.state_dict(), ema.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(average[name].double(), value, rtol=1e-5, atol=1e-6)
    assert not torch.equal(average["layer4.0.conv1.weight"], live["layer4.0.conv1.weight"])
    assert not torch.equal(average["layer4.0.bn1.running_var"], live["layer4.0.bn1.running_var"])
    assert torch.equal(average["layer4.0.bn1.num_batches_tracked"], live["layer4.0.bn1.num_batches_tracked"])


def test_what_is_frozen_is_averaged_to_itself_bit_for_bit(shard_set: Path, tmp_path: Path):
    train_step, plan = make_updater(shard_set, tmp_path, *OPTIONS)
    before = state_of(train_step.plain_model)
    make_updates(train_step, plan, 8, 0.01)
    ema = train_step.setup.ema
    assert ema is not None
    average = ema.module.state_dict()
    for name, value in before.items():
        held = name.startswith(("conv1.", "bn1."))
        assert torch.equal(average[name], value) == held, name


def test_it_draws_nothing_and_never_trains():
    torch.manual_seed(3)
    model = build_model("test_resnet", 3, HeadSpec("linear", (), 0.5), 32)
    before = torch.get_rng_state()
    ema = build_ema(model, 0.99)
    assert ema is not None and torch.equal(torch.get_rng_state(), before)
    model.train()
    ema.update(model, step=5)
    assert not any(module.training for module in ema.module.modules())
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())


def test_it_is_timms_average_also_of_a_buffer_that_a_model_replaces():
    class Counting(torch.nn.BatchNorm1d):
        seen: torch.Tensor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = self.seen + len(x)
            return super().forward(x)

    model = torch.nn.Sequential(Counting(3), torch.nn.Linear(3, 2))
    model[0].register_buffer("seen", torch.zeros(()))
    ours, timms = build_ema(model, 0.9), ModelEmaV3(model, decay=0.9, use_warmup=True)
    assert ours is not None
    for step in range(1, 6):
        model(torch.randn(4, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        for average in (ours, timms):
            average.update(model, step=step)
    pairs = zip(ours.module.state_dict().items(), timms.module.state_dict().values(), strict=True)
    assert all(torch.equal(own, theirs) for (_, own), theirs in pairs)
    assert 0 < float(ours.module.state_dict()["0.seen"]) < 20  # the average of 4, 8, ...


def test_restoring_goes_on_bit_for_bit(shard_set: Path, tmp_path: Path):
    train_step, plan = make_updater(shard_set, tmp_path, *OPTIONS)
    make_updates(train_step, plan, 3, 0.01)
    ema, other = train_step.setup.ema, build_ema(train_step.plain_model, 0.9)
    assert ema is not None and other is not None
    other.module.load_state_dict(state_of(ema.module))
    for average in (ema, other):
        average.update(train_step.plain_model, step=4)
    assert all(torch.equal(a, b) for a, b in zip(ema.state_dict().values(), other.state_dict().values(), strict=True))


def test_what_is_judged_is_the_average_that_is_saved_and_not_the_weights(shard_set: Path, tmp_path: Path):
    run, options = tmp_path / "run", ["--train.ema=0.9", "--train.epochs=3", "--train.keep_checkpoints=9"]
    options.append("--optim.lr=0.01")
    assert main(["train", "--shards", str(shard_set), "--out", str(run), *TINY, *options]) == 0
    setup = make_parts(shard_set, tiny_config(*options), tmp_path)[1]
    feed = setup.inputs.feed(setup)

    def loss_of(state: dict[str, torch.Tensor]) -> float:
        setup.model.load_state_dict(state)
        logits, _ = feed.validate(setup.model.eval())
        return cross_entropy(logits, setup.val.targets).mean()

    with open(run / "epochs.csv") as stream:
        told = [float(row["val_loss"]) for row in csv.DictReader(stream)]
    kept = [torch.load(path / "state.pt", weights_only=True) for path in sorted((run / "checkpoints").iterdir())]
    assert told == pytest.approx([loss_of(tensors["ema"]) for tensors in kept], rel=1e-5)
    for loss, tensors in zip(told, kept, strict=True):
        assert loss_of(tensors["model"]) != pytest.approx(loss, rel=1e-3)
    assert loss_of(load_file(run / "model" / "model.safetensors")) == pytest.approx(min(told), rel=1e-5)
    feed.close()
