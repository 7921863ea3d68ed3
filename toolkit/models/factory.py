"""Build a timm model with a multi-label head.

training/setup.py builds the trained model with `build_model`. model_folder/folder.py builds a saved model with the same
function. heads.py has the heads, and training/checkpoints/weights.py loads weights of a file (--model.weights).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants
from timm.layers import DropPath
from torch import nn

from shards.errors import Code, UserError, did_you_mean, one_line
from toolkit.models.heads import HeadSpec, head_prefixes, put_head
from toolkit.models.last_layer import keep_float32
from toolkit.models.tensor_files import plain_names


def build_model(
    name: str,
    num_classes: int,
    head: HeadSpec,
    image_size: int,
    *,
    pretrained: bool = False,
    drop_path: float = 0.0,
    scratch: bool = True,
) -> nn.Module:
    """Build a timm model for square inputs of ``image_size`` pixels with ``num_classes`` logits.

    With a linear head, all parameters keep timm's names, so plain timm can load the model. ``pretrained``: load weights
    from timm's hub. ``drop_path``: rate of stochastic depth at the last block (Huang et al. 2016). ``scratch``:
    whether the error for an unreachable hub suggests random weights. Raises UserError if timm has no such model, if the
    hub cannot be reached, or if the model does not support the head or ``drop_path``.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):  # also false for hf-hub:USER/NAME, so nothing is downloaded
        near = did_you_mean(architecture, timm.list_models(), str, 3)
        raise UserError("model-unknown", f"timm has no model {name[:200]!r}{near}")
    try:
        arguments: dict[str, Any] = {"num_classes": num_classes, **size_argument(name, image_size)}
        arguments["drop_rate"] = 0.0 if head.drops_within else head.dropout
        if drop_path:
            arguments["drop_path_rate"] = drop_path
        with _offline_if_unreachable() if pretrained else contextlib.nullcontext():
            model = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # model factories and hub clients raise almost any type of exception
        if "drop_path_rate" in str(error):
            raise UserError("model-unfit", _no_drop_path(name)) from None
        if pretrained:  # timm raises RuntimeError for unknown weights
            code: Code = "model-unknown" if type(error) is RuntimeError else "network"
            raise UserError(code, _hub_help(name, error, scratch)) from None
        raise UserError(
            "model-unknown", f"timm cannot build {name} for {image_size} pixels: {one_line(error)[:300]}"
        ) from None
    if drop_path and not any(isinstance(module, DropPath) for module in model.modules()):
        # Some factories ignore unknown arguments.
        raise UserError("model-unfit", _no_drop_path(name))
    put_head(model, head, num_classes, image_size)
    keep_float32(model, head_prefixes(model))
    return model


def _no_drop_path(name: str) -> str:
    return f"model.drop_path: timm's {name} has no stochastic depth. Set model.drop_path to 0, or choose another model"


def size_argument(name: str, image_size: int) -> dict[str, int]:
    """Return ``{"img_size": ...}`` if the shapes of the weights depend on the input size (ViT), else ``{}``."""
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {"img_size": image_size} if cfg is not None and cfg.fixed_input_size else {}


def other_size(model: nn.Module, image_size: int) -> str | None:
    """Return a warning if the weights have a fixed input size which differs from ``image_size``. Else return None."""
    cfg: Any = model.pretrained_cfg
    native = cfg.get("input_size", (3, image_size, image_size))[-1]
    if not cfg.get("fixed_input_size", False) or native == image_size:
        return None
    return (
        f"{cfg['architecture']} was trained at {native} pixels, not {image_size}: its position embeddings are "
        f"resampled. Set --data.image_size {native} to use them without resampling"
    )


@contextlib.contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Use only the hub client's cache if the hub's host name cannot be resolved. With a proxy, nothing is checked.

    Without this check, the client retries for a minute.
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


def _hub_help(name: str, error: Exception, scratch: bool) -> str:
    without = ", or start from random weights with --model.pretrained false --model.freeze []" if scratch else ""
    return (
        f"no pretrained weights of {name} from timm's hub ({type(error).__name__}: no network, or no such weights). "
        f"Use a local file with --model.weights FILE{without}"
    )


def clean_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the state dict for saving: contiguous CPU tensors, without the name prefixes of wrappers."""
    return {
        name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in plain_names(model.state_dict()).items()
    }
