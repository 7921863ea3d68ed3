"""Check a configuration: first each option by the rule of its type (values.py), then combinations of options.

The check is made before data and weights are read, so that an impossible run ends at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import msgspec

from shards.errors import UserError, did_you_mean, one_line
from shards.values import check_rules, rules_of
from toolkit.config.loss_registry import LOSSES
from toolkit.config.tracker_registry import TRACKERS
from toolkit.config.values import MAX_RESIZED

if TYPE_CHECKING:
    from toolkit.config.schema import Config

#: Optimisers that are accepted without a look-up in timm, because the import of timm is slow.
COMMON = ("adam", "adamw", "sgd", "lamb")

#: Optimisers that train.fsdp accepts. tests/toolkit/distributed/test_fsdp.py checks that sharded weights get the same
#: updates as unsharded weights.
SHARDABLE = ("adam", "adamw", "nadamw", "lion", "lamb", "sgd")


def check_config(config: Config) -> None:
    """Raise UserError, which names the key, for a value that no run can use."""
    for name, section in vars(config).items():
        _check_values(name, section)
    _check_entry("loss.name", config.loss.name, "loss.options", config.loss.options, LOSSES)
    for name, options in config.train.trackers.items():
        _check_entry("train.trackers", name, f"train.trackers.{name}", options, TRACKERS)
    _check_combinations(config)
    if config.optim.name not in COMMON:
        _check_optimizer(config.optim.name)
    if config.train.feature_views:
        _check_cached(config)
    if config.train.fsdp:
        _check_fsdp(config)


def _check_values(where: str, options: Any) -> None:
    """Raise UserError for a field of the dataclass ``options`` that breaks the rule of its type."""
    for name, hint in get_type_hints(type(options)).items():
        if getattr(options, name) is None and type(None) not in get_args(hint):  # a key without a value in YAML
            raise UserError("option-value", f"{where}.{name} has no value: add a value, or remove the key")
    for name, value in vars(options).items():
        numbers = value if isinstance(value, (tuple, list)) else [value]
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise UserError("option-value", f"{where}.{name} must be finite, not {value}")
    check_rules(options, lambda name: f"{where}.{name}")


def _check_entry(key: str, name: Any, where: str, given: Any, registry: Mapping[str, Any]) -> None:
    """Raise UserError for a ``name`` that is not in ``registry``, or for an unknown option of this loss or tracker."""
    if name not in registry:
        raise UserError("option-value", f"{key} must be one of {', '.join(registry)}, not {str(name)[:200]!r}")
    kind = registry[name].options
    known = list(rules_of(kind))
    for option in map(str, given or ()):  # a key in YAML may be a number
        if option not in known:
            hint = did_you_mean(option, known) or f"; {name} has {', '.join(known) or 'no options'}"
            raise UserError("option-unknown", f"{where}.{option} is not an option of {name}{hint}")
    try:
        options = msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise UserError("option-value", f"{where}: {one_line(error)}") from None
    _check_values(where, options)


def _check_combinations(config: Config) -> None:
    """Raise UserError for options that cannot be combined."""
    data, train = config.data, config.train
    if data.image_size / data.crop_pct > MAX_RESIZED:
        raise UserError(
            "option-value",
            f"data.crop_pct {data.crop_pct} resizes images to over {MAX_RESIZED} pixels; set a larger data.crop_pct",
        )
    if train.batch_size < 2 and config.augment.mixes:
        raise UserError(
            "option-conflict",
            f"train.batch_size is {train.batch_size}, but augment.mixup and augment.cutmix mix pairs of samples: set "
            f"--train.batch_size to at least 2",
        )


def _check_cached(config: Config) -> None:
    """Raise UserError for options that cannot be used with cached features."""
    frozen = config.model.freeze
    if "backbone" not in frozen:
        raise UserError(
            "option-conflict",
            "train.feature_views caches the features of a frozen backbone: set --model.freeze [backbone], or "
            "--train.feature_views 0",
        )
    if others := [name for name in frozen if name != "backbone"]:
        raise UserError(
            "option-conflict",
            f"model.freeze [{', '.join(others)}] cannot be combined with train.feature_views, which freezes the "
            f"backbone only: set --model.freeze [backbone], or --train.feature_views 0",
        )
    if config.augment.mixes:
        raise UserError(
            "option-conflict",
            "augment.mixup and augment.cutmix mix pixels, but cached features have no pixels: set both to 0, or set "
            "--train.feature_views 0",
        )
    for key, asked, off in (
        ("train.auto_batch", config.train.auto_batch, "false"),
        ("optim.layer_decay", config.optim.layer_decay < 1, "1"),
        ("model.drop_path", config.model.drop_path > 0, "0"),
        ("model.checkpointing", config.model.checkpointing, "false"),
        ("train.sync_batchnorm", config.train.sync_batchnorm, "false"),
    ):
        if asked:
            raise UserError(
                "option-conflict",
                f"{key} has no effect on a head that is trained on cached features: set --{key} {off}, or "
                f"--train.feature_views 0",
            )


def _check_fsdp(config: Config) -> None:
    """Raise UserError, with the reason, for options that cannot be combined with train.fsdp."""
    train, name = config.train, config.optim.name
    for key, asked, why, instead in (
        ("train.auto_batch", train.auto_batch, "ranks could try different accumulations and then block each other",
         "set --train.auto_batch false and choose --train.accumulation"),
        ("train.compile", train.compile, "torch.compile has not been tested with sharded weights",
         "set --train.compile false"),
        ("train.sync_batchnorm", train.sync_batchnorm,
         "statistics over all processes have not been tested with sharded weights", "set --train.sync_batchnorm false"),
        ("train.feature_views", train.feature_views > 0, "a head on cached features is too small to shard",
         "set --train.feature_views 0"),
        (f"optim.name {name}", name not in SHARDABLE,
         "its updates with sharded and unsharded weights have not been compared",
         f"use {', '.join(SHARDABLE[:-1])} or {SHARDABLE[-1]}"),
    ):  # fmt: skip
        if asked:
            raise UserError(
                "option-conflict", f"train.fsdp cannot be combined with {key}: {why}; {instead}, or --train.fsdp false"
            )


def _check_optimizer(name: str) -> None:
    from timm.optim import get_optimizer_info, list_optimizers  # imports torch, which takes seconds

    known: list[str] = [str(known) for known in list_optimizers()]
    if name not in known:
        raise UserError(
            "option-value", f"optim.name: timm has no optimiser {name!r}{did_you_mean(name, known, str, 3)}"
        )
    if get_optimizer_info(name).second_order:
        raise UserError(
            "option-value",
            f"optim.name {name} needs second derivatives, which the trainer does not compute: use adamw, for example",
        )
