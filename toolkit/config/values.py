"""Types of training options with the values that are allowed; shards/values.py has the general ones."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from shards.storage.paths import is_url
from shards.values import Rule, between, or_more

#: Bounds on memory, for options and for model folders: side of the input in pixels, side of the resized image before
#: the central crop, smallest crop_pct; then number and width of a head's hidden layers, and number of its members.
MAX_SIDE, MAX_RESIZED, LEAST_CROP_PCT = 4096, 16384, 0.1
MAX_HIDDEN, MAX_WIDTH, MAX_MEMBERS = 64, 65536, 1024

#: The heads of toolkit/models/heads.py.
HeadKind = Literal["mlp", "linear", "levels", "ensemble"]

Probability = Annotated[float, between(0, 1, "a probability")]
Part = Annotated[float, between(0, 1, "a share from 0 to 1")]
Alpha = Annotated[float, or_more("none")]

_SIDE = Rule(f"0 (the backbone's own) or from 16 to {MAX_SIDE} pixels", lambda v: v == 0 or 16 <= v <= MAX_SIDE)
_WIDTHS = Rule(
    f"at most {MAX_HIDDEN} widths from 1 to {MAX_WIDTH}",
    lambda value: len(value) <= MAX_HIDDEN and all(1 <= width <= MAX_WIDTH for width in value),
)
_FREEZE, _FREEZES = (re.compile(r"[\w.]+(@[1-9]\d*)?"), "module names, each with @EPOCHS (at least 1) or without")
_AIM = re.compile(r"f1|f0\.5|(precision|recall)>=(0?\.\d+|0|1|1\.0+)")
_AIMS = "f1, f0.5, precision>=X or recall>=X with X from 0 to 1"

Side = Annotated[int, _SIDE]
AreaRange = Annotated[tuple[float, float], Rule("0 < low <= high <= 1", lambda v: 0 < v[0] <= v[1] <= 1)]
RatioRange = Annotated[tuple[float, float], Rule("0 < low <= high", lambda v: 0 < v[0] <= v[1])]
Widths = Annotated[tuple[int, ...], _WIDTHS]
Modules = Annotated[tuple[str, ...], Rule(_FREEZES, lambda value: all(map(_FREEZE.fullmatch, value)))]
Folder = Annotated[str | None, Rule("a folder (its files are memory-mapped), not a URL", lambda v: not is_url(v))]
Aim = Annotated[str, Rule(_AIMS, lambda value: _AIM.fullmatch(value.replace(" ", "")))]
