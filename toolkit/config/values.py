"""What values an option may have: rules that stand in its type, ``Annotated[float, at_least(0)]``.

check_config (validation.py) holds every option to the rules of its type.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

from shards.storage.paths import is_url

#: Bounds that keep allocations sane, for what users ask for and for what a model folder says: the side of the input,
#: the side of an image before its centre is cut out, its share, the layers, widths and members of a head.
MAX_SIDE, MAX_RESIZED, LEAST_CROP_PCT = 4096, 16384, 0.1
MAX_HIDDEN, MAX_WIDTH, MAX_MEMBERS = 64, 65536, 1024

#: The heads of toolkit/models/heads.py.
HeadKind = Literal["mlp", "linear", "levels", "ensemble"]


class Rule(NamedTuple):
    """A condition on one option."""

    wanted: str
    """The end of the sentence "KEY must be ..."."""
    holds: Callable[[Any], object]


def at_least(least: float, wanted: str = "") -> Rule:
    """``least`` or more."""
    return Rule(wanted or f"at least {least}", lambda value: value >= least)


def between(low: float, high: float, wanted: str = "") -> Rule:
    """From ``low`` to ``high``, both included."""
    return Rule(wanted or f"from {low:g} to {high:g}", lambda value: low <= value <= high)


def or_more(zero: str) -> Rule:
    """0, which means ``zero``, or more."""
    return at_least(0, f"0 ({zero}) or more")


Probability = Annotated[float, between(0, 1, "a probability")]
Part = Annotated[float, between(0, 1, "a share from 0 to 1")]
FromZeroToOne = Annotated[float, between(0, 1)]
UnderOne = Annotated[float, Rule("at least 0, under 1", lambda value: 0 <= value < 1)]
OverZeroToOne = Annotated[float, Rule("over 0, at most 1", lambda value: 0 < value <= 1)]
Positive = Annotated[float, Rule("positive", lambda value: value > 0)]
NotNegative = Annotated[float, at_least(0, "0 or more")]
Alpha = Annotated[float, or_more("none")]
Count = Annotated[int, at_least(1)]

_SIDE = Rule(f"0 (the backbone's own) or from 16 to {MAX_SIDE} pixels", lambda v: v == 0 or 16 <= v <= MAX_SIDE)
_WIDTHS = Rule(
    f"at most {MAX_HIDDEN} widths from 1 to {MAX_WIDTH}",
    lambda value: len(value) <= MAX_HIDDEN and all(1 <= width <= MAX_WIDTH for width in value),
)
_FREEZE, _FREEZES = (re.compile(r"[\w.]+(@[1-9]\d*)?"), "module names, each with @EPOCHS (at least 1) or without")
_AIM = re.compile(r"f1|f0\.5|(precision|recall)>=(0?\.\d+|0|1|1\.0+)")
_AIMS = "f1, f0.5, precision>=X or recall>=X with X from 0 to 1"
_FOLDER = Rule("a folder, whose files processes map, and no URL", lambda value: not is_url(value or ""))

Side = Annotated[int, _SIDE]
AreaRange = Annotated[tuple[float, float], Rule("0 < low <= high <= 1", lambda v: 0 < v[0] <= v[1] <= 1)]
RatioRange = Annotated[tuple[float, float], Rule("0 < low <= high", lambda v: 0 < v[0] <= v[1])]
Widths = Annotated[tuple[int, ...], _WIDTHS]
Modules = Annotated[tuple[str, ...], Rule(_FREEZES, lambda value: all(map(_FREEZE.fullmatch, value)))]
Folder = Annotated[str | None, _FOLDER]
Aim = Annotated[str, Rule(_AIMS, lambda value: _AIM.fullmatch(value.replace(" ", "")))]
