"""Weights from a local file into a model: whose head fits or is dropped, whatever tool wrapped the names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import nn

from shards.errors import UserError
from toolkit.models import head_prefixes


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
    resampled = _resample_positions(model, state, own)
    head = head_prefixes(model)
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
    if resampled:
        loaded += "; position embeddings resampled to this image size"
    if dropped:
        loaded += f"; its head ({', '.join(sorted(dropped))}) has another size and was dropped"
    return loaded


def _resample_positions(model: Any, state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> bool:
    """Fit a ViT's position embeddings of another image size, as timm does with weights from its hub."""
    name = "pos_embed"
    if not isinstance(model, VisionTransformer) or name not in state or name not in own:
        return False
    if state[name].shape[1:2] == own[name].shape[1:2] or state[name].shape[2:] != own[name].shape[2:]:
        return False
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    grid = list(model.patch_embed.grid_size)
    state[name] = resample_abs_pos_embed(state[name], grid, num_prefix_tokens=prefix)
    return True
