"""Optimiser groups, the schedule, the loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toolkit.config import OptimConfig
from toolkit.models import HeadSpec, build_model, frozen_modules
from toolkit.optim import build_optimizer, lr_factor, sample_losses, set_lr


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_every_trainable_weight_is_optimised_once_and_no_frozen_one(name):
    model = build_model("resnet10t", 3, HeadSpec("linear", (), 0.0), 64)
    frozen_modules(model, ["conv1"])
    optimizer = build_optimizer(model, OptimConfig(name=name, weight_decay=0.1))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}
    for group in optimizer.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] == 0.1) for p in group["params"])
        assert group["lr"] == 0.0015


def test_schedules():
    constant = lr_factor(OptimConfig(warmup_steps=4), 100)
    assert [constant(s) for s in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = lr_factor(OptimConfig(schedule="cosine", warmup_steps=10), 110)
    assert cosine(10) == 1.0 and cosine(60) == pytest.approx(0.5) and cosine(110) == pytest.approx(0.0)
    assert all(cosine(s) >= cosine(s + 1) for s in range(10, 110))
    assert cosine(500) == pytest.approx(0.0)  # --train.epochs lowered on resume must not make it rise again


def test_set_lr():
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)], lr=1.0)
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_loss_is_bce_in_float32():
    logits, targets = torch.randn(5, 7, dtype=torch.bfloat16), torch.randint(0, 2, (5, 7)).float()
    losses = sample_losses(logits, targets)
    assert losses.shape == (5,) and losses.dtype == torch.float32
    torch.testing.assert_close(losses.mean(), nn.BCEWithLogitsLoss()(logits.float(), targets))
    assert torch.isfinite(sample_losses(torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 1.0]]))).all()
