"""What an entry of a registry names as MODULE:NAME is imported where it is used: names alone cost no torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def named(where: str) -> Any:
    """The class or function of MODULE:NAME."""
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
