"""Choose one of several models: the best one, or a faster one if no difference in quality was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from toolkit.metrics.judgement import UNSEEN

#: A model is clearly faster if its speed is at least this many times as high. Smaller differences can be other work of
#: the machine.
FASTER = 1.2


@dataclass(frozen=True)
class Choice:
    """The result of the comparison. Models are given by their numbers."""

    best: int | None
    """The model with the highest value. None if no model has a value."""
    take: int | None
    """The model that the page recommends. None if no model has a value."""
    better_than: list[int] = field(default_factory=list)
    """Models to which a difference was seen: the best model is better."""
    equal: list[int] = field(default_factory=list)
    """Models for which no difference to the best model was seen."""


def choose(best: int | None, against: Mapping[int, str], images_per_s: Sequence[float]) -> Choice:
    """Return the choice. ``against``: for each model that is compared with the best one, the words of the difference.

    If no difference between the best model and some others was seen, the fastest of them is recommended, unless the
    best model is nearly as fast (`FASTER`).

    >>> choose(1, {0: "better", 2: "no difference seen"}, [5.0, 5.0, 9.0])
    Choice(best=1, take=2, better_than=[0], equal=[2])
    """
    if best is None:
        return Choice(None, None)
    equal = sorted(at for at, words in against.items() if words == UNSEEN)
    fastest = max([best, *equal], key=lambda at: images_per_s[at])
    take = fastest if images_per_s[fastest] >= FASTER * images_per_s[best] else best
    return Choice(best, take, sorted(against.keys() - set(equal)), equal)
