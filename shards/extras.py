"""Import code only when it is used: functions and classes by name, and the optional packages (extras of setup.cfg)."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from shards.errors import UserError, one_line


def load_object(place: str) -> Any:
    """Import and return a class or function. ``place`` is its name in the form ``MODULE:NAME``."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def install(extra: str) -> str:
    """Return the command that installs an extra of setup.cfg, for a wheel and for a checkout of this toolkit."""
    return f"pip install 'poster-toolkit[{extra}]'"


def absent(*modules: str) -> list[str]:
    """Return the modules that are not installed. No module is imported, because an import can take seconds."""
    return [module for module in modules if find_spec(module) is None]


def require_extra(extra: str, what: str, *modules: str, load: bool = True) -> Any:
    """Import optional modules and return the first one. If ``load`` is false, only check that they are installed.

    If a module is missing, raise UserError. The message says what needs the module, and how to install ``extra``.
    """
    missing, reason = absent(*modules), ""
    try:
        found = [importlib.import_module(module) for module in modules] if load and not missing else [None]
    except ImportError as error:
        missing, reason = list(modules), f" ({one_line(error)})"
    if missing:
        raise UserError("extra-missing", f"{what} needs {' and '.join(missing)}: {install(extra)}{reason}")
    return found[0]
