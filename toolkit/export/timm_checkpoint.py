"""Read a classifier of timm: a file of weights, a checkpoint of timm's train.py, or a folder in timm's hub format.

The files may come from untrusted sources. Pickles run no code (models/safe_unpickle.py). timm_network.py builds the
network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import timm
import torch

from shards.errors import UserError
from shards.schema import Count, check_as
from toolkit.config.model_files import CONFIG, Number, Text, read_as
from toolkit.export.imported import Imported
from toolkit.export.options import ImportOptions
from toolkit.export.timm_network import Stated, import_network
from toolkit.model_folder.folder import WEIGHTS
from toolkit.models.safe_unpickle import PickledNamespace, safe_load
from toolkit.models.tensor_files import load_tensors, plain_names, read_header, require_finite

PICKLED_WEIGHTS = "pytorch_model.bin"
#: Keys of the weights in a checkpoint, in the order in which timm looks for them. The first two are moving averages.
AVERAGES, PLAIN = ("state_dict_ema", "model_ema"), ("state_dict", "model")
REMEDY = "save it again with timm"


class ImageValues(msgspec.Struct):
    """The values that describe how timm prepares images."""

    input_size: tuple[Count, Count, Count] | None = None
    mean: list[Number] | None = None
    std: list[Number] | None = None
    crop_pct: Number | None = None
    crop_mode: Text | None = None
    interpolation: Text | None = None


class Arguments(ImageValues):
    """The options of timm's train.py that describe the network and its images. Other options are ignored."""

    model: Text | None = None
    num_classes: Count | None = None
    in_chans: Count | None = None
    img_size: Count | None = None
    gp: Text | None = None
    bn_eps: Number | None = None
    model_kwargs: dict[str, Any] | None = None
    task: Text | None = None


class HubCfg(ImageValues):
    """The keys of ``pretrained_cfg`` in timm's config.json that are read."""

    tag: Text | None = None


class HubConfig(msgspec.Struct):
    """timm's config.json."""

    architecture: Text
    num_classes: Count | None = None
    global_pool: Text | None = None
    label_names: list[Any] | dict[str, Any] | None = None
    model_args: dict[str, Any] | None = None
    pretrained_cfg: HubCfg = msgspec.field(default_factory=HubCfg)


class Checkpoint(msgspec.Struct):
    """The keys of a checkpoint of train.py that are read, besides weights and ``args``."""

    epoch: Count = 0
    arch: Text | None = None


def read_timm_folder(folder: Path, options: ImportOptions) -> Imported:
    """Return the model of a folder in timm's hub format. Raises UserError if a file is missing or does not fit."""
    config, raw = read_as(folder / CONFIG, HubConfig, "model config of timm", REMEDY)
    if "pretrained_cfg" not in raw:  # early versions of timm's format have these keys at the top
        config.pretrained_cfg = check_as(raw, HubCfg, folder / CONFIG, "model config of timm", REMEDY)
    cfg, path = config.pretrained_cfg, folder / WEIGHTS
    if path.is_file():
        read_header(path)
        state: Any = load_tensors(path)
    elif (path := folder / PICKLED_WEIGHTS).is_file():
        state = safe_load(path, "file of weights")
    else:
        raise UserError("model-missing", f"{folder} has no {WEIGHTS} or {PICKLED_WEIGHTS}: copy the whole folder again")
    tagged = f"{config.architecture}.{cfg.tag}"
    stated = Stated(
        str(folder / CONFIG),
        tagged if cfg.tag and timm.models.is_model_pretrained(tagged) else config.architecture,
        config.num_classes,
        config.label_names,
        {"global_pool": config.global_pool, **(config.model_args or {})},
        msgspec.to_builtins(cfg),
    )
    return import_network(_state(state, path), stated, path, options)


def read_timm(content: Any, path: Path, options: ImportOptions) -> Imported:
    """Return the model of a file, whose ``content`` is a state dict or a checkpoint of train.py. Raises UserError."""
    raw = content if isinstance(content, dict) else {}
    keys = ([*AVERAGES] if options.ema else []) + [*PLAIN]
    key = next((key for key in keys if isinstance(raw.get(key), dict)), None)
    if key is None:
        return import_network(_state(content, path), Stated(str(path)), path, options)
    top = check_as(
        {name: raw[name] for name in ("epoch", "arch") if name in raw}, Checkpoint, path, "checkpoint", REMEDY
    )
    given = raw.get("args")
    given = given.state if isinstance(given, PickledNamespace) else given
    args = Arguments() if given is None else check_as(given, Arguments, path, "checkpoint (its args)", REMEDY)
    stated = Stated(
        str(path),
        args.model or top.arch,
        args.num_classes,
        arguments={
            "in_chans": args.in_chans, "global_pool": args.gp, "bn_eps": args.bn_eps, **(args.model_kwargs or {})
        },
        images=_images_of(args),
        task=args.task or (None if given is None else "classification"),
        epoch=top.epoch,
        averaged=key in AVERAGES,
    )  # fmt: skip
    return import_network(_state(raw[key], path), stated, path, options)


def _images_of(args: Arguments) -> dict[str, Any]:
    found = {name: getattr(args, name) for name in HubCfg.__struct_fields__ if name != "tag"}
    if args.input_size is None and args.img_size is not None:
        found["input_size"] = (3, args.img_size, args.img_size)
    return found


def _state(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the weights without prefixes of wrappers. Raises UserError if there are none, or if one is not finite."""
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    ):
        raise UserError(
            "path-unreadable",
            f"{path} contains no weights: expected a state dict, a checkpoint of timm's train.py (state_dict), or one "
            f"of the earlier training script (model_state_dict). To start a training, use --model.weights FILE",
        )
    state = plain_names(content)
    require_finite(state, path)
    return state
