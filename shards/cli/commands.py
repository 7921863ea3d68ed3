"""The table of commands, and which of them a command line names: listing them loads no option and no library."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from shards.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Command:
    """One command, without what it loads. A group of commands has a line of help only."""

    help: str
    options: str = ""
    """``module:Class``, a dataclass whose fields are the options."""
    run: str = ""
    """``module:function``, which takes that dataclass and returns the exit status."""
    description: str = ""
    """What its help says first, instead of ``help``."""

    @property
    def options_class(self) -> Any:
        """The dataclass, loaded."""
        return _load(self.options)

    def __call__(self, options: Any) -> int:
        """Do the work; returns the exit status."""
        return int(_load(self.run)(options))


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def choose(commands: Mapping[str, Command], words: Sequence[str], about: str) -> tuple[str, list[str]]:
    """(name of the command, the words behind it). Prints help and exits where that is asked for. Raises UserError.

    commands: by name; those of a group have its name before their own. about: what help says of all of them.
    """
    name, rest = "", list(words)
    while not name or not commands[name].options:
        below = {
            known.rpartition(" ")[2]: command for known, command in commands.items() if known.rpartition(" ")[0] == name
        }
        prog, listed = f"posters {name}".rstrip(), "|".join(below)
        word = rest.pop(0) if rest else ""
        if word in ("-h", "--help"):
            print(f"usage: {prog} [-h] {listed} ...\n\n{commands[name].help if name else about}\n")
            print("\n".join(f"  {verb:<10} {command.help}" for verb, command in below.items()))
            sys.exit()
        if word not in below:
            usage = f"{prog} {listed} (see `{prog} --help`)"
            if not word:
                raise UserError("option-missing", f"a command is missing: {usage}")
            raise UserError("option-unknown", f"unknown command {word!r}{did_you_mean(word, below)}: {usage}")
        name = f"{name} {word}".lstrip()
    return name, rest
