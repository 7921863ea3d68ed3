"""Options of commands as fields of dataclasses.

The options of a command are the fields of one dataclass. The option's name is the field's in kebab-case. Type and
default are those of the field, and its docstring is the help text. A field whose type is a dataclass adds the fields of
that dataclass. shards/cli/options.py makes the parser.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """Properties of an option that name, type, default and docstring of its field do not give."""

    flags: tuple[str, ...] = ()
    """Short names; a last one that begins with ``--`` replaces the field's name."""
    old: tuple[str, ...] = ()
    """Names in earlier versions: still accepted, not shown in the help."""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    """Allowed values of a text, if its type does not list them."""
    parse: Callable[[str], Any] | None = None
    """Convert the typed text to the value. Raises UserError."""
    text: str | None = None
    """The default as text, if there is ``parse``."""
    const: str | None = None
    """Value of the option if it is given without a value."""
    positional: bool = False
    hidden: bool = False
    """Whether only callers in Python can set the field."""
    only: tuple[str, ...] = ()
    """Fields of a dataclass that become options; all if empty."""
    switch: str = ""
    """Flag that enables an optional dataclass; without the flag the value is None."""
    sections: bool = False
    """Whether the field is a dataclass of dataclasses: dotted options, which a config file may set, too."""


def option(default: Any = MISSING, *flags: str, factory: Any = MISSING, **properties: Any) -> Any:
    """Return a dataclass field with ``properties`` of Option. The option is required if there is no default."""
    metadata = {"option": Option(flags, **properties)}
    if factory is not MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
