"""Which values of a configuration make sense: each rule names its key and says what is wanted."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING

from shards.errors import UserError, did_you_mean
from shards.storage.paths import is_url
from toolkit.config.schema import LEAST_CROP_PCT, MAX_HIDDEN, MAX_MEMBERS, MAX_RESIZED, MAX_SIDE, MAX_WIDTH

if TYPE_CHECKING:
    from toolkit.config.schema import Config

_FREEZE = re.compile(r"[\w.]+(@[1-9]\d*)?")
_AIM = re.compile(r"f1|f0\.5|(precision|recall)>=(0?\.\d+|0|1|1\.0+)")

#: Known without asking timm.
COMMON = ("adam", "adamw", "sgd", "lamb")

#: Optimisers whose updates of spread weights were compared with those of whole ones: by
#: tests/toolkit/distributed/test_fsdp.py.
SPREADABLE = ("adam", "adamw", "nadamw", "lion", "lamb", "sgd")


def check_config(config: Config) -> None:
    """Raise UserError for values that no run could use, naming the key."""
    data, augment, model, loss = config.data, config.augment, config.model, config.loss
    optim, train, decide = config.optim, config.train, config.decide
    for part in dataclasses.fields(config):
        for option, value in vars(getattr(config, part.name)).items():
            numbers = value if isinstance(value, (tuple, list)) else [value]
            if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
                raise UserError(f"{part.name}.{option} must be finite, not {value}")
    checks = [
        (
            "data.image_size",
            data.image_size == 0 or 16 <= data.image_size <= MAX_SIDE,
            f"0 (the backbone's own) or from 16 to {MAX_SIDE} pixels",
        ),
        ("data.crop_scale", 0 < data.crop_scale[0] <= data.crop_scale[1] <= 1, "0 < low <= high <= 1"),
        ("data.crop_ratio", 0 < data.crop_ratio[0] <= data.crop_ratio[1], "0 < low <= high"),
        ("data.flip", 0 <= data.flip <= 1, "a probability"),
        ("data.crop_pct", LEAST_CROP_PCT <= data.crop_pct <= 1, f"from {LEAST_CROP_PCT:g} to 1"),
        (
            "data.crop_pct",
            data.image_size / data.crop_pct <= MAX_RESIZED,
            f"larger: images would be resized to over {MAX_RESIZED} pixels",
        ),
        ("data.repeat_below", 0 < data.repeat_below <= 1, "over 0, at most 1"),
        ("data.workers", 0 <= data.workers <= 1024, "0 (automatic) or at most 1024"),
        ("data.prefetch", 1 <= data.prefetch <= 10_000, "from 1 to 10000"),
        ("data.window", data.window >= 1, "at least 1"),
        ("data.max_errors", 0 <= data.max_errors <= 1, "a share from 0 to 1"),
        ("augment.brightness", 0 <= augment.brightness <= 1, "from 0 to 1"),
        ("augment.contrast", 0 <= augment.contrast <= 1, "from 0 to 1"),
        ("augment.saturation", 0 <= augment.saturation <= 1, "from 0 to 1"),
        ("augment.randaugment", augment.randaugment >= 0, "0 (none) or more"),
        ("augment.magnitude", 0 <= augment.magnitude <= 30, "from 0 to 30"),
        ("augment.erase", 0 <= augment.erase <= 1, "a probability"),
        (
            "augment.erase_area",
            0 < augment.erase_area[0] <= augment.erase_area[1] < 1,
            "0 < low <= high < 1",
        ),
        ("augment.mixup", augment.mixup >= 0, "0 (none) or more"),
        ("augment.cutmix", augment.cutmix >= 0, "0 (none) or more"),
        ("augment.mix_prob", 0 <= augment.mix_prob <= 1, "a probability"),
        (
            "model.hidden",
            all(1 <= width <= MAX_WIDTH for width in model.hidden) and len(model.hidden) <= MAX_HIDDEN,
            f"at most {MAX_HIDDEN} widths from 1 to {MAX_WIDTH}",
        ),
        ("model.members", 1 <= model.members <= MAX_MEMBERS, f"from 1 to {MAX_MEMBERS}"),
        ("model.dropout", 0 <= model.dropout < 1, "at least 0, under 1"),
        ("model.drop_path", 0 <= model.drop_path < 1, "at least 0, under 1"),
        (
            "model.freeze",
            all(_FREEZE.fullmatch(name) for name in model.freeze),
            "module names, each with @EPOCHS (at least 1) or without",
        ),
        ("loss.smoothing", 0 <= loss.smoothing < 1, "at least 0, under 1"),
        ("loss.pos_weight_cap", loss.pos_weight_cap >= 1, "at least 1"),
        ("loss.focal_gamma", loss.focal_gamma >= 0, "0 or more"),
        ("loss.gamma_pos", loss.gamma_pos >= 0, "0 or more"),
        ("loss.gamma_neg", loss.gamma_neg >= 0, "0 or more"),
        ("loss.clip", 0 <= loss.clip < 1, "at least 0, under 1"),
        ("optim.lr", optim.lr > 0, "positive"),
        ("optim.weight_decay", optim.weight_decay >= 0, "0 or more"),
        ("optim.momentum", 0 <= optim.momentum < 1, "at least 0, under 1"),
        ("optim.layer_decay", 0 < optim.layer_decay <= 1, "over 0, at most 1"),
        ("optim.head_lr", optim.head_lr > 0, "positive"),
        ("optim.warmup_steps", optim.warmup_steps >= 0, "0 or more"),
        ("optim.min_lr", 0 <= optim.min_lr <= 1, "a share from 0 to 1"),
        ("optim.clip_norm", optim.clip_norm >= 0, "0 (no clipping) or more"),
        ("train.epochs", train.epochs >= 1, "at least 1"),
        ("train.batch_size", 1 <= train.batch_size <= 2**31, "from 1 to 2147483648"),
        (
            "train.batch_size",
            train.batch_size >= 2 or augment.mix_prob == 0 or not (augment.mixup or augment.cutmix),
            "at least 2 with augment.mixup or augment.cutmix, which mix the pairs of an update",
        ),
        ("train.accumulation", train.accumulation >= 1, "at least 1"),
        ("train.eval_batch_size", train.eval_batch_size >= 0, "0 (what suits the device) or more"),
        ("train.seed", 0 <= train.seed < 2**32, "from 0 to 4294967295"),
        ("train.patience", train.patience >= 0, "0 (never) or more"),
        ("train.ema", 0 <= train.ema < 1, "at least 0, under 1"),
        ("train.feature_views", train.feature_views >= 0, "0 (no cache) or more"),
        (
            "train.feature_cache",
            not is_url(train.feature_cache or ""),
            "a folder, whose files processes map, and no URL",
        ),
        ("train.max_skipped", train.max_skipped >= 0, "0 (none) or more"),
        ("train.checkpoint_steps", train.checkpoint_steps >= 0, "0 (per epoch only) or more"),
        ("train.keep_checkpoints", train.keep_checkpoints >= 1, "at least 1"),
        ("train.log_steps", train.log_steps >= 1, "at least 1"),
        (
            "decide.aim",
            _AIM.fullmatch(decide.aim.replace(" ", "")) is not None,
            "f1, f0.5, precision>=X or recall>=X with X from 0 to 1",
        ),
        ("decide.slack", 0 <= decide.slack < 1, "at least 0, under 1"),
    ]
    for key, good, wanted in checks:
        if not good:
            section, name = key.split(".")
            raise UserError(
                f"{key} must be {wanted}, not {str(getattr(getattr(config, section), name))[:200]}"
            )
    if optim.name not in COMMON:
        _check_optimizer(optim.name)
    if train.fsdp:
        _check_fsdp(config)


def _check_fsdp(config: Config) -> None:
    """Raise UserError for what does not go with weights that are spread over processes, and why."""
    train, name = config.train, config.optim.name
    for key, asked, why, instead in (
        (
            "train.auto_batch",
            train.auto_batch,
            "processes try unequally often, and would wait for each other",
            "set --train.auto_batch false and --train.accumulation yourself",
        ),
        (
            "train.compile",
            train.compile,
            "what is compiled has not been tested with weights that come and go",
            "set --train.compile false",
        ),
        (
            "train.sync_batchnorm",
            train.sync_batchnorm,
            "statistics over processes have not been tested with spread weights",
            "set --train.sync_batchnorm false",
        ),
        (
            "train.feature_views",
            train.feature_views > 0,
            "a head that learns alone is small",
            "set --train.feature_views 0",
        ),
        (
            f"optim.name {name}",
            name not in SPREADABLE,
            "its updates of spread weights have not been compared with those of whole ones",
            f"take {', '.join(SPREADABLE[:-1])} or {SPREADABLE[-1]}",
        ),
    ):
        if asked:
            raise UserError(f"train.fsdp does not go with {key}: {why}; {instead}, or set --train.fsdp false")


def _check_optimizer(name: str) -> None:
    from timm.optim import list_optimizers  # loads torch, which takes seconds: only for the uncommon

    known: list[str] = [str(known) for known in list_optimizers()]
    if name not in known:
        raise UserError(f"optim.name: timm has no optimiser {name!r}{did_you_mean(name, known, str, 3)}")
