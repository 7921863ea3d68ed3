"""Load weights into a model, from a local file or from a run or model folder of this toolkit.

A file gives its backbone, and its head if the head fits. A folder also gives single rows of its head: a genre that the
folder and the shard set share keeps its row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import nn

from shards.dataset.labels import LabelSet, difference, tidy
from shards.errors import UserError, some
from toolkit.config.model_files import LABELS, model_folder_of, read_labels
from toolkit.config.schema import Config, ModelConfig
from toolkit.model_folder.folder import OWN_KEY, WEIGHTS, ModelFolder, load_model_folder
from toolkit.models.heads import HeadSpec, head_prefixes
from toolkit.models.last_layer import last_linears
from toolkit.models.safe_unpickle import safe_load
from toolkit.models.tensor_files import load_tensors, misfit, plain_names, read_header, require_finite, shapes_of
from toolkit.training.checkpoints.checkpoint import STATE, TENSORS, read_state


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from .safetensors, or from a torch file without executing its code (safe_unpickle.py).

    Removes prefixes of wrappers (``module.``, ``_orig_mod.``) from the names. The state dict may be the entry
    ``state_dict`` or ``model`` of another dict. Raises UserError if the file is missing or contains no state dict.
    """
    if not path.is_file():
        raise UserError("path-missing", f"weights file or folder not found: {path}")
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
        if path.name == WEIGHTS and (path.parent / LABELS).is_file():
            loaded += f". To keep the genres that both have, set --model.weights {path.parent}"
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


def load_folder(model: nn.Module, config: Config, path: Path, labels: LabelSet) -> tuple[str, bool]:
    """Load a run or model folder into ``model``. Return a line about the result, and whether its head was loaded.

    The backbone and the hidden layers of the head are loaded. In the last layers of the head, a genre of ``labels``
    gets the row of the genre with the same name in the folder. Other genres keep their initial rows. ``model`` was
    built from ``config``. Raises UserError if the folder cannot be read, or if its network or normalisation differs.
    """
    folder = load_model_folder(model_folder_of(path))
    _require_same_network(model, config.model, folder)
    state, own = folder.model.state_dict(), model.state_dict()
    resampled = _resample_positions(model, state, own)
    rows, in_head = _same_genres(folder.labels, labels), [key for key in own if key.startswith(head_prefixes(model))]
    per_genre = _row_tensors(model, len(labels)) and _row_tensors(folder.model, len(folder.labels))
    if folder.labels.genres == labels.genres:
        said, learnt = f"head: all {len(labels)} genres carried over", True
    elif not per_genre:
        state |= {key: own[key] for key in in_head}
        said, learnt = "head: new, because it has no layer with one row per genre", False
    else:
        for key in per_genre:
            before, state[key] = state[key], own[key].clone()
            state[key][list(rows)] = before[list(rows.values())].to(state[key].dtype)
        said, learnt = f"head: {_carried(rows, folder.labels, labels)}", bool(rows) or len(in_head) > len(per_genre)
    if problem := misfit(shapes_of(own), shapes_of(state)):
        raise UserError(
            "model-unfit", f"{folder.path} does not fit {config.model.name}: it {problem}; set other weights"
        )
    model.load_state_dict(state)
    theirs, data = folder.preprocessing, config.data
    others = [
        f"data.{key} {value}"
        for key, value in (("image_size", theirs.image_size), ("fit", theirs.fit), ("crop_pct", theirs.crop_pct))
        if value != getattr(data, key)
    ]
    loaded = f"loaded the backbone of {folder.path}"
    loaded += f", which was trained with {', '.join(others)}" if others else ""
    loaded += "; position embeddings resampled to this image size" if resampled else ""
    return f"{loaded}; {said}", learnt


def _require_same_network(model: Any, config: ModelConfig, folder: ModelFolder) -> None:
    """Raise UserError, with the options that repair it, if ``model`` differs from the network of a model folder."""
    ours = folder.config[OWN_KEY]
    name, head = _name_of(folder), HeadSpec.of(config)
    theirs = HeadSpec(ours["head"]["kind"], tuple(ours["head"]["hidden"]), members=ours["head"].get("members", 1))
    remedy = []
    if name.partition(".")[0] != config.name.partition(".")[0]:
        remedy.append(f"--model.name {name}")
    in_head = [f"--model.head {theirs.kind}"] if theirs.kind != head.kind else []
    if theirs.drops_within and theirs.hidden != head.hidden:
        in_head.append(f"--model.hidden [{','.join(map(str, theirs.hidden))}]")
    if theirs.kind == "ensemble" and theirs.members != head.members:
        in_head.append(f"--model.members {theirs.members}")
    if remedy or in_head:
        only = "" if remedy else f". To load only its backbone, set --model.weights {folder.path / WEIGHTS}"
        differs = f"the model in {folder.path} has another network than this training"
        raise UserError("model-unfit", f"{differs}: set {' '.join(remedy + in_head)}{only}")
    cfg, normal = model.pretrained_cfg, folder.preprocessing
    if not np.allclose([*normal.mean, *normal.std], [*cfg["mean"], *cfg["std"]], atol=1e-6):
        instead = f"set --model.name {name}" if name != config.name else "train from other weights"
        raise UserError(
            "model-unfit",
            f"the model in {folder.path} normalises images with mean {normal.mean} and std {normal.std}, but "
            f"{config.name} with mean {tuple(cfg['mean'])} and std {tuple(cfg['std'])}: {instead}",
        )


def _name_of(folder: ModelFolder) -> str:
    """Return the model.name with which a folder was trained. Without a valid one, return timm's architecture."""
    architecture: str = folder.config["architecture"]
    trained = folder.config[OWN_KEY].get("training_config")
    model = trained.get("model") if isinstance(trained, dict) else None
    name = model.get("name") if isinstance(model, dict) else None
    tagged = isinstance(name, str) and re.fullmatch(
        rf"{re.escape(architecture.partition('.')[0])}\.[\w.]{{1,100}}", name
    )
    return str(name) if tagged else architecture


def _same_genres(theirs: LabelSet, labels: LabelSet) -> dict[int, int]:
    """Return column in ``labels`` → column in ``theirs`` for genres with the same name, if needed after `tidy`."""
    tidied: dict[str, list[int]] = {}
    for genre, column in theirs.index.items():
        tidied.setdefault(tidy(genre), []).append(column)
    found = {}
    for column, genre in enumerate(labels.genres):
        same = [theirs.index[genre]] if genre in theirs.index else tidied.get(tidy(genre), [])
        if len(same) == 1:
            found[column] = same[0]
    return found


def _row_tensors(model: nn.Module, genres: int) -> list[str]:
    """Return the names of the tensors of the head that have one row per genre. Empty if there are none."""
    layers = last_linears(model, head_prefixes(model))
    own = {id(tensor) for layer in layers if layer.out_features == genres for tensor in layer.parameters()}
    return [name for name, tensor in model.named_parameters() if id(tensor) in own]


def _carried(rows: Mapping[int, int], theirs: LabelSet, labels: LabelSet) -> str:
    """Describe which genres keep their rows, for example "12 genres carried over, 1 new (Noir), 1 left out (War)"."""
    new = [genre for column, genre in enumerate(labels.genres) if column not in rows]
    left = [genre for column, genre in enumerate(theirs.genres) if column not in rows.values()]
    counts = ((new, "new"), (left, "left out"))
    return ", ".join(
        [f"{len(rows)} genres carried over", *(f"{len(g)} {what} ({some(g, 10)})" for g, what in counts if g)]
    )
