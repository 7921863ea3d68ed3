"""Check a configuration: first each option by the rule of its type (values.py), then combinations of options.

The check is made before data and weights are read, so that an impossible run ends at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shards.errors import UserError, did_you_mean
from toolkit.config.extensions import check_options, check_values, checked, is_place, use
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
        check_values(name, section)
    _check_entry("loss.name", config.loss.name, "loss.options", config.loss.options, LOSSES, "loss")
    for name, options in config.train.trackers.items():
        _check_entry("train.trackers", name, f"train.trackers.{name}", options, TRACKERS, "tracker")
    augment, metric, model = config.augment, config.metric, config.model
    _check_optional("augment.name", augment.name, "augment.options", augment.options, "augmentation")
    _check_optional("metric.name", metric.name, "metric.options", metric.options, "metric")
    _check_monitor(config)
    _check_optional("model.adapter", model.adapter, "model.adapter_options", model.adapter_options, "adapter")
    _check_head(config)
    _check_combinations(config)
    if is_place(config.optim.name):
        _check_entry("optim.name", config.optim.name, "optim.options", config.optim.options, {}, "optimiser")
    elif config.optim.name not in COMMON or config.optim.options:
        _check_optimizer(config.optim.name, config.optim.options)
    if config.train.feature_views:
        _check_cached(config)
    if config.train.fsdp:
        _check_fsdp(config)


def _check_entry(key: str, name: Any, where: str, given: Any, registry: Mapping[str, Any], kind: str) -> None:
    """Raise UserError if ``name`` is neither in ``registry`` nor a class, or if an option in ``given`` does not fit."""
    if is_place(name):
        check_options(kind, name, use(kind, name, key), given, where)
    elif name in registry:
        if registry[name].options is not None:
            checked(registry[name].options, given, where, name)
    else:
        names = ", ".join(registry)
        raise UserError("option-value", f"{key} must be one of {names}, or MODULE:CLASS, not {str(name)[:200]!r}")


def _check_optional(key: str, name: str | None, where: str, options: dict[str, Any], kind: str) -> None:
    """Raise UserError if a class of the user does not fit, or if options are given without a class."""
    if name is not None:
        _check_entry(key, name, where, options, {}, kind)
    elif options:
        raise UserError("option-missing", f"{where} needs {key} MODULE:CLASS")


def _check_monitor(config: Config) -> None:
    """Raise UserError if train.monitor is a class that is not measured, or whose better direction is unknown."""
    monitor, measured = config.train.monitor, config.metric.name
    if not is_place(monitor):
        return
    if monitor != measured:
        raise UserError(
            "option-conflict",
            f"train.monitor {monitor} is not measured, because metric.name is {measured or 'null'}: set --metric.name "
            f"{monitor}",
        )
    if getattr(use("metric", monitor, "train.monitor"), "better", None) not in ("higher", "lower"):
        raise UserError(
            "option-value",
            f"train.monitor {monitor}: the class does not define whether higher or lower values are better: add the "
            f'line better = "higher" or better = "lower" to the class',
        )


def _check_head(config: Config) -> None:
    model = config.model
    if not is_place(model.head):
        if model.head_options:
            raise UserError(
                "option-unknown", f"model.head_options are for model.head MODULE:CLASS; {model.head} has no options"
            )
        return
    _check_entry("model.head", model.head, "model.head_options", model.head_options, {}, "head")
    for key, asked in (("model.prior", model.prior), ("train.standardize", config.train.standardize)):
        if asked:
            raise UserError(
                "option-conflict", f"{key} changes layers of known heads, not of {model.head}: set --{key} false"
            )


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
        ("model.adapter", config.model.adapter is not None, "null"),
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
        ("model.adapter", config.model.adapter is not None, "merging sharded weights has not been tested",
         "set --model.adapter null"),
        (f"optim.name {name}", name not in SHARDABLE,
         "its updates with sharded and unsharded weights have not been compared",
         f"use {', '.join(SHARDABLE[:-1])} or {SHARDABLE[-1]}"),
    ):  # fmt: skip
        if asked:
            raise UserError(
                "option-conflict", f"train.fsdp cannot be combined with {key}: {why}; {instead}, or --train.fsdp false"
            )


def _check_optimizer(name: str, options: dict[str, Any]) -> None:
    from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers  # imports torch: seconds

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
    kind: Any = get_optimizer_class(name, bind_defaults=False)
    check_options("optimiser", name, kind, options, "optim.options")
