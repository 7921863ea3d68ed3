"""Commands are chosen by name. Help and version end with 0, and a wrong name gets the right one in one line."""

from __future__ import annotations

import pytest
from failing import fails

from shards.cli.commands import Command, choose

TOP = Command("All of it.", examples=("pack build x", "predict y"))
COMMANDS = {
    "predict": Command("name genres", "m:A", "m:f", also=("infer", "inference")),
    "pack": Command("more", examples=("pack build x",), also=("data",)),
    "pack build": Command("do it", "m:B", "m:g", also=("make",)),
    "pack show": Command("show it", "m:C", "m:h"),
}


@pytest.mark.parametrize(
    ("line", "name", "rest"),
    [("predict a -b", "predict", ["a", "-b"]), ("pack build predict", "pack build", ["predict"])],
)
def test_a_command_and_its_words(line: str, name: str, rest: list[str]):
    assert choose(COMMANDS, line.split(), TOP) == (name, rest)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "",
            ["usage: posters COMMAND", "All of it.", "  posters pack build x\n  posters predict y", "  pack     more"],
        ),
        ("-h", ["All of it."]),
        ("--help", ["All of it."]),
        ("pack", ["usage: posters pack COMMAND", "more", "  posters pack build x", "  show   show it"]),
        ("pack --help", ["usage: posters pack COMMAND"]),
        ("--version", ["poster-toolkit "]),
        ("-V", ["poster-toolkit "]),
    ],
)
def test_help_and_version_end_with_0(line: str, shown: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        choose(COMMANDS, line.split(), TOP)
    out = capsys.readouterr().out
    assert not ended.value.code and all(text in out for text in shown), out


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("predcit x", "did you mean `posters predict`? (see `posters --help`)"),
        ("Predict x", "did you mean `posters predict`?"),
        ("infer x", "did you mean `posters predict`?"),
        ("inferense x", "did you mean `posters predict`?"),
        ("build x", "did you mean `posters pack build`?"),
        ("make x", "did you mean `posters pack build`?"),
        ("pakc build x", "did you mean `posters pack build`?"),
        ("pakc biuld x", "did you mean `posters pack build`?"),
        ("pakc", "did you mean `posters pack`?"),
        ("data", "did you mean `posters pack`?"),
        ("pack biuld x", "did you mean `posters pack build`? (see `posters pack --help`)"),
        ("pack infer x", "did you mean `posters predict`?"),
        ("xyzzy", "the commands are predict, pack (see `posters --help`)"),
        ("pack xyzzy", "the commands are build, show (see `posters pack --help`)"),
        ("pack --version", "unknown option '--version' before a command"),
        ("a\x1b[2J\nb", "the commands are"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_right_one(line: str, hint: str):
    with fails("option-unknown", hint) as caught:
        choose(COMMANDS, line.split(" "), TOP)
    assert "\x1b" not in str(caught.value)
