"""The head on two stages: what it is given, that it learns and saves, and that the backbone stays timm's."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from failing import fails

from shards.dataset.labels import LabelSet
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.decisions.decisions import Decisions
from toolkit.model_folder.folder import load_model_folder, save_model_folder
from toolkit.models.factory import build_model
from toolkit.models.freezing import Freezing
from toolkit.models.heads import HeadSpec, set_prior
from toolkit.models.multi_stage import use_stages
from toolkit.training.checkpoints.weights import load_weights

HEAD = HeadSpec("levels", (), 0.0)


def test_features_are_the_rooted_averages_of_the_last_two_stages():
    torch.manual_seed(0)
    model = build_model("resnet10t", 4, HEAD, 64).eval()
    plain = timm.create_model("resnet10t", num_classes=0)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("fc.")})
    plain.eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        third = torch.nn.Sequential(*list(plain.children())[:7])(images)
        fourth = plain.get_submodule("layer4")(third)
        both = torch.cat([third.mean((2, 3)), fourth.mean((2, 3))], dim=1)
        features = model.forward_features(images)  # type: ignore[operator]
        assert features.shape == (3, 256 + 512) and model.num_features == 768
        assert torch.allclose(features, both.sqrt(), atol=2e-3)
        assert torch.equal(model(images), model.fc(features))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224", "efficientnet_b0"])
def test_it_learns_on_any_kind_of_backbone(name: str, tmp_path: Path):
    torch.manual_seed(0)
    model = build_model(name, 3, HEAD, 64)
    images, targets = torch.randn(4, 3, 64, 64), torch.eye(4)[:, :3]
    before = copy.deepcopy(model.state_dict())
    loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images), targets)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    torch.optim.SGD(model.parameters(), 0.1).step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert len(moved) > len(before) // 2

    labels = LabelSet(("a", "b", "c"))
    preprocessing = Preprocessing(64, 1.0, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    decisions = Decisions.plain(np.full(3, 0.5))
    save_model_folder(tmp_path / "m", model, HEAD, labels, decisions, preprocessing, {"epoch": 1, "shard_set": "x"}, {})
    again = load_model_folder(tmp_path / "m").model
    model.eval()
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))
        assert torch.equal(copy.deepcopy(model)(images), model(images))  # what a moving average does


def test_names_are_timms_so_that_weights_fit_and_stages_freeze(tmp_path: Path):
    source = timm.create_model("resnet10t", num_classes=7)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = build_model("resnet10t", 4, HEAD, 64)
    assert "fc" in load_weights(model, tmp_path / "w.pth", LabelSet(tuple("abc")))[0]  # another size: dropped
    assert torch.equal(model.state_dict()["layer1.0.conv1.weight"], source.state_dict()["layer1.0.conv1.weight"])
    Freezing(model, ["backbone"]).apply(0)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


def test_dropout_is_on_in_training_only():
    model = build_model("resnet10t", 4, HeadSpec("levels", (), 0.5), 64)
    features = torch.randn(2, 768)
    assert not torch.equal(model.forward_head(features), model.forward_head(features))  # type: ignore[operator]
    model.eval()
    assert torch.equal(model.forward_head(features), model.forward_head(features))  # type: ignore[operator]


def test_a_model_without_stages_is_refused():
    class Bare(torch.nn.Module):
        pass

    with fails("model-unfit", "model.head must be mlp or linear", "Bare"):
        use_stages(Bare(), "fc", 3, 32, 0.0)


@pytest.mark.parametrize("head", [HEAD, HeadSpec("linear", (), 0.0), HeadSpec("mlp", (5, 3), 0.0)])
def test_a_prior_makes_first_probabilities_the_prevalence(head: HeadSpec):
    torch.manual_seed(0)
    model = build_model("test_resnet", 3, head, 32).eval()
    share = np.array([0.6, 0.01, 0.0])
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    set_prior(model, share)
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, weights[k])]
    assert len(changed) == 1 and changed[0].endswith("bias")
    assert torch.allclose(model.state_dict()[changed[0]].sigmoid(), torch.tensor([0.6, 0.01, 0.0001]))
