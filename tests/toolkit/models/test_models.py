"""Models: heads, local weights, stochastic depth, recomputation, and what a user reads when the hub is out of reach."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from failing import fails
from safetensors.torch import save_file
from timm.layers import DropPath
from toolkit_helpers import make_model_folder
from torch import nn

from shards.dataset.labels import LabelSet
from shards.errors import UserError
from toolkit.config.schema import LossConfig, OptimConfig
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.activation_checkpointing import enable_checkpointing
from toolkit.models.factory import build_model, clean_state, other_size
from toolkit.models.freezing import Freezing
from toolkit.models.heads import HeadSpec, head_prefixes
from toolkit.training.checkpoints.checkpoint import Progress, save_checkpoint
from toolkit.training.checkpoints.weights import load_weights, read_weights
from toolkit.training.losses import build_loss
from toolkit.training.optim import build_optimizer, parameter_groups, set_lr

pytestmark = pytest.mark.usefixtures("one_thread")

LINEAR = HeadSpec("linear", (), 0.0)
GENRES = LabelSet(("a", "b", "c", "d", "e"))
ROOT = Path(__file__).resolve().parents[3]


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
    with fails("model-unknown", "'resnett50'", "resnet50"):
        build_model("resnett50", 3, LINEAR, 64)


def test_two_classifiers_are_refused_for_mlp():
    with fails("model-unfit", "--model.head linear"):
        build_model("deit_tiny_distilled_patch16_224", 3, HeadSpec(), 224)


def test_unreachable_hub_is_one_quick_line_with_both_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def no_network(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("toolkit.models.factory.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with fails("network", "--model.weights FILE", "--model.pretrained false"):
        build_model("resnet18", 3, LINEAR, 64, pretrained=True)
    assert time.monotonic() - started < 20  # the hub client alone retries for most of a minute


@pytest.mark.parametrize("name", ["resnet18.no_such_tag", "botnet50ts_256"])
def test_weights_that_timm_does_not_know_are_not_the_networks_fault(name: str):
    with fails("model-unknown", name, "--model.weights FILE"):
        build_model(name, 3, LINEAR, 64, pretrained=True)


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
        said, _ = load_weights(model, path, GENRES)
        assert trunk_equal(model, source)
        assert "dropped" in said and "fc.weight" in said


def test_a_head_of_the_same_size_is_loaded(tmp_path: Path):
    source = build_model("resnet10t", 5, LINEAR, 64)
    save_file(clean_state(source), tmp_path / "w.safetensors")
    model = build_model("resnet10t", 5, LINEAR, 64)
    assert "dropped" not in load_weights(model, tmp_path / "w.safetensors", GENRES)[0]
    assert trunk_equal(model, source, head="none")


def test_half_precision_weights_become_float32(tmp_path: Path):
    source: Any = build_model("resnet10t", 5, LINEAR, 64)
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in clean_state(source).items()},
        tmp_path / "h.safetensors",
    )
    model: Any = build_model("resnet10t", 5, LINEAR, 64)
    load_weights(model, tmp_path / "h.safetensors", GENRES)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.conv1[0].weight, source.conv1[0].weight.half().float())


def test_weights_of_another_architecture_are_refused(tmp_path: Path):
    save_file(clean_state(build_model("resnet18", 5, LINEAR, 64)), tmp_path / "w.safetensors")
    with fails("model-unfit", "w.safetensors", "ResNet", "--model.name"):
        load_weights(build_model("resnet10t", 5, LINEAR, 64), tmp_path / "w.safetensors", GENRES)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-was-run"),))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Evil()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"is refused: it contains .*pathlib\.Path.*None of its code was executed"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "evil-was-run").exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x04garbage"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_unreadable_weights(tmp_path: Path, content: bytes, suffix: str):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read|not a valid safetensors file|is no weights file") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_missing_weights(tmp_path: Path):
    with fails("path-missing", "none.safetensors"):
        read_weights(tmp_path / "none.safetensors")


def head_of(model: Any) -> torch.Tensor:
    return model.fc.weight.clone()


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (GENRES, "its head is of the same 5 genres and was loaded"),
        (
            LabelSet(tuple("abcdx")),
            "of other genres (only in the weights: 'x'; only in the shard set: 'e') and was dropped",
        ),
        (LabelSet(tuple("abced")), "same genres in another order, with the first difference at column 3"),
        (LabelSet(tuple("abcd")), "has another size and was dropped"),
    ],
)
def test_the_head_of_a_model_folder_is_taken_for_the_same_genres_only(tmp_path: Path, theirs: LabelSet, words: str):
    source = make_model_folder(tmp_path / "m", theirs, LINEAR, name="resnet10t", size=64)
    model: Any = build_model("resnet10t", 5, LINEAR, 64)
    drawn = head_of(model)
    assert words in load_weights(model, source / "model.safetensors", GENRES)[0]
    wanted = load_model_folder(source).model
    assert trunk_equal(model, wanted)
    assert torch.equal(head_of(model), head_of(wanted) if theirs == GENRES else drawn)


def test_the_head_of_a_checkpoint_is_taken_for_the_same_genres_only(tmp_path: Path):
    source = build_model("resnet10t", 5, LINEAR, 64)
    for labels, words in ((GENRES, "was loaded"), (LabelSet(tuple("vwxyz")), "of other genres (their fingerprint")):
        tensors = {"model": clean_state(source), "optimizer": {}, "scaler": {}, "ema": {}}
        folder = save_checkpoint(tmp_path, Progress(), {}, "set", labels.fingerprint, tensors, 1)
        model = build_model("resnet10t", 5, LINEAR, 64)
        said, _ = load_weights(model, folder / "state.pt", GENRES)
        assert words in said and trunk_equal(model, source)
        assert torch.equal(head_of(model), head_of(source)) == (labels == GENRES)


def test_a_head_whose_genres_cannot_be_read_is_refused(tmp_path: Path):
    folder = make_model_folder(tmp_path / "m", GENRES, LINEAR, name="resnet10t", size=64)
    (folder / "labels.json").write_text("{}")
    with pytest.raises(UserError, match=r"the genres of the head of .* cannot be read: .*labels\.json"):
        load_weights(build_model("resnet10t", 5, LINEAR, 64), folder / "model.safetensors", GENRES)
    model = build_model("resnet10t", 4, LINEAR, 64)  # a head of another size is dropped in any case
    assert "dropped" in load_weights(model, folder / "model.safetensors", LabelSet(tuple("abcd")))[0]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, suffix: str):
    for name, value, words in (
        ("layer1.0.conv1.weight", torch.nan, "3 values that are not finite"),
        ("layer1.0.bn1.running_var", -1.0, "variances below 0"),
        ("layer1.0.bn1.bias", 0, "type int32, but weights must be floating-point numbers"),
    ):
        state = clean_state(build_model("resnet10t", 5, LINEAR, 64))
        if isinstance(value, int):
            state[name] = state[name].int()
        state[name].view(-1)[:3] = value
        path = tmp_path / f"w{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        with fails("model-damaged" if value == 0 else "not-finite", f"'{name}'", words):
            load_weights(build_model("resnet10t", 5, LINEAR, 64), path, GENRES)


def test_a_tensor_that_shows_one_number_a_billion_times_is_refused(tmp_path: Path):
    state = clean_state(build_model("resnet10t", 5, LINEAR, 64))
    state["fc.weight"] = torch.zeros(1).expand(10**9, 1000)
    state["fc.bias"] = torch.zeros(2).to_sparse()
    torch.save(state, tmp_path / "w.pth")
    with fails("model-damaged", "w.pth", "'fc.weight'"):
        load_weights(build_model("resnet10t", 5, LINEAR, 64), tmp_path / "w.pth", GENRES)


FAMILIES = [
    "resnet10t",
    "resnet18",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "efficientnet_b0",
    "tf_efficientnet_lite0",
]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("head", [HeadSpec("mlp", (8,), 0.1), LINEAR], ids=["mlp", "linear"])
@pytest.mark.parametrize("freeze", [(), ("backbone",)], ids=["all", "head"])
def test_updates_of_every_family(name: str, head: HeadSpec, freeze: tuple[str, ...]):
    """With layer decay, its own rate for the head, stochastic depth and recomputation all at once."""
    torch.manual_seed(0)
    model = build_model(name, 3, head, 32, drop_path=0.1)
    enable_checkpointing(model)
    freezing = Freezing(model, freeze)
    freezing.apply(0)
    config = OptimConfig(name="adamw", weight_decay=0.05, layer_decay=0.7, head_lr=5.0)
    optimizer = build_optimizer(model, config)
    set_lr(optimizer, 1e-3)
    freezing.training_mode(model, 0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    loss = build_loss(LossConfig(), np.array([2, 1, 1]), 4)
    for _ in range(2):  # the first opens the residual branches that begin at zero
        loss(model(torch.randn(4, 3, 32, 32)), torch.eye(4, 3)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    classifier = tuple(head_prefixes(model))
    assert any(n.startswith(classifier) for n in moved)
    if freeze:
        assert all(n.startswith(classifier) for n in moved)
    else:
        assert moved == before.keys()


def test_clip_builds_with_its_own_normalisation():
    model: Any = build_model("vit_base_patch16_clip_224", 19, LINEAR, 224)
    mean, std = (model.pretrained_cfg[name] for name in ("mean", "std"))
    assert mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert std == pytest.approx((0.2686, 0.2613, 0.2758), abs=1e-4)
    scales = {g["lr_scale"] for g in parameter_groups(model, OptimConfig(layer_decay=0.7))}
    assert sorted(scales, reverse=True) == pytest.approx([0.7**depth for depth in range(14)])


def test_stochastic_depth_rises_to_the_last_block():
    model = build_model("resnet18", 3, LINEAR, 32, drop_path=0.3)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(0.3) and rates[0] < 0.1
    assert not [m for m in build_model("resnet18", 3, LINEAR, 32).modules() if isinstance(m, DropPath)]
    images = torch.randn(2, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm's residual branches begin at zero: nothing to leave out
    model.train()
    torch.manual_seed(0)
    first = model(images)
    torch.manual_seed(1)
    assert not torch.equal(model(images), first)
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("name", ["vgg11", "densenet121"])
def test_no_stochastic_depth_is_one_line(name: str):
    with fails("model-unfit", "model.drop_path", name):
        build_model(name, 3, LINEAR, 64, drop_path=0.1)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_recomputed_activations_give_the_same_gradients_and_statistics(name: str):
    torch.manual_seed(0)
    kept = build_model(name, 3, HeadSpec("mlp", (8,), 0.5), 64)
    recomputed = copy.deepcopy(kept)
    enable_checkpointing(recomputed)
    passes = {}
    for label, model in (("kept", kept), ("recomputed", recomputed)):
        counter = Counter(model)
        model.train()
        for seed in (0, 1):  # dropout is drawn again alike
            torch.manual_seed(seed)
            model(torch.randn(4, 3, 64, 64)).square().sum().backward()
        passes[label] = counter.calls
    assert passes["recomputed"] > passes["kept"]  # something was computed twice, or nothing was saved
    for (path, a), (_, b) in zip(kept.named_parameters(), recomputed.named_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad), path
    for path, tensor in kept.state_dict().items():
        assert torch.equal(tensor, recomputed.state_dict()[path]), path


class Counter:
    """Counts forward passes of a model's layers."""

    def __init__(self, model: nn.Module) -> None:
        self.calls = 0
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1


def test_a_model_that_cannot_recompute_is_one_line():
    with fails("model-unfit", "model.checkpointing", "VGG"):
        enable_checkpointing(build_model("vgg11", 3, LINEAR, 64))


def test_another_size_than_the_weights_is_said():
    said = other_size(build_model("vit_tiny_patch16_224", 3, LINEAR, 96), 96)
    assert said is not None and "224" in said and "96" in said and "\n" not in said
    assert other_size(build_model("vit_tiny_patch16_224", 3, LINEAR, 224), 224) is None
    assert other_size(build_model("resnet10t", 3, LINEAR, 96), 96) is None  # no fixed size


def test_position_embeddings_of_another_size_are_resampled_as_timm_does(tmp_path: Path):
    torch.manual_seed(0)
    path = tmp_path / "vit.safetensors"
    source = timm.create_model("test_vit", num_classes=10)
    save_file(clean_state(source), path)
    model: Any = build_model("test_vit", 5, LINEAR, 96)
    assert "resampled" in load_weights(model, path, GENRES)[0]
    overlay = {"file": str(path), "num_classes": 10}
    referee: Any = timm.create_model(
        "test_vit", num_classes=5, img_size=96, pretrained=True, pretrained_cfg_overlay=overlay
    )
    assert torch.equal(model.pos_embed, referee.pos_embed)
    assert trunk_equal(model, referee, head="head.")
    same = build_model("test_vit", 5, LINEAR, 160)
    assert "resampled" not in load_weights(same, path, GENRES)[0]


def test_shared_imagenet_weights_fit():
    path = ROOT.parent / "shared" / "weights" / "resnet50_imagenet_fp16.safetensors"
    if not path.exists():
        pytest.skip("../shared/weights is absent")
    model = build_model("resnet50", 19, HeadSpec(), 224)
    assert load_weights(model, path, GENRES)[0].startswith("loaded 318 tensors")
