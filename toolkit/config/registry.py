"""What an entry of a registry names as MODULE:NAME is imported where it is used: names alone cost no torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple


def named(where: str) -> Any:
    """The class or function of MODULE:NAME."""
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


class Augmentation(NamedTuple):
    """What changes the pixels of samples one by one."""

    on: Callable[[Any], bool]
    """Whether an AugmentConfig switches it on."""
    done_by: str
    """MODULE:FUNCTION, (images (n, 3, S, S) float32 levels, config, seed, epoch, keys (n,)) → images."""
