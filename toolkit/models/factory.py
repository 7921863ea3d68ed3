"""timm backbones with a multi-label head: build them, and find one's way in them; weights.py loads weights."""

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
    """A timm model for square inputs of ``image_size`` pixels whose classifier gives ``num_classes`` logits.

    Parameters of a linear head keep timm's names, so plain timm can load them; an mlp head stands in the classifier's
    place as a Sequential, levels and ensembles see two stages (multi_stage.py, ensemble.py). ``drop_path`` is the rate
    of stochastic depth at the last block (Huang et al. 2016). ``scratch``: whether random weights would do instead of
    pretrained ones, which the error for an unreachable hub then says. Raises UserError for an unknown name, an
    unreachable hub, a classifier that is no Linear, no stochastic depth.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):  # names such as hf-hub:USER/NAME are none, and nothing is fetched
        near = did_you_mean(architecture, timm.list_models(), str, 3)
        raise UserError("model-unknown", f"timm has no model {name[:200]!r}{near}")
    try:
        arguments: dict[str, Any] = {"num_classes": num_classes, **size_argument(name, image_size)}
        arguments["drop_rate"] = 0.0 if head.drops_within else head.dropout
        if drop_path:
            arguments["drop_path_rate"] = drop_path
        with _offline_if_unreachable() if pretrained else contextlib.nullcontext():
            model = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # factories raise nearly anything for arguments they dislike, hub clients likewise
        if "drop_path_rate" in str(error):
            raise UserError("model-unfit", _no_drop_path(name)) from None
        if pretrained:  # timm itself raises RuntimeError for weights that it does not know
            code: Code = "model-unknown" if type(error) is RuntimeError else "network"
            raise UserError(code, _hub_help(name, error, scratch)) from None
        raise UserError(
            "model-unknown", f"timm cannot build {name} for {image_size} pixels: {one_line(error)[:300]}"
        ) from None
    if drop_path and not any(isinstance(module, DropPath) for module in model.modules()):
        # Some factories swallow arguments that mean nothing to them.
        raise UserError("model-unfit", _no_drop_path(name))
    put_head(model, head, num_classes, image_size)
    keep_float32(model, head_prefixes(model))
    return model


def _no_drop_path(name: str) -> str:
    return f"model.drop_path: timm's {name} has no stochastic depth; set it to 0, or choose another model"


def size_argument(name: str, image_size: int) -> dict[str, int]:
    """``img_size`` for architectures whose weights depend on the input size (ViT and kin); nothing for the others."""
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {"img_size": image_size} if cfg is not None and cfg.fixed_input_size else {}


def other_size(model: nn.Module, image_size: int) -> str | None:
    """One line for the log if the weights were trained at a fixed size that is not ``image_size``; else None."""
    cfg: Any = model.pretrained_cfg
    native = cfg.get("input_size", (3, image_size, image_size))[-1]
    if not cfg.get("fixed_input_size", False) or native == image_size:
        return None
    return (
        f"{cfg['architecture']} was trained at {native} pixels, not {image_size}: its position embeddings are "
        f"resampled; --data.image_size {native} uses them as they are"
    )


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


def _hub_help(name: str, error: Exception, scratch: bool) -> str:
    without = ", or start from scratch with --model.pretrained false --model.freeze []" if scratch else ""
    return (
        f"no pretrained weights of {name} from timm's hub ({type(error).__name__}: no network, or no such weights); "
        f"give a local file with --model.weights FILE{without}"
    )


def clean_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as it is saved: contiguous CPU tensors under the names of the plain model."""
    return {
        name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in plain_names(model.state_dict()).items()
    }
