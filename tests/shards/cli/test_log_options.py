"""--log and --debug: anywhere on the command line of any command."""

from __future__ import annotations

import json

import pytest
from failing import fails
from toolkit_helpers import posters_command

from shards.cli.log_options import LogOptions, split_options
from shards.cli.options import Parser
from toolkit.cli.commands import COMMANDS


@pytest.mark.parametrize(
    ("words", "options", "rest"),
    [
        ("train --out R", LogOptions(), "train --out R"),
        ("--log json train --out R", LogOptions("json"), "train --out R"),
        ("train --log=quiet --out R --debug", LogOptions("quiet", True), "train --out R"),
        ("predict -- --debug --log", LogOptions(), "predict -- --debug --log"),
    ],
)
def test_they_are_taken_out(words: str, options: LogOptions, rest: str):
    assert split_options(words.split()) == (options, rest.split())


@pytest.mark.parametrize("words", [["--log"], ["--log", "jsn"], ["--log="]])
def test_another_form_is_refused(words: list[str]):
    with fails("option-value", "--log", "text, json or quiet"):
        split_options(["train", *words])


def test_each_help_has_them():
    for name in ("fetch", "train", "shards info"):
        said = " ".join(Parser(name, COMMANDS).format_help().split())
        assert "--log text|json|quiet: " in said and "--debug: " in said


def test_an_error_of_any_command_is_json():
    done = posters_command("shards", "info", "none", "--log=json")
    (line,) = map(json.loads, done.stderr.splitlines())
    assert done.returncode == line["status"] == 2 and line["code"] == "set-missing" and "none" in line["message"]


def test_debug_keeps_the_traceback():
    done = posters_command("shards", "info", "none", "--debug")
    assert done.returncode == 2 and done.stderr.startswith("Traceback")
    assert " ERROR [rank 0] error: " in done.stderr.splitlines()[-1]
