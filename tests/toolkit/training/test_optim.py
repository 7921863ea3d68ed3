"""Optimiser groups and their rates, the schedule, frozen parameters in every optimiser of timm."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from failing import fails
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from shards.errors import UserError
from toolkit.config.schema import Config, OptimConfig
from toolkit.config.validation import check_config
from toolkit.models.factory import build_model
from toolkit.models.freezing import Freezing
from toolkit.models.heads import HeadSpec
from toolkit.training.optim import (
    build_optimizer,
    lr_factor,
    parameter_groups,
    restore_optimizer,
    set_lr,
    state_per_weight,
)

LINEAR = HeadSpec("linear", (), 0.0)
#: Optimisers of other libraries, which need a GPU, and the one that needs second derivatives.
ELSEWHERE = ("bnb", "fused", "adahessian")


def by_name(model: nn.Module, groups: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Parameter name → its group's ``key``; each parameter must be in one group."""
    names = {id(p): name for name, p in model.named_parameters()}
    pairs = [(names[id(p)], group[key]) for group in groups for p in group["params"]]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("head_lr", [1.0, 3.0])
@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_convnext"])
def test_every_trainable_weight_is_in_one_group_and_no_frozen_one(name, head_lr, layer_decay):
    model = build_model(name, 3, HeadSpec("mlp", (8,), 0.0), 32)
    Freezing(model, ["stem"]).apply(None)
    config = OptimConfig(name="adamw", weight_decay=0.1, head_lr=head_lr, layer_decay=layer_decay)
    optimizer = build_optimizer(model, config)
    decays = by_name(model, optimizer.param_groups, "weight_decay")
    assert decays.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in decays:
            wanted = 0.1 if parameter.ndim > 1 and parameter_name not in spared else 0.0
            assert decays[parameter_name] == pytest.approx(wanted), parameter_name


def test_tokens_and_position_embeddings_are_not_decayed():
    model = build_model("test_vit", 3, LINEAR, 32)
    for layer_decay in (1.0, 0.5):
        groups = parameter_groups(model, OptimConfig(weight_decay=0.1, layer_decay=layer_decay))
        decays = by_name(model, groups, "weight_decay")
        assert decays["pos_embed"] == decays["cls_token"] == decays["blocks.0.attn.qkv.bias"] == 0
        assert decays["patch_embed.proj.weight"] == decays["blocks.0.attn.qkv.weight"] == 0.1


def test_rates_of_layers_and_head():
    model = build_model("test_vit", 3, HeadSpec("mlp", (8,), 0.0), 32)  # six blocks
    config = OptimConfig(name="sgd", lr=0.1, layer_decay=0.5, head_lr=10.0)
    optimizer = build_optimizer(model, config)
    set_lr(optimizer, 0.2)
    rates = by_name(model, optimizer.param_groups, "lr")
    assert rates["head.0.weight"] == rates["head.3.bias"] == pytest.approx(2.0)
    assert rates["norm.weight"] == rates["blocks.5.mlp.fc1.weight"] == pytest.approx(0.2 * 0.5)
    for block in range(6):
        assert rates[f"blocks.{block}.attn.qkv.weight"] == pytest.approx(0.2 * 0.5 ** (6 - block))
    assert rates["patch_embed.proj.weight"] == rates["pos_embed"] == pytest.approx(0.2 * 0.5**7)


def test_layers_of_a_resnet_are_its_stages_in_order():
    model = build_model("resnet10t", 3, LINEAR, 32)
    scales = by_name(model, parameter_groups(model, OptimConfig(layer_decay=0.5)), "lr_scale")
    assert [scales[n] for n in ("fc.weight", "layer4.0.conv1.weight", "layer1.0.conv1.weight", "conv1.0.weight")] == [
        1.0, 0.5, 0.0625, 0.03125,
    ]  # fmt: skip


def test_without_factors_there_are_two_groups_as_in_old_checkpoints():
    model = build_model("resnet10t", 3, LINEAR, 32)
    for decay in (0.0, 0.1):
        decayed, spared = parameter_groups(model, OptimConfig(weight_decay=decay))
        assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim <= 1 for p in spared["params"])
        assert (decayed["weight_decay"], spared["weight_decay"]) == (decay, 0.0)


def test_rates_move_weights_as_stated():
    """With plain SGD and equal gradients the move is the rate."""
    model = build_model("resnet10t", 3, LINEAR, 32)
    optimizer = build_optimizer(model, OptimConfig(name="momentum", momentum=0.0, layer_decay=0.5, head_lr=2.0))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_lr(optimizer, 0.01)
    optimizer.step()
    moved = {n: float((before[n] - p.detach()).mean()) for n, p in model.named_parameters()}
    assert moved["fc.weight"] == pytest.approx(0.02, rel=1e-4)
    assert moved["layer4.0.conv1.weight"] == pytest.approx(0.005, rel=1e-4)
    assert moved["conv1.0.weight"] == pytest.approx(0.01 / 32, rel=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.long] * n.startswith("kron"))  # its first update compiles
        for n in map(str, list_optimizers())
        if not n.startswith(ELSEWHERE)
    ],
)
def test_every_optimiser_holds_what_is_frozen_and_moves_it_once_thawed(name: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1, "lr_scale": 1.0},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0, "lr_scale": 0.5},
    ]
    optimizer = create_optimizer_v2(groups, name, lr=0.01, momentum=0.9)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def updates(frozen: bool) -> set[str]:
        for parameter in model[0].parameters():
            parameter.requires_grad_(not frozen)
        for _ in range(3):
            model(torch.randn(2, 3, 4, 4)).sum().backward()
            set_lr(optimizer, 0.01)
            optimizer.step()
            optimizer.zero_grad()
        assert all(torch.isfinite(p).all() for p in model.parameters())
        return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}

    assert updates(frozen=True) == {"2.weight", "2.bias"}  # nor decayed: decay alone would move the others
    assert updates(frozen=False) == set(before)


def test_an_optimiser_that_needs_second_derivatives_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match=r"optim\.name adahessian needs second derivatives"):
        check_config(Config(optim=OptimConfig(name="adahessian")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="may well be usable here")
def test_an_optimiser_that_needs_a_gpu_is_refused_in_one_line():
    with fails("option-value", "optim.name fusedadam"):
        build_optimizer(build_model("test_resnet", 3, LINEAR, 32), OptimConfig(name="fusedadam"))


def test_sgd_is_nesterovs_and_takes_the_momentum():
    model = build_model("test_resnet", 3, LINEAR, 32)
    for name, nesterov in (("sgd", True), ("momentum", False)):
        optimizer = build_optimizer(model, OptimConfig(name=name, momentum=0.7))
        assert isinstance(optimizer, torch.optim.SGD)
        assert optimizer.defaults["nesterov"] is nesterov and optimizer.defaults["momentum"] == 0.7


def test_schedules():
    constant = lr_factor(OptimConfig(warmup_steps=4), 100)
    assert [constant(s) for s in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = lr_factor(OptimConfig(schedule="cosine", warmup_steps=10), 110)
    assert cosine(10) == 1.0 and cosine(60) == pytest.approx(0.5) and cosine(110) == pytest.approx(0.0)
    assert all(cosine(s) >= cosine(s + 1) for s in range(10, 110))
    assert cosine(500) == pytest.approx(0.0)  # --train.epochs lowered on resume must not make it rise again
    floored = lr_factor(OptimConfig(schedule="cosine", min_lr=0.2), 100)
    assert floored(0) == 1.0 and floored(50) == pytest.approx(0.6) and floored(100) == pytest.approx(0.2)


def trained(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """The optimiser's state after an update."""
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    return copy.deepcopy(optimizer.state_dict())


def test_a_checkpoint_of_before_there_were_factors_is_taken():
    model = build_model("test_resnet", 3, LINEAR, 32)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.0},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    state = trained(torch.optim.Adam(groups, lr=0.1), model)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.3))
    restore_optimizer(optimizer, state)
    assert optimizer.state[model.fc.weight]["step"] == 1  # type: ignore[union-attr, index]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0, 1.0]


def test_a_resumed_run_may_change_decay_and_momentum():
    model = build_model("test_resnet", 3, LINEAR, 32)
    state = trained(build_optimizer(model, OptimConfig(name="sgd", momentum=0.9)), model)
    optimizer = build_optimizer(model, OptimConfig(name="sgd", momentum=0.5, weight_decay=0.1))
    restore_optimizer(optimizer, state)
    assert [(g["momentum"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.5, 0.1), (0.5, 0.0)]
    assert "momentum_buffer" in optimizer.state[model.fc.weight]  # type: ignore[union-attr, index]


def test_state_of_other_groups_is_refused():
    model = build_model("test_resnet", 3, LINEAR, 32)
    state = trained(build_optimizer(model, OptimConfig(layer_decay=0.5)), model)
    with fails("run-differs", "--out"):
        restore_optimizer(build_optimizer(model, OptimConfig()), state)


@pytest.mark.parametrize(("name", "bytes_each"), [("adamw", 8), ("sgd", 4), ("adan", 16), ("lamb", 8)])
def test_memory_of_the_state(name: str, bytes_each: int):
    assert state_per_weight(OptimConfig(name=name)) == pytest.approx(bytes_each, abs=0.01)
