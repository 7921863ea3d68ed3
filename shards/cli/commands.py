"""Describe the commands, and choose one by its name. The help lists commands, but does not import their modules."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from shards.errors import UserError, nearest, printable_line
from shards.extras import load_object
from shards.versions import library_versions

#: Name of the distribution, and words that print its version.
PACKAGE, VERSION = "poster-toolkit", ("--version", "-V")


@dataclass(frozen=True)
class Command:
    """One command, or a group of commands such as ``posters shards``. A group has no ``options`` and no ``run``."""

    help: str
    options: str = ""
    """The options as ``module:Class``, the name of a dataclass whose fields are the options."""
    run: str = ""
    """The function as ``module:function``. It takes an instance of the options class and returns the exit status."""
    description: str = ""
    """First paragraph of the command's --help. If it is empty, --help shows ``help``."""
    examples: tuple[str, ...] = ()
    """Command lines that --help shows, without the word ``posters``."""
    also: tuple[str, ...] = ()
    """Other words that people use for this command. They are not accepted, but the error line names the command."""

    @property
    def options_class(self) -> Any:
        """Import and return the dataclass of the options."""
        return load_object(self.options)

    def __call__(self, options: Any) -> int:
        """Run the command and return the exit status."""
        return int(load_object(self.run)(options))


class HelpFormatter(argparse.HelpFormatter):
    """Wrap the paragraphs of a description, but keep the lines of an indented paragraph (examples)."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            part if "\n  " in part else super(HelpFormatter, self)._fill_text(part, width, indent)
            for part in paragraphs
        )


def choose(commands: Mapping[str, Command], words: Sequence[str], top: Command) -> tuple[str, list[str]]:
    """Return (name of the command, words after the name). Raises UserError if no command has this name.

    For a group without a command, or for its --help, print the help of the group and exit. The same holds for
    ``posters`` itself. ``posters --version`` prints the version and exits. ``commands`` maps full names such as
    "shards build" to commands. ``top`` has the help text and the examples of ``posters`` itself.
    """
    name, rest = "", list(words)
    while not name or not commands[name].options:
        below = {
            known.rpartition(" ")[2]: command for known, command in commands.items() if known.rpartition(" ")[0] == name
        }
        word = rest.pop(0) if rest else "--help"
        if word in ("-h", "--help"):
            _print_help(f"posters {name}".rstrip(), commands.get(name, top), below)
        if word in VERSION and not name:
            print(PACKAGE, library_versions()[PACKAGE])
            sys.exit()
        if word not in below:
            raise UserError("option-unknown", _unknown(commands, f"posters {name}".rstrip(), list(below), word, rest))
        name = f"{name} {word}".lstrip()
    return name, rest


def examples_text(examples: Sequence[str]) -> str:
    """Return the examples of a command as a paragraph of its help. Empty if there are none."""
    return "\n".join(["examples:", *(f"  posters {example}" for example in examples)]) if examples else ""


def _print_help(prog: str, command: Command, below: Mapping[str, Command]) -> NoReturn:
    width = max(map(len, below))
    listed = "\n".join(f"  {word:<{width}}  {known.help}" for word, known in below.items())
    paragraphs = [
        f"usage: {prog} COMMAND [OPTIONS]",
        command.description or command.help,
        examples_text(command.examples),
        f"commands:\n{listed}",
        f"`{prog} COMMAND --help` lists the options of a command.",
    ]
    print("\n\n".join(filter(None, paragraphs)))
    sys.exit()


def _unknown(commands: Mapping[str, Command], prog: str, below: Sequence[str], word: str, rest: Sequence[str]) -> str:
    """Return the message for an unknown command. It suggests a command, or else lists the commands."""
    if word.startswith("-"):
        return f"unknown option {printable_line(word)!r} before a command (see `{prog} --help`)"
    group = prog.partition(" ")[2]
    here = {name: f"{group} {name}".lstrip() for name in below}
    by_word = {known.rpartition(" ")[2]: known for known in commands}
    by_word |= {other: known for known, command in commands.items() for other in command.also} | here
    near = [word.lower()] if word.lower() in by_word else nearest(word, here) or nearest(word, by_word)
    meant = by_word[near[0]] if near else ""
    if meant and not commands[meant].options:  # a misspelt group: the next word names one of its commands
        inner = [known for known in commands if known.startswith(f"{meant} ")]
        meant = next((known for known in inner if rest and nearest(rest[0], [known.partition(" ")[2]])), meant)
    hint = f"did you mean `posters {meant}`?" if meant else f"the commands are {', '.join(below)}"
    return f"unknown command {printable_line(word)!r}; {hint} (see `{prog} --help`)"
