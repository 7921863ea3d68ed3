"""Declare the options of a command as the fields of a dataclass.

An option has the name of its field in kebab-case, and the type and default of the field. The attribute docstring is the
help text. If the type of a field is a dataclass, the fields of that dataclass become options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Option:
    """Properties of an option that do not follow from the name, type, default and docstring of its field."""

    flags: tuple[str, ...] = ()
    """Short names such as ``-o``. A long name (``--output``) at the end of the tuple replaces the name of the field."""
    old: tuple[str, ...] = ()
    """Names of the option in earlier versions. These names are still accepted, but the help does not show them."""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    """Allowed values of a text option whose type is not a Literal."""
    parse: Callable[[Any], Any] | None = None
    """Function that converts the text from the command line to the value. The function can raise UserError."""
    text: str | None = None
    """The default as text, in the form that a user types. ``parse`` converts this text to the value."""
    const: str | None = None
    """Value of the option if the user gives the option without a value."""
    several: Literal["", "words", "times"] = ""
    """With ``parse``: whether the user can give several values, as words after one option (``-i a b``), or by giving
    the option several times (``-t a -t b``). ``parse`` gets the list of texts."""
    positional: bool = False
    hidden: bool = False
    """Whether only Python code can set the field. A hidden field is not an option of the command."""
    only: tuple[str, ...] = ()
    """If the type is a dataclass: names of its fields that become options. Empty means all fields."""
    switch: str = ""
    """Flag that enables a field whose type is a dataclass. Without this flag the value of the field is None."""
    sections: bool = False
    """Whether the type is a dataclass of dataclasses. The names of its options have dots (``--data.shards``). A config
    file can also set these options."""


def option(default: Any = MISSING, *flags: str, factory: Any = MISSING, **properties: Any) -> Any:
    """Return a dataclass field. ``properties`` are fields of Option. Without a default, the option is required."""
    metadata = {"option": Option(flags, **properties)}
    if factory is not MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
