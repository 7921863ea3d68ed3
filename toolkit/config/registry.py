"""Entries of registries: MODULE:NAME is imported when it is used, so that listing names does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple


def named(where: str) -> Any:
    """The class or function of MODULE:NAME."""
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


class Augmentation(NamedTuple):
    """An operation that changes the pixels of each sample independently."""

    on: Callable[[Any], bool]
    """Return whether an AugmentConfig enables the operation."""
    done_by: str
    """MODULE:FUNCTION of (images (n, 3, S, S) float32 from 0 to 255, config, seed, epoch, keys (n,)) → images."""
