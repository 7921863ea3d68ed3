"""Command line and YAML → Config. jsonargparse does the parsing; we fold its errors into one line."""

from __future__ import annotations

import dataclasses
import re
from argparse import SUPPRESS, ArgumentError
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser, set_parsing_settings

from shards.cli.arguments import CACHE_OPTIONS, add_cache_options, cache_options
from shards.errors import UserError, one_line
from shards.storage.paths import Place, place
from toolkit.config.files import FLAT_LOSS_OPTIONS, as_today, check_file, check_text
from toolkit.config.losses import LOSSES
from toolkit.config.schema import Config
from toolkit.config.validation import check_config

if TYPE_CHECKING:
    from shards.dataset.cache_options import CacheOptions

# Attribute docstrings of the dataclasses become the help texts.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


def config_keys() -> list[str]:
    """Every dotted key, e.g. ``optim.lr``."""
    return [
        f"{s.name}.{f.name}" for s in dataclasses.fields(Config) for f in dataclasses.fields(_section(s.name))
    ]


def _section(name: str) -> Any:
    return getattr(Config(), name)


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """What ``posters train`` was told."""

    config: Config
    shards: Place
    cache: CacheOptions
    out: Path
    resume: bool
    find_lr: bool


def train_parser() -> ArgumentParser:
    """The parser of ``posters train``: run folders and every field of Config."""
    parser = ArgumentParser(
        prog="posters train",
        description="Train a multi-label classifier. Under `accelerate launch launch/train.py` on every process.",
        exit_on_error=False,
    )
    parser.add_argument(
        "--config", action="config", help="YAML file with any of the keys below; later options win"
    )
    parser.add_argument(
        "--shards", type=str, help="shard set made by `posters shards build`: a folder or URL"
    )
    add_cache_options(parser)
    parser.add_argument("--out", type=str, help="run folder to write")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the newest valid checkpoint in --out"
    )
    parser.add_argument(
        "--find-lr",
        action="store_true",
        help="do not train: try rising learning rates, leave the curve and a suggestion in --out",
    )
    parser.add_class_arguments(Config, nested_key=None)
    for name in FLAT_LOSS_OPTIONS:
        parser.add_argument(f"--loss.{name}", type=float, default=SUPPRESS, help=SUPPRESS)
    for name, loss in LOSSES.items():
        about = parse_from_object(loss.options)
        options = (f"{option.arg_name} ({option.default}): {option.description}" for option in about.params)
        parser.add_argument_group(
            f"--loss.options of --loss.name {name}", " ".join([f"{about.short_description}", *options])
        )
    return parser


def parse_train(argv: Sequence[str]) -> TrainCommand:
    """The command's options. Raises UserError naming a wrong key and the nearest valid one."""
    parser = train_parser()
    _check_files(argv)
    try:
        parsed = parser.parse_args(list(argv))
        as_today(parsed)
        made = parser.instantiate(parsed)
    except ArgumentError as error:
        known = [
            *config_keys(),
            *(f"loss.options.{name}" for loss in LOSSES.values() for name in vars(loss.options())),
            "config",
            "shards",
            "out",
            "resume",
            "find-lr",
            *(name[2:] for name, _, _ in CACHE_OPTIONS),
        ]
        raise UserError(explain(str(error), known)) from None
    config = Config(**{section.name: getattr(made, section.name) for section in dataclasses.fields(Config)})
    check_config(config)
    for name in ("shards", "out"):
        if not getattr(made, name):
            raise UserError(f"--{name} is missing; see `posters train --help`")
    if made.resume and made.find_lr:
        raise UserError("--find-lr starts from the first weights: it cannot --resume a run")
    return TrainCommand(
        config, place(made.shards), cache_options(made), Path(made.out), bool(made.resume), bool(made.find_lr)
    )


def _check_files(argv: Sequence[str]) -> None:
    """Raise UserError for a file of options, or a whole section on the command line, that cannot be meant so."""
    sections = {section.name for section in dataclasses.fields(Config)}
    for option, following in zip(argv, [*argv[1:], ""], strict=True):
        name, given, value = option.partition("=")
        value = value if given else following
        if "--config".startswith(name) and len(name) > len("--c"):  # argparse takes beginnings of names
            check_file(Path(value), sections)
        elif name.removeprefix("--") in sections and name.startswith("--"):
            path = Path(value)
            if value.lstrip().startswith("{"):
                check_text(value, name)
            elif path.is_file():
                check_file(path, set())


def explain(message: str, known: Sequence[str]) -> str:
    """jsonargparse's or argparse's message in one line, with the nearest valid name for an unknown one."""
    text = one_line(message)
    for pattern in (
        r"unrecognized arguments: --([\w.\-]+)",
        r"Option '([\w.\-]+)' is not accepted",
        r"Group '(?P<group>[\w.]+)' does not accept (?:nested )?(?:option|key) '(?P<key>[\w.]+)'",
    ):
        if found := re.search(pattern, text):
            parts = found.groupdict()
            key = f"{parts['group']}.{parts['key']}" if parts else found.group(1)
            near = nearest(key, known)
            return f"unknown key {key!r}" + (f"; did you mean {near!r}?" if near else "; see --help")
    text = re.sub(r"Parser key \"([\w.]+)\": ", r"\1: ", text)
    text = re.sub(r"Expected a (?:<class '(\w+)'>|typing\.)", lambda m: f"expected {m.group(1) or ''}", text)
    return text.replace("Got value:", "got")


def nearest(key: str, known: Sequence[str]) -> str:
    """The valid key most like ``key``: by its whole name, else by its last part; empty if none is near."""
    if near := get_close_matches(key, known, n=1, cutoff=0.6):
        return near[0]
    last = {name.rpartition(".")[2]: name for name in known}
    near = get_close_matches(key.rpartition(".")[2], last, n=1, cutoff=0.6)
    return last[near[0]] if near else ""
