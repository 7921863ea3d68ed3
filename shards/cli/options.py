"""Build the command-line parser of a command from the dataclass of its options."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import jsonargparse

from shards.cli.commands import Command, HelpFormatter, examples_text
from shards.cli.log_options import LogOptions
from shards.errors import UserError, did_you_mean, one_line
from shards.options import Option
from shards.storage.kinds import OPTION_OF, kind_of
from shards.values import flag

log = logging.getLogger(__name__)

# The attribute docstrings of the dataclasses are the help texts.
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(frozen=True)
class Argument:
    """One field of an options dataclass."""

    name: str
    kind: Any
    """Type of the field, without None."""
    default: Any
    help: str
    declared: Option
    """The properties that the field declares with shards.options.option()."""

    @property
    def flags(self) -> list[str]:
        """Option strings like ``--out``. Messages show the last string. A positional argument has its field's name."""
        if self.declared.positional:
            return [self.name]
        flags = [*self.declared.flags]
        return flags if flags and flags[-1].startswith("--") else [*flags, flag(self.name)]

    @property
    def dest(self) -> str:
        """Name of the attribute that contains the value in the parsed namespace."""
        return self.flags[-1].lstrip("-").replace("-", "_")

    @property
    def is_group(self) -> bool:
        """Whether the type is a dataclass. The fields of that dataclass are then options of the command."""
        return dataclasses.is_dataclass(self.kind)

    def details(self) -> dict[str, Any]:
        """Return the keyword arguments of ``add_argument``."""
        declared, kind = self.declared, self.kind
        help = with_default(self.help, declared.text or self.default)
        if self.default is MISSING:
            help = f"{help.rstrip('.')} (required)".lstrip()
        if kind is bool and self.default is False:
            return {"action": "store_true", "help": help}
        if kind is bool:
            return {"action": argparse.BooleanOptionalAction, "default": self.default, "help": help}
        found: dict[str, Any] = {"help": help, "metavar": declared.metavar}
        if declared.parse is not None:
            kind = str
            found |= {"": {}, "words": {"nargs": "+"}, "times": {"action": "append"}}[declared.several]
        elif declared.choices or get_origin(kind) is Literal:
            found["choices"], kind = declared.choices or get_args(kind), str
        elif get_origin(kind) in (tuple, list):
            found["nargs"], kind = "*" if declared.positional else "+", get_args(kind)[0]
        elif declared.positional and self.default is not MISSING:
            found["nargs"] = "?"
        if declared.const is not None:
            found |= {"nargs": "?", "const": declared.const}
        if self.default is not MISSING:
            found["default"] = declared.text if declared.parse else self.default
        elif not declared.positional:
            found["required"] = True
        return found | {"type": kind}


def with_default(help: str, default: Any) -> str:
    """Return a help text for argparse that ends with the default. None, False and empty values are not shown.

    >>> with_default("Seed of the splits.", 0), with_default("Scale (default: from the data).", 1)
    ('Seed of the splits (default 0)', 'Scale (default: from the data).')
    """
    said = "(default" in help or "The default" in help
    if default not in (None, MISSING, "", {}, [], ()) and default is not False and not said:
        help = f"{help.rstrip('.')} (default {_shown(default)})"
    return help.replace("%", "%%")


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, (tuple, list)):
        return f"[{', '.join(map(_shown, default))}]"
    return json.dumps(default) if isinstance(default, dict) else str(default)


@cache
def arguments(options: type, only: tuple[str, ...] = ()) -> list[Argument]:
    """Return the fields of a dataclass as arguments. Required fields come first."""
    found = []
    hints = get_type_hints(options)
    fields = {field.name: field for field in dataclasses.fields(options) if not only or field.name in only}
    for klass in filter(dataclasses.is_dataclass, options.__mro__):
        docs = {doc.arg_name: doc.description or "" for doc in docstring_parser.parse_from_object(klass).params}
        for name in [name for name in vars(klass).get("__annotations__", ()) if name in fields]:
            field = fields.pop(name)
            default = field.default if field.default_factory is MISSING else field.default_factory()
            declared = field.metadata.get("option", Option())
            if declared.hidden:
                continue
            help = " ".join(docs.get(name, "").replace("``", "").split())
            found.append(Argument(name, _without_none(hints[name]), default, help, declared))
    return sorted(found, key=lambda argument: argument.default is not MISSING)


def _without_none(hint: Any) -> Any:
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if get_origin(hint) in (Union, types.UnionType) and len(kinds) == 1 else hint


class Parser(jsonargparse.ArgumentParser):
    """The parser of one command. It raises UserError with a message of one line."""

    def __init__(self, name: str, commands: Mapping[str, Command]) -> None:
        command = commands[name]
        about = command.description or f"{command.help[:1].upper()}{command.help[1:]}."
        super().__init__(
            prog=f"posters {name}",
            description="\n\n".join(filter(None, (about, examples_text(command.examples)))),
            exit_on_error=False,
            allow_abbrev=False,
            formatter_class=HelpFormatter,
        )
        self.commands = commands
        self.options = command.options_class
        self.has_sections = any(argument.declared.sections for argument in arguments(self.options))
        self.flags = ["-h", "--help", "--log", "--debug"]
        self.shown: dict[str, str] = {}  # Argument.dest -> option string in messages
        self.old: dict[str, str] = {}  # option string of an earlier version -> current one
        self._add(self.options)
        self.add_argument_group("options of every command", about_log_options())

    def _add(self, options: type, only: tuple[str, ...] = ()) -> None:
        for argument in arguments(options, only):
            declared, flags = argument.declared, argument.flags
            if declared.sections:
                self.add_argument("--config", action="config", help=argument.help)
                self.add_class_arguments(argument.kind, nested_key=None)
                self._describe_keys()
                self.old |= {f"--{old}": f"--{new}" for old, new in self.options.renamed.items()}
                for key, kind in self.options.old_keys.items():
                    self.add_argument(f"--{key}", type=kind, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
                for title, keys in self.options.registered().items():
                    self.add_argument_group(title, " ".join(f"{key}: {help}" for key, help in keys.items()))
                continue
            if declared.switch:
                self.flags.append(declared.switch)
                self.add_argument(declared.switch, action="store_true", help=argument.help)
            if argument.is_group:
                self._add(argument.kind, declared.only)
                continue
            self.flags += flags
            self.shown[argument.dest] = flags[-1]
            self.old |= dict.fromkeys(declared.old, flags[-1])
            if argument.kind is bool:
                self.old |= {old.replace("--", "--no-", 1): flags[-1].replace("--", "--no-", 1) for old in declared.old}
            details = argument.details()
            # A config file may set required options, so they may be missing on the command line.
            self.add_argument(*flags, **(details | {"required": False} if self.has_sections else details))

    def _describe_keys(self) -> None:
        """Complete the help of the keys of a configuration, and shorten the usage, which would list all keys."""
        for action in self._actions:
            section, dot, key = action.dest.partition(".")
            if dot:
                default = _shown(action.default) if isinstance(action.default, bool) else action.default
                action.help = with_default(action.help or "", default)
                action.metavar = None if action.choices else action.metavar or key.upper()
            elif action.dest == "print_config":
                action.metavar, action.help = "[FLAGS]", "Print the resulting configuration, and do not train."
            elif action.help == "Path to a configuration file.":
                action.help = f"YAML file with keys of the section {section}."
        required = [argument for argument in arguments(self.options) if argument.default is MISSING]
        needed = " ".join(f"{argument.flags[-1]} {argument.dest.upper()}" for argument in required)
        self.usage = f"%(prog)s [-h] {needed} [--config CONFIG] [--SECTION.KEY VALUE ...] [OPTIONS]"

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words of a command line. ``make`` then converts the values. Raises UserError."""
        if self.has_sections:
            words = self.options.checked_words(words)
        words = [self._renamed(word) for word in words]
        try:
            parsed = self.parse_args(words)
        except argparse.ArgumentError as error:
            raise self._explained(one_line(error)) from None
        if self.has_sections:
            self.options.as_today(parsed, words)
        return parsed

    def _renamed(self, word: str) -> str:
        """Replace an option's old name by the current name. Log the replacement."""
        name, given, value = word.partition("=")
        new = self.old.get(name, name)
        if new != name:
            log.info("%s is called %s in this version", name, new)
        return new + given + value

    def make(self, parsed: Any) -> Any:
        """Return an instance of the options dataclass from parsed values. Raises UserError for invalid values."""
        return self._made(self.options, self.instantiate(parsed) if self.has_sections else parsed)

    def _made(self, options: type, parsed: Any, only: tuple[str, ...] = ()) -> Any:
        values = {}
        for argument in arguments(options, only):
            declared = argument.declared
            if declared.sections:
                names = [section.name for section in dataclasses.fields(argument.kind)]
                value = argument.kind(**{name: getattr(parsed, name) for name in names})
            elif declared.switch and not getattr(parsed, declared.switch.lstrip("-").replace("-", "_")):
                value = None
            elif argument.is_group:
                value = self._made(argument.kind, parsed, declared.only)
            else:
                value = getattr(parsed, argument.dest)
                if argument.default is MISSING and (value is None or (declared.parse and not value)):
                    raise UserError("option-missing", f"{argument.flags[-1]} is missing; see `{self.prog} --help`")
                if declared.parse is not None:  # an unset shell variable gives an empty text: use the default
                    value = declared.parse(value) if value or (declared.text and value == "") else argument.default
            values[argument.name] = value
        return options(**values)

    def _explained(self, text: str) -> UserError:
        """Turn a message of jsonargparse or argparse into a UserError. If a name is unknown, suggest a similar name."""
        if (lone := re.search(r"unrecognized arguments: ([^\s-]\S*)", text)) and (line := self._lone(lone[1])):
            return UserError("option-unknown", line)
        for pattern in (
            r"unrecognized arguments: (\S+)",
            r"Option '([\w.\-]+)' is not accepted",
            r"Group '(?P<group>[\w.]+)' does not accept (?:nested )?(?:option|key) '(?P<key>[\w.]+)'",
        ):
            if found := re.search(pattern, text):
                parts = found.groupdict()
                name = f"{parts['group']}.{parts['key']}" if parts else found.group(1)
                return UserError("option-unknown", self._unknown(name))
        if found := re.search(r"Parser key \"([\w.]+)\": .*NestedArg\(key='([\w.:]+)'", text):
            key, _, name = found[2].partition(".")
            example = f"--{found[1]} '{{{key}: {{{name or 'NAME'}: VALUE}}}}'"
            return UserError("option-value", f"{found[1]}.{found[2]} needs a mapping of options; write {example}")
        key = r"Parser key \"([\w.]+)\": "
        text = re.sub(key, lambda found: f"{self.shown.get(found.group(1), found.group(1))}: ", text)
        text = re.sub(r"Expected a (?:<class '(\w+)'>|typing\.)", r"expected \1", text)
        text = re.sub(r"\. Got value:", ", got", text)
        if found := re.search(r"(?<=arguments are required: ).*", text):
            missing = (self.shown.get(key, key) for key in found.group().split(", "))
            text = text[: found.start()] + ", ".join(missing)
        text = text if self.has_sections else f"{text} (see `{self.prog} --help`)"
        return UserError("option-missing" if found else "option-value", text)

    def _lone(self, word: str) -> str:
        """Return the message about a word without an option. Empty if the command has no required option."""
        options, flags = arguments(self.options), [*self.flags, *(["--config"] if self.has_sections else [])]
        if several := [argument.name for argument in options if argument.details().get("nargs") == "*"]:
            return f"unknown argument {word}: give all {several[0]} in one place, before or after the options"
        if (meant := OPTION_OF.get(kind_of(Path(word)) or "")) in flags:
            return f"unknown argument {word}: write {meant} {word}"
        needed = [argument.flags[-1] for argument in options if argument.default is MISSING]
        shown = " ".join(f"{flag} {flag.lstrip('-').upper()}" for flag in needed if flag.startswith("--"))
        return shown and f"unknown argument {word}: each value follows its option, as in {shown}"

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        if self.has_sections:
            known = [self.shown.get(key, key).removeprefix("--") for key, _ in self.get_defaults().items()]
            known += [key for keys in self.options.registered().values() for key in keys]
            key = name.removeprefix("--")
            last = {name.rpartition(".")[2]: name for name in known}
            near = self.options.meant(key, known) or did_you_mean(key, known)
            hint = near or did_you_mean(key.rpartition(".")[2], last, last.__getitem__)
            return f"unknown key {key!r}{hint or '; see --help'}"
        others = {flag for name in self.commands if name != "train" for flag in _flags(self.commands[name])}
        hint = ": only other commands have this argument"
        if name not in others:
            own = did_you_mean(name, [*self.flags, *self.old], lambda flag: self.old.get(flag, flag))
            hint = own or did_you_mean(name, others, str)
        return f"unknown argument {word}{hint} (see `{self.prog} --help`)"


def about_log_options() -> str:
    """Return the help of the options of every command. log_options.py removes them from the command line."""
    parts = []
    for argument in arguments(LogOptions):
        values = f" {'|'.join(get_args(argument.kind))}" if get_origin(argument.kind) is Literal else ""
        parts.append(f"{argument.flags[-1]}{values}: {argument.help}")
    return " ".join(parts)


def _flags(command: Command) -> Iterator[str]:
    groups: list[tuple[type, tuple[str, ...]]] = [(command.options_class, ())] if command.options else []
    for options, only in groups:
        for argument in arguments(options, only):
            yield from (argument.declared.switch,) if argument.declared.switch else ()
            if argument.is_group:
                groups.append((argument.kind, argument.declared.only))
            elif not argument.declared.positional:
                yield from (*argument.flags, *argument.declared.old)
