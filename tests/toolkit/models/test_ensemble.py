"""A head of several networks: each sample trains one, all answer; it is saved, cached and folded like the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shards.dataset.labels import LabelSet
from toolkit.config.values import HeadKind
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.decisions.decisions import Decisions
from toolkit.model_folder.folder import load_model_folder, save_model_folder
from toolkit.models.ensemble import Ensemble, linears, mlp, networks
from toolkit.models.factory import build_model
from toolkit.models.heads import HeadSpec, head_prefixes, set_prior
from toolkit.models.last_layer import Float32Linear, last_linears

SPEC = HeadSpec("ensemble", (5,), 0.0, 3)


def ensemble(members: int = 3, dropout: float = 0.0) -> Ensemble:
    torch.manual_seed(0)
    return Ensemble(6, (5,), 4, members, dropout)


def test_the_answer_is_the_mean_of_the_members():
    model, x = ensemble().eval(), torch.randn(7, 6)
    each = torch.stack([member(x) for member in model.members])
    assert torch.allclose(model(x), each.mean(dim=0), atol=1e-6)
    assert not torch.allclose(each[0], each[1])  # they do not start alike


def test_in_training_each_row_is_one_members_and_every_member_gets_some():
    model, x = ensemble().train(), torch.randn(200, 6)
    each = torch.stack([member(x) for member in model.members])
    same = (model(x)[None] - each).abs().amax(dim=2) < 1e-6  # (members, rows)
    assert (same.sum(dim=0) == 1).all()
    assert (same.sum(dim=1) > 40).all()


def test_a_member_without_rows_has_gradients_of_zero_which_ddp_waits_for():
    model = ensemble(members=8).train()
    model(torch.randn(2, 6)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    moved = [any(bool(p.grad.any()) for p in member.parameters() if p.grad is not None) for member in model.members]
    assert 1 <= sum(moved) <= 2


def test_members_are_trained_by_different_samples_and_differ_in_the_end():
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    y = (x[:, :4] > 0).float()
    model = Ensemble(6, (16,), 4, 3, 0.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(200):
        torch.nn.functional.binary_cross_entropy_with_logits(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    for member in model.members:
        assert ((member(x) > 0).float() == y).float().mean() > 0.9
    assert not torch.allclose(model.members[0](x), model.members[1](x), atol=0.1)


def test_one_member_is_an_mlp_with_dropout_before_it():
    model = ensemble(members=1, dropout=0.5)
    kinds = [type(layer).__name__ for layer in model.members[0].children()]
    assert kinds == ["Dropout", *(type(layer).__name__ for layer in mlp(6, (5,), 4, 0.5))]
    x = torch.ones(3, 6)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_last_layers_are_every_members_in_float32_and_take_the_prior():
    model = build_model("resnet10t", 4, SPEC, 64).eval()
    layers = last_linears(model, head_prefixes(model))
    assert len(layers) == 3 and all(type(layer) is Float32Linear for layer in layers)
    share = np.array([0.5, 0.1, 0.2, 0.01])
    set_prior(model, share)
    assert all(torch.allclose(layer.bias.sigmoid(), torch.from_numpy(share).float(), atol=1e-6) for layer in layers)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(64, 3, 64, 64))
    assert logits.dtype == torch.float32
    assert len(logits[:, 0].unique()) == 64  # bfloat16 would tie some


@pytest.mark.parametrize("kind", ["linear", "mlp", "levels"])
def test_logits_are_float32_under_autocast_whatever_the_head(kind: HeadKind):
    model = build_model("test_resnet", 3, HeadSpec(kind, (5,), 0.0), 32).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 3, 32, 32)).dtype == torch.float32


def test_its_model_folder_gives_the_same_logits_and_names_it(tmp_path: Path):
    model = build_model("test_resnet", 3, SPEC, 32).eval()
    prepare = Preprocessing(32, 1.0, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    labels, decisions = LabelSet(("a", "b", "c")), Decisions.plain(np.full(3, 0.5))
    facts = {"epoch": 1, "shard_set": "x"}
    save_model_folder(tmp_path / "m", model, SPEC, labels, decisions, prepare, facts, {})
    again = load_model_folder(tmp_path / "m").model
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))
    assert "the mean of 3 mlps" in (tmp_path / "m" / "README.md").read_text()


def test_networks_and_their_layers():
    model = ensemble()
    assert networks(model) == list(model.members)
    plain = torch.nn.Linear(2, 3)
    assert networks(plain) == [plain] == linears(plain)
    assert [layer.out_features for layer in linears(networks(model)[1])] == [5, 4]


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_b0", "resnet10t"])
def test_what_two_stages_pass_by_asks_for_no_gradient(name: str):
    """DistributedDataParallel would wait for it."""
    model = build_model(name, 3, HeadSpec("levels", (), 0.0), 64)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert any(p.requires_grad for n, p in model.named_parameters() if not n.startswith(head_prefixes(model)))
