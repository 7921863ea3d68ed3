"""Describe the commands, and choose one by its name. The help lists commands, but does not import their modules."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shards.errors import UserError, did_you_mean
from shards.extras import load_object


@dataclass(frozen=True)
class Command:
    """One command, or a group of commands such as ``posters shards``. A group has only ``help``."""

    help: str
    options: str = ""
    """The options as ``module:Class``, the name of a dataclass whose fields are the options."""
    run: str = ""
    """The function as ``module:function``. It takes an instance of the options class and returns the exit status."""
    description: str = ""
    """First paragraph of the command's --help. If it is empty, --help shows ``help``."""

    @property
    def options_class(self) -> Any:
        """Import and return the dataclass of the options."""
        return load_object(self.options)

    def __call__(self, options: Any) -> int:
        """Run the command and return the exit status."""
        return int(load_object(self.run)(options))


def choose(commands: Mapping[str, Command], words: Sequence[str], about: str) -> tuple[str, list[str]]:
    """Return (name of the command, words after the name). Raises UserError if no command has this name.

    For ``posters --help`` or the --help of a group, print the help and exit.
    ``commands`` maps full names such as "shards build" to commands. ``about`` is the help text of ``posters`` itself.
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
