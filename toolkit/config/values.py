"""Types of training options, each with a rule for its values. shards/values.py has the general types."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from shards.storage.paths import is_url
from shards.values import Rule, between, or_more
from toolkit.config.extensions import is_place

#: Limits that keep the memory small: largest side of the input and of the resized image in pixels, smallest crop_pct.
MAX_SIDE, MAX_RESIZED, LEAST_CROP_PCT = 4096, 16384, 0.1
#: Limits of a head (the new classifier): number and width of its hidden layers, and number of its mlps.
MAX_HIDDEN, MAX_WIDTH, MAX_MEMBERS = 64, 65536, 1024

#: Names of the heads in toolkit/models/heads.py.
HeadKind = Literal["mlp", "linear", "levels", "ensemble"]
#: Metrics of toolkit/metrics/registry.py that can select the best epoch.
Monitored = Literal["loss", "mAP", "macro_f1"]
Fit = Literal["crop", "stretch"]
Geometry = Literal["auto", "device", "cpu"]

Probability = Annotated[float, between(0, 1, "a probability")]
CropPct = Annotated[float, between(LEAST_CROP_PCT, 1)]
Share = Annotated[float, between(0, 1, "a share from 0 to 1")]
Alpha = Annotated[float, or_more("none")]

_HEADS = ", ".join(get_args(HeadKind))
_HEAD = Rule(f"{_HEADS} or MODULE:CLASS", lambda value: value in get_args(HeadKind) or is_place(value))
_PLACE = Rule("MODULE:CLASS", is_place)
_MONITORED = ", ".join(get_args(Monitored))
_MONITOR = Rule(f"{_MONITORED} or MODULE:CLASS", lambda value: value in get_args(Monitored) or is_place(value))
_SIDE = Rule(f"0 (the backbone's size) or from 16 to {MAX_SIDE} pixels", lambda v: v == 0 or 16 <= v <= MAX_SIDE)
_WIDTHS = Rule(
    f"at most {MAX_HIDDEN} widths from 1 to {MAX_WIDTH}",
    lambda value: len(value) <= MAX_HIDDEN and all(1 <= width <= MAX_WIDTH for width in value),
)
_FREEZE, _FREEZES = (re.compile(r"[\w.]+(@[1-9]\d*)?"), "module names, optionally with @EPOCHS (1 or more)")
_AIM = re.compile(r"f1|f0\.5|(precision|recall)>=(0?\.\d+|0|1|1\.0+)")
_AIMS = "f1, f0.5, precision>=X or recall>=X with X from 0 to 1"

HeadName = Annotated[str, _HEAD]
Place = Annotated[str | None, _PLACE]
Monitor = Annotated[str, _MONITOR]
if TYPE_CHECKING:
    Trackers = dict[str, dict[str, Any]]
else:  # a list, or a text such as wandb, becomes a dict in TrainConfig
    Trackers = dict[str, dict[str, Any]] | list[str] | str
Side = Annotated[int, _SIDE]
AreaRange = Annotated[tuple[float, float], Rule("0 < low <= high <= 1", lambda v: 0 < v[0] <= v[1] <= 1)]
RatioRange = Annotated[tuple[float, float], Rule("0 < low <= high", lambda v: 0 < v[0] <= v[1])]
Widths = Annotated[tuple[int, ...], _WIDTHS]
Modules = Annotated[tuple[str, ...], Rule(_FREEZES, lambda value: all(map(_FREEZE.fullmatch, value)))]
Folder = Annotated[str | None, Rule("a local folder, because its files are memory-mapped", lambda v: not is_url(v))]
Aim = Annotated[str, Rule(_AIMS, lambda value: _AIM.fullmatch(value.replace(" ", "")))]
