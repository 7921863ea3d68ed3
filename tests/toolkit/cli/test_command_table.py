"""Every command: its examples work with its parser, and --help shows required options and defaults."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from shards.cli.commands import choose
from shards.cli.options import Parser
from shards.errors import UserError
from toolkit.cli.commands import COMMANDS, POSTERS

TABLE = {"": POSTERS, **COMMANDS}
#: Defaults that need no mention: a switch is off, a list or a text is empty.
NONE = (None, False, "", argparse.SUPPRESS)


@pytest.mark.parametrize("name", TABLE)
def test_every_command_has_examples_that_parse_and_help_that_is_complete(name: str, capsys: pytest.CaptureFixture[str]):
    assert TABLE[name].examples
    for example in TABLE[name].examples:
        chosen, words = choose(COMMANDS, shlex.split(example), POSTERS)
        assert chosen.startswith(name)
        words = [word.replace("my.yaml", "best") for word in words]
        if "--print_config" in words:
            with pytest.raises(SystemExit) as ended:
                Parser(chosen, COMMANDS).parse(words)
            assert not ended.value.code and "batch_size" in capsys.readouterr().out
        elif chosen == "audit":  # which looks for its folders at once
            Parser(chosen, COMMANDS).parse(words)
        else:
            parser = Parser(chosen, COMMANDS)
            parser.make(parser.parse(words))
    if not TABLE[name].options:
        return
    parser = Parser(name, COMMANDS)
    text = " ".join(parser.format_help().split())
    assert text.index("examples:") < text.index("options:") and all(
        f"posters {e}" in text for e in TABLE[name].examples
    )
    usage = text[: text.index("examples:")]
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or action.dest in ("help", "print_config"):
            continue
        help = action.help or ""
        if action.required:
            assert help.endswith("(required)") and f"[{action.option_strings[-1:]}" not in usage, action.dest
        elif action.nargs != 0 and action.default not in NONE and action.default not in ([], (), {}):
            assert re.search(r"\(default|The default|default 0", help), action.dest


def test_the_first_help_has_the_path_of_a_new_user():
    assert [example.split()[0] for example in POSTERS.examples] == ["shards", "train", "evaluate", "predict", "app"]


def test_options_of_train_that_a_file_may_set_are_marked_as_required():
    text = Parser("train", COMMANDS).format_help()
    assert text.startswith("usage: posters train [-h] --out OUT --shards SHARDS [--config CONFIG]")
    assert text.count("(required)") == 2 and len(text[: text.index("examples:")].splitlines()) < 10


def test_other_words_of_a_command_are_the_name_of_none():
    words = [word for command in COMMANDS.values() for word in command.also]
    assert len(set(words)) == len(words) and not set(words) & set(COMMANDS)
    for word in words:
        with pytest.raises(UserError, match="did you mean"):
            choose(COMMANDS, [word], POSTERS)
