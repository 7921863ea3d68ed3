"""Declare the options of a command as the fields of a dataclass.

An option has the name of its field in kebab-case, and the type and default of the field. The attribute docstring is the
help text. If the type is a dataclass, its fields become options, too. shards/cli/options.py builds the parser.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """Other properties of an option, besides the name, type, default and docstring of its field."""

    flags: tuple[str, ...] = ()
    """Short names such as ``-o``. If the last one begins with ``--``, it replaces the name of the field."""
    old: tuple[str, ...] = ()
    """Names in earlier versions. They are still accepted, but the help does not show them."""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    """Allowed values of a text option whose type is not a Literal."""
    parse: Callable[[str], Any] | None = None
    """Function that converts the text from the command line to the value. It may raise UserError."""
    text: str | None = None
    """The default as a text for ``parse``."""
    const: str | None = None
    """Value of the option if the user gives the option without a value."""
    positional: bool = False
    hidden: bool = False
    """Whether the field is not an option, so that only Python code can set it."""
    only: tuple[str, ...] = ()
    """Fields that become options if the type is a dataclass. If this is empty, all fields do."""
    switch: str = ""
    """Flag that enables a field whose type is a dataclass. Without this flag the value of the field is None."""
    sections: bool = False
    """Whether the type is a dataclass of dataclasses. Its options have dots in their names (``--data.shards``), and a
    config file can set them, too."""


def option(default: Any = MISSING, *flags: str, factory: Any = MISSING, **properties: Any) -> Any:
    """Return a dataclass field. ``properties`` are fields of Option. Without a default, the option is required."""
    metadata = {"option": Option(flags, **properties)}
    if factory is not MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
