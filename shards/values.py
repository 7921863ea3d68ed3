"""Rules for the values of options. A rule is part of the type of a field: ``Annotated[float, at_least(0)]``."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

from shards.errors import UserError


class Rule(NamedTuple):
    """A condition on the value of an option."""

    wanted: str
    """The condition in words, for the message "KEY must be ..."."""
    holds: Callable[[Any], object]


def at_least(least: float, wanted: str = "") -> Rule:
    """Return the rule that a value is ``least`` or more."""
    return Rule(wanted or f"at least {least}", lambda value: value >= least)


def between(low: float, high: float, wanted: str = "") -> Rule:
    """Return the rule that a value is from ``low`` to ``high`` (both included)."""
    return Rule(wanted or f"from {low:g} to {high:g}", lambda value: low <= value <= high)


def or_more(zero: str) -> Rule:
    """Return the rule that a value is 0 or more. ``zero`` is the meaning of 0 in words, such as "automatic"."""
    return at_least(0, f"0 ({zero}) or more")


FromZeroToOne = Annotated[float, between(0, 1)]
BetweenZeroAndOne = Annotated[float, Rule("over 0, under 1", lambda value: 0 < value < 1)]
OverZeroToOne = Annotated[float, Rule("over 0, at most 1", lambda value: 0 < value <= 1)]
UnderOne = Annotated[float, Rule("at least 0, under 1", lambda value: 0 <= value < 1)]
Positive = Annotated[float, Rule("positive", lambda value: 0 < value < math.inf)]
NotNegative = Annotated[float, Rule("0 or more", lambda value: 0 <= value < math.inf)]
Count = Annotated[int, at_least(1)]
Automatic = Annotated[int, or_more("automatic")]


@cache
def rules_of(kind: type) -> dict[str, list[Rule]]:
    """Return the rules of each field of a dataclass. Rules in a union such as ``Count | None`` are included."""
    return {
        name: [
            part
            for one in (hint, *get_args(hint))
            for part in getattr(one, "__metadata__", ())
            if isinstance(part, Rule)
        ]
        for name, hint in get_type_hints(kind, include_extras=True).items()
    }


def check_rules(options: Any, called: Callable[[str], str]) -> None:
    """Raise UserError if a field of a dataclass breaks a rule of its type. None is always valid.

    called: function that takes the name of a field and returns the name of its option.
    """
    kind: Any = type(options)
    for name, rules in rules_of(kind).items():
        value = getattr(options, name)
        for rule in rules:
            if value is not None and not rule.holds(value):
                raise UserError("option-value", f"{called(name)} must be {rule.wanted}, not {str(value)[:200]}")


#: Largest number that JSON can store exactly. Larger numbers could be saved, but not loaded again.
MAX_NUMBER = 1 << 53


def whole_number(name: str, value: Any, least: int, most: int = MAX_NUMBER) -> int:
    """Return an argument as an int. Raises UserError if it is not a whole number from ``least`` to ``most``.

    Whole numbers of NumPy are also accepted. True and False are not.

    >>> whole_number("seed", 3, 0)
    3
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise UserError("option-value", f"{name} must be a whole number of {least} or more, not {repr(value)[:200]}")
    if number > most:
        raise UserError("option-value", f"{name} must be at most {most}, not {number}")
    return number


def flag(name: str) -> str:
    """Return the name of the option for a field, such as ``--out-dir`` for ``out_dir``."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Checked:
    """Base class of options dataclasses. A new instance checks the rules of its fields (see `check_rules`)."""

    def __post_init__(self) -> None:
        check_rules(self, flag)
