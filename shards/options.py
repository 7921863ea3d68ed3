"""Fields of dataclasses that are options of a command: what their names, types and docstrings leave open.

A command's options are the fields of one dataclass. A field's name in kebab-case is the option's, its type and default
are the option's, its docstring is the help. Fields that are dataclasses themselves stand for their own fields. The
parser is made by shards/cli/options.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """What a field says of itself beside name, type, default and docstring."""

    flags: tuple[str, ...] = ()
    """A short name, or at the end another long one than the field's."""
    old: tuple[str, ...] = ()
    """Names that earlier versions had; they are read and not shown."""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    """Of a text whose type does not list them."""
    parse: Callable[[str], Any] | None = None
    """The value of a text. Raises UserError."""
    text: str | None = None
    """The default as it is typed, where the text is parsed."""
    const: str | None = None
    """The value of the option without a value."""
    positional: bool = False
    hidden: bool = False
    """For callers in Python only."""
    only: tuple[str, ...] = ()
    """Of a dataclass, the fields that are options here; all if empty."""
    switch: str = ""
    """Of a dataclass or None, the flag that asks for it."""
    sections: bool = False
    """A dataclass of dataclasses: dotted options, of files too."""


def option(default: Any = MISSING, *flags: str, factory: Any = MISSING, **said: Any) -> Any:
    """A field of a command's dataclass; ``said`` are fields of Option. Without a default, the option is required."""
    metadata = {"option": Option(flags, **said)}
    if factory is not MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
