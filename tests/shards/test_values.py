"""Rules in the types of options: what breaks one is refused by the option's name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from failing import fails

from shards.values import Automatic, BetweenZeroAndOne, Checked, Count, FromZeroToOne, NotNegative, Positive, between


@dataclass(frozen=True, kw_only=True)
class Inherited(Checked):
    batch_size: Automatic = 0
    limit: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Options(Inherited):
    batch_size: Count = 1  # the rule of a field is that of its last declaration
    share: FromZeroToOne = 0.5
    inner: BetweenZeroAndOne = 0.5
    seconds: Positive = 1.0
    wait: NotNegative = 0.0
    side: Annotated[int, between(64, 4096, "from 64 to 4096 pixels")] = 64
    free: int = -1
    names: list[str] = field(default_factory=list)


@pytest.mark.parametrize(
    "good",
    [
        {"batch_size": 1},
        {"limit": None},
        {"limit": 1},
        {"share": 0},
        {"share": 1.0},
        {"wait": 0},
        {"side": 4096},
        {"free": -9},
    ],
)
def test_values_within_the_rules(good: dict[str, Any]) -> None:
    assert vars(Options(**good)).items() >= good.items()


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("batch_size", 0, "at least 1"),
        ("limit", 0, "at least 1"),
        ("share", 1.5, "from 0 to 1"),
        ("share", math.nan, "from 0 to 1"),
        ("inner", 1.0, "under 1"),
        ("seconds", 0.0, "positive"),
        ("seconds", math.inf, "positive"),
        ("wait", math.inf, "0 or more"),
        ("side", 63, "from 64 to 4096 pixels"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_name(name: str, value: Any, wanted: str) -> None:
    with fails("option-value", f"--{name.replace('_', '-')} must be ", wanted, f"not {value}"):
        Options(**{name: value})


def test_an_inherited_rule_holds() -> None:
    assert Inherited(batch_size=0).batch_size == 0
    with fails("option-value", "--batch-size", "0 (automatic) or more", "-1"):
        Inherited(batch_size=-1)
