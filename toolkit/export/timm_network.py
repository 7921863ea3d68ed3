"""Build the network of a checkpoint of timm from what the checkpoint and the user state about it.

The weights must fit the architecture exactly. A network that a model folder cannot store is refused. The logits are
therefore those of timm.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from timm.data import DEFAULT_CROP_MODE, DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from shards.dataset.labels import LabelSet
from shards.errors import UserError, one_line, printable_line, some
from shards.schema import check_as
from toolkit.config.model_files import PretrainedFile
from toolkit.config.values import MAX_RESIZED
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.decisions.decisions import Decisions
from toolkit.export.class_list import labels_of, read_classes
from toolkit.export.imported import Imported
from toolkit.export.options import ImportOptions
from toolkit.model_folder.folder import CROP_MODES
from toolkit.models.factory import build_model, size_argument
from toolkit.models.heads import HeadSpec, head_prefixes
from toolkit.models.tensor_files import misfit, prefix_note, shapes_of, without_prefix

log = logging.getLogger(__name__)

HEAD = HeadSpec("linear", (), 0.0)
#: Arguments of timm.create_model that change the training only.
OF_TRAINING = re.compile(r"(\w+_)?drop(_\w+)?")
#: Name of a model of timm's own repositories on the hub, as train.py --model takes it.
OF_HUB = re.compile(r"(?:hf[-_]hub:)?timm/(\w+(?:\.\w+)?)")


@dataclass(frozen=True)
class Stated:
    """What a checkpoint says about its network. None or empty if it says nothing."""

    where: str
    """The file, for messages."""
    architecture: str | None = None
    num_classes: int | None = None
    names: list[Any] | dict[str, Any] | None = None
    """Names of the classes."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of timm.create_model."""
    images: Mapping[str, Any] = field(default_factory=dict)
    """Values of timm's data configuration, such as ``mean``."""
    task: str | None = None
    """Task of train.py, such as "multilabel". None if unknown."""
    epoch: int = 0
    averaged: bool = False


def import_network(state: dict[str, torch.Tensor], stated: Stated, path: Path, options: ImportOptions) -> Imported:
    """Build the network, load ``state`` and return the model. Raises UserError if something is missing or wrong."""
    name, renamed = _name(stated, path, options)
    labels = _labels(stated, path, options)
    arguments = _arguments(stated)
    try:
        pixels, interpolation = _preprocessing(name, stated, options)
        with torch.device("meta"):  # shapes only, no memory
            shapes = build_model(name, len(labels), HEAD, pixels.image_size)
    except UserError as error:
        if error.code != "model-unknown":
            raise
        where = "--model-name" if options.model_name else stated.where
        raise UserError(error.code, f"{where}: {error}; pass another --model-name") from None
    state = without_prefix(state, shapes.state_dict())
    _require_fit(state, shapes, len(labels), pixels.image_size, name, path)
    network = build_model(name, len(labels), HEAD, pixels.image_size)
    network.load_state_dict(state, strict=True)
    if pool := arguments.get("global_pool"):
        _require_same_pool(network.eval(), name, pool, pixels.image_size, len(labels), stated.where)
    if stated.task not in (None, "multilabel"):
        log.warning(
            "%s was trained for one class per image. Its outputs are not probabilities of single classes: choose "
            "calibration and thresholds with `posters tune`, or train again with --model.weights",
            path,
        )
    resized = f"timm resized images with {interpolation}, but this toolkit resizes with bilinear"
    facts = {"epoch": stated.epoch, "weights": "ema" if stated.averaged else "raw", "shard_set": "unknown: from timm"}
    decisions = Decisions.plain(np.full(len(labels), 0.5), "timm's default; `posters tune` chooses better ones")
    different = (*renamed, *(() if interpolation == "bilinear" else (resized,)))
    return Imported(network, name, HEAD, labels, decisions, pixels, path, facts, different)


def _name(stated: Stated, path: Path, options: ImportOptions) -> tuple[str, tuple[str, ...]]:
    """Return timm's name of the architecture, and a line if it replaces the name in the checkpoint.

    Raises UserError if there is no name, or if the option names another model than the checkpoint.
    """
    own, given = (
        OF_HUB.sub(r"\1", name) if name and OF_HUB.fullmatch(name) else name
        for name in (stated.architecture, options.model_name)
    )
    if given is None and own is None:
        example = "--model-name resnet50"
        raise UserError("option-missing", f"{path} does not name its architecture: pass timm's name, such as {example}")
    if given is None or own is None or given.partition(".")[0] == own.partition(".")[0]:
        return given or own or "", ()
    shown = printable_line(own[:100])
    if timm.is_model(own):
        raise UserError(
            "option-conflict",
            f"{stated.where} names the architecture {shown}, but --model-name is {given}: leave it out",
        )
    return given, (f"the checkpoint names the architecture {shown}, which timm does not have: {given} was used",)


def _labels(stated: Stated, path: Path, options: ImportOptions) -> LabelSet:
    if options.classes is not None:
        labels, where = read_classes(options.classes), str(options.classes)
    elif stated.names:
        labels, where = labels_of(stated.names, stated.where), "its label_names"
    else:
        remedy = "pass --classes FILE, with one name per line in the order of the model's outputs"
        raise UserError("option-missing", f"{path} does not name its classes: {remedy}")
    if stated.num_classes not in (None, len(labels)):
        raise UserError(
            "labels-invalid", f"{stated.where} has {stated.num_classes} classes, but {where} has {len(labels)} names"
        )
    return labels


def _arguments(stated: Stated) -> dict[str, Any]:
    """Return the arguments of timm.create_model that matter. Raises UserError if a model folder cannot store one."""
    kept = {key: value for key, value in stated.arguments.items() if value is not None}
    kept = {key: value for key, value in kept.items() if not OF_TRAINING.fullmatch(key)}
    kept.pop("num_classes", None)
    kept.pop("img_size", None)  # see _preprocessing
    if kept.pop("in_chans", 3) != 3:
        raise UserError("model-unfit", f"{stated.where}: its network does not take RGB images (in_chans is not 3)")
    if others := sorted(key[:50] for key in kept if key != "global_pool"):
        raise UserError(
            "model-unfit",
            f"{stated.where}: its network was built with {', '.join(others[:9])}, which a model folder cannot store",
        )
    return kept


def _preprocessing(name: str, stated: Stated, options: ImportOptions) -> tuple[Preprocessing, str]:
    """Return the evaluation transform, and the filter with which timm resized. Raises UserError for bad values."""
    architecture = name.partition(".")[0]
    usual = timm.get_pretrained_cfg(name if timm.models.is_model_pretrained(name) else architecture)
    cfg: dict[str, Any] = {} if usual is None else usual.to_dict()

    def value(key: str, default: Any, given: Any = None) -> Any:
        return next((v for v in (given, stated.images.get(key), cfg.get(key)) if v not in (None, "", [])), default)

    side = options.image_size or stated.arguments.get("img_size")  # img_size determines the shapes of weights
    sides = side if isinstance(side, (list, tuple)) else (side, side)
    size = (3, *sides) if side else value("input_size", (3, 224, 224))
    mode = value("crop_mode", DEFAULT_CROP_MODE, options.fit and CROP_MODES[options.fit])
    pct = value("crop_pct", DEFAULT_CROP_PCT, options.crop_pct)
    mean, std = value("mean", IMAGENET_DEFAULT_MEAN, options.mean), value("std", IMAGENET_DEFAULT_STD, options.std)
    if options.fit is None and (mode == "border" or (mode == "squash" and pct != 1)):
        raise UserError(
            "model-unfit",
            f"{stated.where}: timm's crop_mode {mode} with crop_pct {pct:g} has no equal here: pass --fit crop or "
            f"--fit stretch",
        )
    spread = [list(part) * 3 if len(part) == 1 else part for part in (mean, std)]
    values = {"input_size": size, "crop_pct": pct, "crop_mode": mode, "mean": spread[0], "std": spread[1]}
    remedy = "pass --image-size, --crop-pct, --fit, --mean or --std"
    good = check_as(values, PretrainedFile, stated.where, "description of the images", remedy, "model-damaged")
    if good.input_size[1] != good.input_size[2]:
        shown = f"{good.input_size[1]} x {good.input_size[2]}"
        raise UserError("model-unfit", f"{stated.where}: its images are {shown}, but must be squares; {remedy}")
    if good.crop_mode == "center" and good.input_size[1] / good.crop_pct > MAX_RESIZED:
        raise UserError("model-damaged", f"{stated.where}: its crop_pct {pct:g} makes images too large; {remedy}")
    fit: Literal["crop", "stretch"] = "stretch" if good.crop_mode == "squash" else "crop"
    pixels = Preprocessing(good.input_size[1], 1.0 if fit == "stretch" else good.crop_pct, good.mean, good.std, fit)
    return pixels, str(value("interpolation", "bicubic"))[:20]


def _require_fit(
    state: dict[str, torch.Tensor], network: torch.nn.Module, classes: int, size: int, name: str, path: Path
) -> None:
    """Raise UserError if the weights do not have exactly the tensors of the network, which may have no memory."""
    own = network.state_dict()
    for prefix in head_prefixes(network):
        weight = state.get(f"{prefix}weight")
        if weight is not None and weight.ndim and len(weight) != classes == len(own[f"{prefix}weight"]):
            raise UserError(
                "labels-invalid", f"{path} has {len(weight)} outputs, but there are {classes} names of classes"
            )
    head = {key for key in own if key.startswith(head_prefixes(network))}
    if head and own.keys() - head == state.keys():
        raise UserError(
            "model-unfit",
            f"{path} has no classifier: it has all weights of timm's {name} but {some(sorted(head))}. Start a "
            f"training from it with `posters train --model.weights {path}`",
        )
    if problem := misfit(shapes_of(own), shapes_of(state)):
        problem += prefix_note(own, state)
        sized = f" and that --image-size is its size ({size} was assumed)" if size_argument(name, size) else ""
        raise UserError(
            "model-unfit",
            f"{path} does not fit timm's {name}: it {problem}; check that --model-name is its architecture{sized}",
        )


def _require_same_pool(network: torch.nn.Module, name: str, pool: Any, size: int, classes: int, where: str) -> None:
    """Raise UserError if the network gives other logits than a network with the global pooling of the checkpoint."""
    side = size if size_argument(name, size) else min(size, 224)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    shown = repr(str(pool)[:20]) if isinstance(pool, str) else type(pool).__name__
    try:
        if not isinstance(pool, str) or not re.fullmatch(r"[a-z]{1,20}", pool):
            raise ValueError("it is not the name of a pooling")
        arguments: dict[str, Any] = {"num_classes": classes, "global_pool": pool, **size_argument(name, size)}
        stated = timm.create_model(name, **arguments)
        stated.load_state_dict(network.state_dict(), strict=True)
        with torch.inference_mode():
            same = torch.allclose(stated.eval()(images), network(images), rtol=1e-4, atol=1e-5)
    except (RuntimeError, TypeError, ValueError, AssertionError, KeyError) as error:  # of timm's factories
        raise UserError(
            "model-unfit", f"{where}: timm cannot build {name} with global_pool {shown}: {one_line(error)[:200]}"
        ) from None
    if not same:
        what = f"its network was built with global_pool {shown}, which a model folder cannot store"
        raise UserError("model-unfit", f"{where}: {what}")
