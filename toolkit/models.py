"""timm backbones with a multi-label head: build, load weights into, freeze."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants
from torch import nn

from shards.errors import UserError
from shards.files import one_line
from toolkit.config import ModelConfig


@dataclass(frozen=True)
class HeadSpec:
    """The part of a model that timm does not know about."""

    kind: str = "mlp"
    """mlp or linear."""
    hidden: tuple[int, ...] = (1024, 512)
    dropout: float = 0.5

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "hidden": list(self.hidden), "dropout": self.dropout}

    @classmethod
    def of(cls, config: ModelConfig) -> HeadSpec:
        return cls(config.head, tuple(config.hidden), config.dropout)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> HeadSpec:
        return cls(raw["kind"], tuple(raw["hidden"]), raw["dropout"])


def build_model(
    name: str, num_classes: int, head: HeadSpec, image_size: int, *, pretrained: bool = False
) -> nn.Module:
    """A timm model for square inputs of ``image_size`` pixels whose classifier gives ``num_classes`` logits.

    Parameters of a linear head keep timm's names, so plain timm can load them; an mlp head stands in the classifier's
    place as a Sequential. Raises UserError for an unknown name, an unreachable hub, a classifier that is no Linear.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=3)
        raise UserError(
            f"timm has no model {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    arguments: dict[str, Any] = {"num_classes": num_classes, **size_argument(name, image_size)}
    arguments["drop_rate"] = head.dropout if head.kind == "linear" else 0.0
    try:
        if pretrained:
            with _offline_if_unreachable():
                model = timm.create_model(name, pretrained=True, **arguments)
        else:
            model = timm.create_model(name, **arguments)
    except (
        Exception
    ) as error:  # factories raise nearly anything for arguments they dislike, hub clients likewise
        if pretrained:
            raise UserError(_hub_help(name, error)) from None
        raise UserError(
            f"timm cannot build {name} for {image_size} pixels: {one_line(error)[:300]}"
        ) from None
    if head.kind == "mlp":
        _replace_classifier(model, head, num_classes)
    return model


def size_argument(name: str, image_size: int) -> dict[str, int]:
    """``img_size`` for architectures whose weights depend on the input size (ViT and kin); nothing for the others."""
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {"img_size": image_size} if cfg is not None and cfg.fixed_input_size else {}


@contextlib.contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Without a network the hub client would retry for most of a minute; look first, and use its cache only.

    Where a proxy is set, names may be resolved by the proxy alone: then the client is left to find out.
    """
    offline = constants.HF_HUB_OFFLINE
    if not getproxies():
        try:
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _hub_help(name: str, error: Exception) -> str:
    return (
        f"no pretrained weights of {name} from timm's hub ({type(error).__name__}: no network, or no such weights); "
        f"give a local file with --model.weights FILE, or start from scratch with --model.pretrained false"
    )


def classifier_name(model: nn.Module) -> str:
    """Dotted name of the classifier module, e.g. ``fc`` or ``head.fc``. Raises UserError if there is not just one."""
    name = model.pretrained_cfg.get("classifier")  # type: ignore[union-attr, operator]
    if not isinstance(name, str) or not isinstance(_module(model, name), nn.Linear):
        raise UserError(
            f"{type(model).__name__} has no single Linear classifier: only --model.head linear fits it"
        )
    return name


def _module(model: nn.Module, name: str) -> nn.Module | None:
    return dict(model.named_modules()).get(name)


def _replace_classifier(model: nn.Module, head: HeadSpec, num_classes: int) -> None:
    name = classifier_name(model)
    parent_name, _, attribute = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    width = getattr(parent, attribute).in_features
    layers: list[nn.Module] = []
    for hidden in head.hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Dropout(head.dropout)]
        width = hidden
    setattr(parent, attribute, nn.Sequential(*layers, nn.Linear(width, num_classes)))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from .safetensors, or from a torch file read with ``weights_only`` (nothing is executed).

    Wrappers' prefixes (``module.``, ``_orig_mod.``) and containers (``state_dict``, ``model``) are taken off.
    """
    if not path.is_file():
        raise UserError(f"weights file not found: {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zip and the restricted unpickler each raise their own types
        raise UserError(
            f"weights file {path} cannot be read ({type(error).__name__}): give a .safetensors file, or a .pth that "
            f"holds nothing but tensors"
        ) from None
    for container in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(container), dict):
            state = state[container]
    if (
        not isinstance(state, dict)
        or not all(isinstance(v, torch.Tensor) for v in state.values())
        or not state
    ):
        raise UserError(f"weights file {path} holds no state dict of tensors")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): tensor for name, tensor in state.items()}


def load_weights(model: nn.Module, path: Path) -> str:
    """Load a local weights file; a head of another size is dropped. Returns one line that says what was done.

    Raises UserError if anything but the head is missing, left over or of another shape: that is another architecture.
    """
    state = read_weights(path)
    own = model.state_dict()
    head = _head_prefix(model)
    dropped = [k for k in state if k.startswith(head) and (k not in own or own[k].shape != state[k].shape)]
    if dropped:  # all of the head or nothing: half an old head helps nobody
        state = {k: v for k, v in state.items() if not k.startswith(head)}
    missing = [k for k in own if k not in state and not (dropped and k.startswith(head))]
    missing = [k for k in missing if not (k.startswith(head) and not any(s.startswith(head) for s in state))]
    unexpected = [k for k in state if k not in own]
    shapes = [k for k in state if k in own and own[k].shape != state[k].shape]
    for what, names in (("lacks", missing), ("has unknown", unexpected), ("has other shapes for", shapes)):
        if names:
            raise UserError(
                f"weights file {path} does not fit {type(model).__name__}: it {what} {len(names)} tensors, e.g. "
                f"{names[0]!r}; is it of the architecture named in --model.name?"
            )
    model.load_state_dict(state, strict=False)
    loaded = f"loaded {len(state)} tensors from {path.name}"
    if dropped:
        loaded += f"; its head ({', '.join(sorted(dropped))}) has another size and was dropped"
    return loaded


def _head_prefix(model: nn.Module) -> str:
    name = model.pretrained_cfg.get("classifier")  # type: ignore[union-attr, operator]
    names = [name] if isinstance(name, str) else list(name or [])
    return f"{names[0]}." if names else "\0"


def frozen_modules(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """Freeze modules by name and return them; 'stem' stands for what timm calls the model's stem.

    Raises UserError for a name that no module has.
    """
    modules = dict(model.named_modules())
    chosen: dict[str, nn.Module] = {}
    for name in names:
        found = {name: modules[name]} if name in modules else {}
        if name == "stem":
            found.update(_stem(model))
        if not found:
            near = get_close_matches(name, modules, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"model.freeze names {name!r}, which {type(model).__name__} does not have{hint}")
        chosen.update(found)
    for module in chosen.values():
        module.requires_grad_(False)
    return list(chosen.values())


def _stem(model: nn.Module) -> dict[str, nn.Module]:
    """Top-level modules that timm's ``group_matcher`` puts into the stem; bare parameters there are frozen too."""
    matcher = getattr(model, "group_matcher", None)
    pattern = matcher().get("stem") if callable(matcher) else None
    patterns = (
        [pattern] if isinstance(pattern, str) else [p[0] for p in pattern or [] if isinstance(p, tuple)]
    )
    for name, parameter in model.named_parameters(recurse=False):
        if any(re.match(p, name) for p in patterns):
            parameter.requires_grad_(False)
    return {n: m for n, m in model.named_children() if any(re.match(p, n) for p in patterns)}


def training_mode(model: nn.Module, frozen: Iterable[nn.Module]) -> None:
    """``model.train()``, but frozen modules stay in evaluation: their BatchNorm statistics are held."""
    model.train()
    for module in frozen:
        module.eval()


def clean_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as it is saved: contiguous CPU tensors under the names of the plain model."""
    return {
        name.replace("_orig_mod.", ""): tensor.detach().to("cpu").contiguous().clone()
        for name, tensor in model.state_dict().items()
    }
