"""Make the options of a command from Python keywords: ``build_shards(out="SHARDS", seed=1)``.

A keyword is the name of an option without its dashes: ``cache_limit`` for ``--cache-limit``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar, get_origin

import msgspec

from shards.cli.options import Argument, arguments
from shards.errors import UserError, did_you_mean, one_line
from shards.storage.paths import is_path

Options = TypeVar("Options")


def options_of(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """Return an instance of an options dataclass. ``given`` maps keywords to values, as Python objects or as text.

    Raises UserError for an unknown keyword, a missing option, or a value that the option does not allow.
    """
    known = list(keywords_of(kind))
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) or f"; the arguments are {', '.join(known)}"
            raise UserError("option-unknown", f"unknown argument {name!r}{hint}")
    with in_python(kind):
        made: Options = _made(kind, given, ())
    return made


@contextlib.contextmanager
def in_python(kind: type) -> Iterator[None]:
    """Write the options of ``kind`` as keywords in the message of a UserError: ``resume=True`` for ``--resume``.

    Commands in backticks stay unchanged.
    """
    try:
        yield
    except UserError as error:
        words = dict(_words(kind))
        parts = str(error).split("`")
        parts[::2] = [_OPTION.sub(lambda found: words.get(found[0], found[1] or found[0]), part) for part in parts[::2]]
        error.args = ("`".join(parts),)
        raise


#: An option of the command line. The group is the key of a configuration.
_OPTION = re.compile(r"(?<![\w-])--(?:([a-z_]+(?:\.\w+)+)|[a-z][\w-]*)")


def _words(kind: type, only: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield pairs of an option and its form in Python."""
    for argument in arguments(kind, only):
        if argument.declared.switch:
            yield argument.declared.switch, f"{_keyword(argument.declared.switch)}=True"
        if argument.is_group and not argument.declared.sections:
            yield from _words(argument.kind, argument.declared.only)
        elif argument.kind is bool:
            yield argument.flags[-1], f"{argument.dest}=True"
            yield argument.flags[-1].replace("--", "--no-"), f"{argument.dest}=False"
        else:
            yield argument.flags[-1], argument.dest


def keywords_of(kind: type, only: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the keywords of an options dataclass."""
    for argument in arguments(kind, only):
        if argument.declared.switch:
            yield _keyword(argument.declared.switch)
        if argument.is_group and not argument.declared.sections:
            yield from keywords_of(argument.kind, argument.declared.only)
        else:
            yield argument.dest


def _keyword(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _made(kind: type, given: Mapping[str, Any], only: tuple[str, ...]) -> Any:
    values: dict[str, Any] = {}
    for argument in arguments(kind, only):
        declared = argument.declared
        if declared.switch and not given.get(_keyword(declared.switch)):
            values[argument.name] = None
        elif argument.is_group and not declared.sections:
            values[argument.name] = _made(argument.kind, given, declared.only)
        elif argument.dest in given:
            values[argument.name] = _converted(argument, given[argument.dest])
        elif argument.default is MISSING:
            raise UserError("option-missing", f"the argument {argument.dest} is missing")
    return kind(**values)


def _converted(argument: Argument, value: Any) -> Any:
    """Return a value in the type of its field. A text is read as on the command line."""
    declared, kind = argument.declared, argument.kind
    if value is None and argument.default is not MISSING:
        return argument.default
    if declared.sections or (kind is Path and isinstance(value, os.PathLike)):
        return value
    if declared.parse is not None:
        if kind is Path and not is_path(value):
            raise UserError("option-value", f"{argument.dest} must be a path, not {type(value).__name__}")
        if kind is Path and value == "":  # Path("") would be the current folder
            raise UserError("option-value", f"{argument.dest} must be a path, not an empty text")
        if isinstance(value, Mapping) and get_origin(kind) in (dict, Mapping):  # on the command line: NAME=VALUE
            return dict(value)
        if declared.several:
            return declared.parse([str(one) for one in (value if isinstance(value, (list, tuple)) else [value])])
        listed = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        return declared.parse(listed)
    if declared.choices and value not in declared.choices:
        raise UserError("option-value", f"{argument.dest} must be one of {', '.join(declared.choices)}, not {value!r}")
    try:
        return msgspec.convert(getattr(value, "item", lambda: value)(), kind, dec_hook=_path)
    except (msgspec.ValidationError, ValueError) as error:
        raise UserError("option-value", f"{argument.dest}: {one_line(error)}") from None


def _path(kind: Any, value: Any) -> Any:
    """Return a path. msgspec calls this function for types that it does not support."""
    if kind is not Path or not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"expected {kind.__name__}, not {type(value).__name__}")
    return Path(value)
