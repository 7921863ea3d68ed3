"""Models: heads, local weights, freezing, and what a user reads when the hub is out of reach."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from shards.errors import UserError
from toolkit.models import (
    HeadSpec,
    build_model,
    clean_state,
    frozen_modules,
    load_weights,
    read_weights,
    training_mode,
)

LINEAR = HeadSpec("linear", (), 0.0)
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_convnext", "test_efficientnet"])
def test_mlp_head_on_any_family(name: str):
    model = build_model(name, 5, HeadSpec("mlp", (16, 8), 0.1), 64)
    widths = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)][-3:]
    assert widths == [16, 8, 5]
    assert model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_reference_head():
    model: Any = build_model("resnet50", 19, HeadSpec(), 224)
    shapes = [tuple(m.weight.shape) for m in model.fc if isinstance(m, nn.Linear)]
    assert shapes == [(1024, 2048), (512, 1024), (19, 512)]


def test_unknown_model_names_near_ones():
    with pytest.raises(UserError, match=r"no model 'resnett50'; did you mean .*resnet50"):
        build_model("resnett50", 3, LINEAR, 64)


def test_two_classifiers_are_refused_for_mlp():
    with pytest.raises(UserError, match="no single Linear classifier"):
        build_model("deit_tiny_distilled_patch16_224", 3, HeadSpec(), 224)


def test_unreachable_hub_is_one_quick_line_with_both_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def no_network(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("toolkit.models.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        build_model("resnet18", 3, LINEAR, 64, pretrained=True)
    assert time.monotonic() - started < 20  # the hub client alone retries for most of a minute
    message = str(caught.value)
    assert "\n" not in message and "--model.weights FILE" in message and "--model.pretrained false" in message


def trunk_equal(a: nn.Module, b: nn.Module, head: str = "fc.") -> bool:
    other = b.state_dict()
    return all(torch.equal(t, other[k]) for k, t in a.state_dict().items() if not k.startswith(head))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_local_weights_with_a_head_of_another_size(tmp_path: Path, suffix: str, wrapped: bool):
    torch.manual_seed(1)
    source = timm.create_model("resnet10t", num_classes=1000)
    state = {("module._orig_mod." if wrapped else "") + k: v for k, v in clean_state(source).items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if wrapped else state, path)
    for head in (LINEAR, HeadSpec("mlp", (8,), 0.0)):
        model = build_model("resnet10t", 5, head, 64)
        said = load_weights(model, path)
        assert trunk_equal(model, source)
        assert "dropped" in said and "fc.weight" in said


def test_a_head_of_the_same_size_is_loaded(tmp_path: Path):
    source = build_model("resnet10t", 5, LINEAR, 64)
    save_file(clean_state(source), tmp_path / "w.safetensors")
    model = build_model("resnet10t", 5, LINEAR, 64)
    assert "dropped" not in load_weights(model, tmp_path / "w.safetensors")
    assert trunk_equal(model, source, head="none")


def test_half_precision_weights_become_float32(tmp_path: Path):
    source: Any = build_model("resnet10t", 5, LINEAR, 64)
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in clean_state(source).items()},
        tmp_path / "h.safetensors",
    )
    model: Any = build_model("resnet10t", 5, LINEAR, 64)
    load_weights(model, tmp_path / "h.safetensors")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.conv1[0].weight, source.conv1[0].weight.half().float())


def test_weights_of_another_architecture_are_refused(tmp_path: Path):
    save_file(clean_state(build_model("resnet18", 5, LINEAR, 64)), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"does not fit ResNet.*--model\.name"):
        load_weights(build_model("resnet10t", 5, LINEAR, 64), tmp_path / "w.safetensors")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-was-run"),))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Evil()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "evil-was-run").exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x04garbage"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_unreadable_weights(tmp_path: Path, content: bytes, suffix: str):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(path)


def test_missing_weights(tmp_path: Path):
    with pytest.raises(UserError, match="not found"):
        read_weights(tmp_path / "none.safetensors")


def test_frozen_stem_holds_weights_and_statistics():
    torch.manual_seed(0)
    model: Any = build_model("resnet18", 3, LINEAR, 64)
    frozen = frozen_modules(model, ["stem"])
    assert {id(m) for m in (model.conv1, model.bn1)} <= {id(m) for m in frozen}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    training_mode(model, frozen)
    for _ in range(2):
        model(torch.randn(4, 3, 64, 64)).sum().backward()
        optimizer.step()
    after = model.state_dict()
    for name, tensor in before.items():
        held = name.startswith(("conv1.", "bn1."))
        assert torch.equal(tensor, after[name]) == held, name


def test_freezing_by_name_and_unknown_name():
    model: Any = build_model("resnet18", 3, LINEAR, 64)
    frozen_modules(model, ["layer1"])
    assert not any(p.requires_grad for p in model.layer1.parameters())
    assert all(p.requires_grad for p in model.layer2.parameters())
    with pytest.raises(UserError, match=r"'layer11'.*did you mean"):
        frozen_modules(model, ["layer11"])


def test_shared_imagenet_weights_fit():
    path = ROOT.parent / "shared" / "weights" / "resnet50_imagenet_fp16.safetensors"
    if not path.exists():
        pytest.skip("../shared/weights is absent")
    model = build_model("resnet50", 19, HeadSpec(), 224)
    assert load_weights(model, path).startswith("loaded 318 tensors")
