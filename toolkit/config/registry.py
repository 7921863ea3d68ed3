"""Entries of registries: MODULE:NAME is imported when it is used, so that listing names does not import torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def named(where: str) -> Any:
    """The class or function of MODULE:NAME."""
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
