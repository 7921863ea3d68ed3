"""Load weights from a local file into a model. A classifier that does not fit is not loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import nn

from shards.dataset.labels import LabelSet, difference
from shards.errors import UserError
from toolkit.config.model_files import LABELS, read_labels
from toolkit.models.heads import head_prefixes
from toolkit.models.safe_unpickle import safe_load
from toolkit.models.tensor_files import load_tensors, misfit, plain_names, read_header, require_finite, shapes_of
from toolkit.training.checkpoints.checkpoint import STATE, TENSORS, read_state


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from .safetensors, or from a torch file without executing its code (safe_unpickle.py).

    Removes prefixes of wrappers (``module.``, ``_orig_mod.``) from the names. The state dict may be the entry
    ``state_dict`` or ``model`` of another dict. Raises UserError if the file is missing or contains no state dict.
    """
    if not path.is_file():
        raise UserError("path-missing", f"weights file not found: {path}")
    if path.suffix == ".safetensors":
        read_header(path)
        state: Any = load_tensors(path)
    else:
        state = safe_load(path, "weights file")
    for container in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(container), dict):
            state = state[container]
    if (
        not isinstance(state, dict)
        or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())
        or not state
    ):
        raise UserError("path-unreadable", f"weights file {path} contains no state dict of tensors")
    return plain_names(state)


def load_weights(model: nn.Module, path: Path, labels: LabelSet) -> tuple[str, bool]:
    """Load a local weights file into ``model``. Return a line about the result, and whether a head was loaded.

    The head is not loaded if it has the wrong size, or if its genres or their order differ from ``labels``. Raises
    UserError if a value is not finite, or if a tensor outside the head is missing, unknown or has the wrong shape.
    """
    state = read_weights(path)
    require_finite(state, path)
    own = model.state_dict()
    resampled = _resample_positions(model, state, own)
    head = head_prefixes(model)
    head_keys = sorted(k for k in state if k.startswith(head))
    sized = [k for k in head_keys if k not in own or own[k].shape != state[k].shape]
    differs = _other_genres(path, labels) if head_keys and not sized else None
    why = "has another size" if sized else f"is of other genres ({differs})" if differs else None
    if why:  # drop the whole head, because a part of it is useless
        state = {k: v for k, v in state.items() if not k.startswith(head)}
    wanted = shapes_of(own)
    if why or not head_keys:
        wanted = {k: shape for k, shape in wanted.items() if not k.startswith(head)}
    if problem := misfit(wanted, shapes_of(state)):
        raise UserError(
            "model-unfit",
            f"weights file {path} does not fit {type(model).__name__}: it {problem}; check that --model.name is the "
            f"architecture of this file",
        )
    model.load_state_dict(state, strict=False)
    loaded = f"loaded {len(state)} tensors from {path.name}"
    if resampled:
        loaded += "; position embeddings resampled to this image size"
    if why:
        loaded += f"; its head ({', '.join(sized or head_keys)}) {why} and was dropped"
    elif head_keys:
        genres = "unknown genres" if differs is None else f"the same {len(labels)} genres"
        loaded += f"; its head is of {genres} and was loaded"
    return loaded, bool(head_keys) and not why


def _other_genres(path: Path, labels: LabelSet) -> str | None:
    """Return how the genres of a weights file differ from ``labels``. "" means no difference, and None means unknown.

    The genres are in labels.json of a model folder, or in state.json of a checkpoint. Raises UserError if this file
    exists but cannot be read.
    """
    try:
        if (path.parent / LABELS).is_file():
            theirs = LabelSet(tuple(read_labels(path.parent)[0].genres))
            same = theirs.fingerprint == labels.fingerprint
            return "" if same else difference("the weights", theirs, "the shard set", labels)
        if path.name == TENSORS and (path.parent / STATE).is_file():
            stated, own = read_state(path.parent).labels, labels.fingerprint
            return "" if stated == own else f"their fingerprint is {stated[:16]!r}, the shard set's {own}"
    except UserError as error:
        raise UserError(error.code, f"the genres of the head of {path} cannot be read: {error}") from None
    return None


def _resample_positions(model: Any, state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> bool:
    """Resample a ViT's position embeddings to the model's image size, as timm does. Return whether they changed."""
    name = "pos_embed"
    if not isinstance(model, VisionTransformer) or name not in state or name not in own:
        return False
    if state[name].shape[1:2] == own[name].shape[1:2] or state[name].shape[2:] != own[name].shape[2:]:
        return False
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    grid = list(model.patch_embed.grid_size)
    state[name] = resample_abs_pos_embed(state[name], grid, num_prefix_tokens=prefix)
    return True
