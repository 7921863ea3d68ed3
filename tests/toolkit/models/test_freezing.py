"""Freezing holds exact bits, and gradual unfreezing lets them go in the stated epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from failing import fails
from toolkit_helpers import weights_option
from torch import nn
from train_tools import make_parts, tiny_config

from shards.errors import UserError
from toolkit.config.schema import OptimConfig
from toolkit.models.factory import build_model
from toolkit.models.freezing import Freezing, check_random
from toolkit.models.heads import HeadSpec
from toolkit.training.optim import build_optimizer, set_lr

pytestmark = pytest.mark.usefixtures("one_thread")

LINEAR = HeadSpec("linear", (), 0.0)
MLP = HeadSpec("mlp", (8,), 0.0)


def trained_names(model: nn.Module) -> set[str]:
    """First parts of the names of parameters that require gradients."""
    return {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}


def changed_by_updates(model: nn.Module, freezing: Freezing, optimizer: Any, epoch: int) -> set[str]:
    """Names of the state that two updates in ``epoch`` change."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    freezing.apply(epoch)
    freezing.training_mode(model, epoch)
    for _ in range(2):
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        set_lr(optimizer, 0.01)
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_frozen_stem_holds_weights_and_statistics(name: str):
    torch.manual_seed(0)
    model = build_model("test_resnet", 3, LINEAR, 32)
    freezing = Freezing(model, ["stem"])
    freezing.apply(None)
    optimizer = build_optimizer(model, OptimConfig(name=name, weight_decay=0.1))
    changed = changed_by_updates(model, freezing, optimizer, 0)
    assert changed == {n for n in model.state_dict() if not n.startswith(("conv1.", "bn1."))}


def test_gradual_unfreezing_epoch_by_epoch():
    torch.manual_seed(0)
    model = build_model("test_resnet", 3, LINEAR, 32)
    freezing = Freezing(model, ["stem", "layer1@3", "layer2@2", "layer3@2"])
    freezing.apply(None)
    optimizer = build_optimizer(model, OptimConfig(name="adamw", weight_decay=0.1))
    assert freezing.apply(0)
    everything, stem = set(model.state_dict()), ("conv1.", "bn1.")
    for epoch, held in enumerate(
        [("layer1.", "layer2.", "layer3."), ("layer1.", "layer2.", "layer3."), ("layer1.",), (), ()]
    ):
        changed = changed_by_updates(model, freezing, optimizer, epoch)
        assert changed == {n for n in everything if not n.startswith((*stem, *held))}, epoch
    assert [freezing.thawing(epoch) for epoch in range(5)] == [[], [], ["layer2", "layer3"], ["layer1"], []]


def test_apply_says_whether_anything_changed():
    freezing = Freezing(build_model("test_resnet", 3, LINEAR, 32), ["layer1@2"])
    assert [freezing.apply(epoch) for epoch in (0, 1, 2, 3)] == [True, False, True, False]
    assert freezing.apply(1) and freezing.apply(None)


def test_a_part_is_held_while_any_entry_holds_it():
    model = build_model("test_resnet", 3, LINEAR, 32)
    freezing = Freezing(model, ["backbone@1", "layer1@3", "stem"])
    seen = []
    for epoch in range(4):
        freezing.apply(epoch)
        seen.append(trained_names(model))
    last = {"layer1", "layer2", "layer3", "layer4", "fc"}
    assert seen == [{"fc"}, last - {"layer1"}, last - {"layer1"}, last]
    freezing.training_mode(model, 1)
    layers: Any = model
    assert layers.layer2.training and not layers.layer1.training and not layers.conv1.training


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("test_resnet", "fc."),
        ("test_convnext", "head.fc."),
        ("test_vit", "head."),
        ("test_efficientnet", "classifier."),
    ],
)
@pytest.mark.parametrize("head", [MLP, LINEAR], ids=["mlp", "linear"])
def test_backbone_is_all_but_the_classifier(name: str, classifier: str, head: HeadSpec):
    torch.manual_seed(0)
    model = build_model(name, 3, head, 32)
    freezing = Freezing(model, ["backbone"])
    freezing.apply(None)
    optimizer = build_optimizer(model, OptimConfig(name="adamw", weight_decay=0.1))
    changed = changed_by_updates(model, freezing, optimizer, 0)
    assert changed == {n for n in model.state_dict() if n.startswith(classifier)}


def test_dropout_beside_the_classifier_is_the_heads():
    for name, path in (("test_convnext", "head.drop"), ("test_vit", "head_drop")):
        model = build_model(name, 3, HeadSpec("linear", (), 0.5), 32)
        Freezing(model, ["backbone"]).training_mode(model, 0)
        assert model.get_submodule(path).training
        norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
        assert norms and not any(m.training for m in norms)


def test_bare_parameters_of_a_stem_are_held():
    model = build_model("test_vit", 3, LINEAR, 32)
    Freezing(model, ["stem"]).apply(0)
    held = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {"pos_embed", "cls_token", "patch_embed.proj.weight"} <= held
    assert not any(n.startswith(("blocks", "head")) for n in held)


def test_what_never_learns_is_not_thawed():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].bias.requires_grad_(False)
    Freezing(model, ["0@1"]).apply(1)
    assert not model[1].bias.requires_grad and model[0].weight.requires_grad


def test_a_frozen_parameter_keeps_no_gradient():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    Freezing(model, ["0"]).apply(0)
    assert model[0].weight.grad is None and model[1].weight.grad is not None


def test_wrong_entries():
    model = build_model("test_resnet", 3, LINEAR, 32)
    with fails("model-unfit", "'layer11'", "'layer1'"):
        Freezing(model, ["layer11@2"])
    for entries in (["backbone", "fc"], ["backbone", "fc@2"]):
        with fails("nothing-to-train", "model.freeze"):
            Freezing(model, entries)


@pytest.mark.parametrize(
    ("entries", "held"),
    [
        (["backbone"], "model.freeze [backbone]"),
        (["backbone", "fc@1"], "model.freeze [backbone]"),
        (["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"], "[conv1, bn1, layer1, layer2, layer3, layer4]"),
    ],
)
def test_a_backbone_of_random_weights_must_learn(entries: list[str], held: str):
    with fails("option-conflict", held, "--model.pretrained false", "--model.weights FILE"):
        check_random(timm.create_model("resnet18", num_classes=3), entries)


@pytest.mark.parametrize(
    ("entries", "warned"), [([], False), (["backbone@3"], False), (["stem"], True), (["layer1", "layer2@1"], True)]
)
def test_parts_of_it_are_warned_of(entries: list[str], warned: bool):
    said = check_random(timm.create_model("resnet18", num_classes=3), entries)
    assert ("freezes random weights" in (said or "")) == warned


def test_the_hint_that_leads_there_is_not_given(shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the hub is out of reach and the backbone is to be held, a start from scratch is no way out."""

    def no_network(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("toolkit.models.factory.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for freeze, hinted in (("[backbone]", False), ("[stem]", True)):
        with fails("network", "resnet18") as caught:
            config = tiny_config("--model.name=resnet18", "--model.pretrained=true", f"--model.freeze={freeze}")
            make_parts(shard_set, config, tmp_path)
        assert ("--model.pretrained false --model.freeze []" in str(caught.value)) == hinted
    with pytest.raises(UserError, match="freezes a backbone of random weights"):
        make_parts(shard_set, tiny_config("--model.freeze=[backbone]"), tmp_path)
    assert make_parts(shard_set, tiny_config("--model.freeze=[backbone]", weights_option()), tmp_path)
