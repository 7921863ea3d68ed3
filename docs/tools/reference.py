"""Write the generated pages of docs/reference: `python docs/tools/reference.py`.

command-line.md comes from the parsers of the commands, configuration.md from the dataclasses of
toolkit/config/schema.py, and python.md from signatures and docstrings. `--check` writes nothing and fails if a page is
out of date.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse_from_object
from plain_markdown import plain
from python_page import python

from shards.cli.log_options import LogOptions
from shards.cli.options import Argument, Parser, arguments
from shards.values import rules_of
from toolkit.cli.commands import COMMANDS
from toolkit.config.loss_registry import LOSSES
from toolkit.config.schema import Config
from toolkit.config.tracker_registry import TRACKERS

FOLDER = Path(__file__).resolve().parents[1] / "reference"
#: The command that also reads the keys of a configuration.
CONFIGURED = "train"
#: End of the help of a required option.
MARK = " (required)"
WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}

COMMAND_LINE = """# Command line

This page lists every command and every option. `posters COMMAND --help` prints the same text.

_This page is generated. To change it, edit the options of a command and run `python docs/tools/reference.py`._

```
posters COMMAND [OPTIONS]
```

{table}
Write the name of an option in full. `--option VALUE` and
`--option=VALUE` mean the same. Every command also has these options:

{every}"""
KEYS = """Every key of the [configuration](configuration.md) is also an option, such as `--optim.lr 0.001`.
`--print_config` prints the resulting configuration and does not train.
"""
CONFIGURATION = """# Configuration

This page lists every key of a training's configuration, its default, its values and its meaning.

_This page is generated. To change it, edit `toolkit/config/schema.py` and run `python docs/tools/reference.py`._

```
posters train --config best --optim.lr 0.001 --shards SHARDS --out RUN
```

In a YAML file, write a key below its section. On the command line, write its dotted name. If a key is given more than
once, the last value is used. `--print_config` prints the resulting configuration, and the run writes it to
`RUN/config.yaml`. The defaults are the reference recipe, which [Recipes](../results/recipes.md) compares with others.

Sections: {sections}.
"""


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    head = list(header)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines) + "\n"


# command-line.md


def command_line() -> str:
    """Return the page of all commands and their options."""
    names = [name for name in COMMANDS if COMMANDS[name].options]
    listed = ((f"[`posters {name}`](#{_anchor(name)})", _sentence(COMMANDS[name].help)) for name in names)
    every = table(["option", "value", "meaning"], map(_log_option, arguments(LogOptions)))
    page = COMMAND_LINE.format(table=table(["command", "what it does"], listed), every=every)
    return "\n".join([page, *(_command(name) for name in names)])


def _anchor(name: str) -> str:
    return f"posters-{name}".replace(" ", "-")


def _sentence(text: str) -> str:
    text = plain(text)
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _command(name: str) -> str:
    command = COMMANDS[name]
    required = {
        field.name
        for field in dataclasses.fields(command.options_class)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    examples = "\n".join(f"posters {example}" for example in command.examples)
    parts = [f"## posters {name}\n", f"{_sentence(command.description or command.help)}\n", f"```\n{examples}\n```\n"]
    rows = [_option(action, action.dest in required) for action in _actions(name)]
    parts.append(table(["option", "value", "meaning"], rows) if rows else "It has no options.\n")
    if name == CONFIGURED:
        parts.append(KEYS)
    return "\n".join(parts)


def _actions(name: str) -> Iterator[Any]:
    """Return the arguments that the help of a command shows, without the keys of a configuration."""
    sections = {section.name for section in dataclasses.fields(Config)} if name == CONFIGURED else set()
    for action in Parser(name, COMMANDS)._actions:
        hidden = action.help == argparse.SUPPRESS or action.dest in ("help", "print_config")
        if not hidden and action.dest.partition(".")[0] not in sections:
            yield action


def _option(action: Any, required: bool) -> tuple[str, str, str]:
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.dest.upper()}`"
    help = (action.help or "").replace("%%", "%")
    meaning = plain(f"{help.removesuffix(MARK)}." if help.endswith(MARK) else help)
    return flags, _value(action), f"**Required.** {meaning}" if required else meaning


def _log_option(argument: Argument) -> tuple[str, str, str]:
    values = get_args(argument.kind) if get_origin(argument.kind) is Literal else ()
    return f"`{argument.flags[-1]}`", ", ".join(f"`{value}`" for value in values), plain(argument.help)


def _value(action: Any) -> str:
    if action.nargs == 0:
        return ""
    if action.choices:
        return ", ".join(f"`{choice}`" for choice in action.choices)
    kind = getattr(action, "_typehint", str)
    word = action.metavar if isinstance(action.metavar, str) else WORDS.get(_without_none(kind), "text")
    return f"{plain(word)} …" if action.nargs == "+" else plain(word)


def _without_none(kind: Any) -> Any:
    """Return the type of an optional value, or the type of the items of a list."""
    while get_origin(kind) is not None and get_origin(kind) is not Literal:
        kinds = [part for part in get_args(kind) if part is not type(None)]
        kind = kinds[0]
    return kind


# configuration.md


def configuration() -> str:
    """Return the page of all keys of a configuration."""
    sections = dataclasses.fields(Config)
    hints = get_type_hints(Config)
    listed = ", ".join(f"[`{section.name}`](#{section.name})" for section in sections)
    page = [CONFIGURATION.format(sections=listed)]
    page += [_section(section.name, hints[section.name]) for section in sections]
    registries: list[tuple[str, str, Mapping[str, Any]]]
    registries = [("Loss", "loss.options", LOSSES), ("Tracker", "train.trackers.{}", TRACKERS)]
    for kind, key, registry in registries:
        for name, entry in ((name, entry) for name, entry in registry.items() if entry.options):
            docs = parse_from_object(entry.options).params
            rows = [
                (f"`{key.format(name)}.{doc.arg_name}`", f"`{doc.default}`", plain(doc.description or ""))
                for doc in docs
            ]
            if rows:
                page.append(f"### {kind} {name}\n\n{table(['key', 'default', 'meaning'], rows)}")
    return "\n".join(page)


def _section(name: str, kind: type) -> str:
    docs = {doc.arg_name: doc.description or "" for doc in parse_from_object(kind).params}
    hints = get_type_hints(kind)
    about = inspect.cleandoc(inspect.getdoc(kind) or "").split("\n\n")
    rows = []
    for field in dataclasses.fields(kind):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        rules = ", ".join(rule.wanted for rule in rules_of(kind)[field.name])
        values = _values(hints[field.name], rules)
        rows.append((f"`{name}.{field.name}`", f"`{_yaml(default)}`", values, plain(docs.get(field.name, ""))))
    text = "\n\n".join(plain(part) for part in about)
    return f"## {name}\n\n{text}\n\n{table(['key', 'default', 'values', 'meaning'], rows)}"


def _values(hint: Any, rules: str) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) is dict or any(get_origin(part) is dict for part in get_args(hint)):
        return "a mapping"
    return plain(rules or WORDS.get(_without_none(hint), "text"))


def _yaml(value: Any) -> str:
    listed = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(listed, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


# python.md


PAGES = {"command-line.md": command_line, "configuration.md": configuration, "python.md": python}


def outdated() -> list[str]:
    """Return the names of the pages that are out of date."""
    return [
        name
        for name, make in PAGES.items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text(encoding="utf-8") != make()
    ]


def main() -> int:
    """Write the pages, or with --check compare them. Return the exit status."""
    parser = argparse.ArgumentParser(description="Write the generated pages of docs/reference.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    if parser.parse_args().check:
        found = outdated()
        print("\n".join(f"{name} is out of date: run python docs/tools/reference.py" for name in found) or "up to date")
        return 1 if found else 0
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
        print(FOLDER / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
