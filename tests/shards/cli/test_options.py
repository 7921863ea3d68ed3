"""Fields of a dataclass are the options of a command: names, values, help, and what is said of mistakes."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from failing import fails

from shards.cli.commands import Command, choose
from shards.cli.options import Parser
from shards.errors import Code
from shards.options import option


def parse_pair(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


@dataclass(frozen=True)
class Part:
    side: int = 8
    """Pixels."""
    secret: int = option(1, hidden=True)
    left: str = option("x", "--left-out")


@dataclass(frozen=True, kw_only=True)
class Common:
    threads: int = option(0, old=("--workers",))
    """Threads, 100% of them."""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """A command's."""

    folder: Path = option(MISSING, positional=True)
    model: Path = option(MISSING, "-m")
    """Model folder."""
    pair: tuple[int, ...] = option((1, 2), parse=parse_pair, text="1,2")
    """Two numbers."""
    kind: Literal["a", "b"] = "a"
    named: str = option("one", choices=("one", "two"))
    paths: list[Path] | None = None
    part: Part = option(factory=Part, only=("side",))
    more: Part | None = option(None, switch="--with-more", only=("left",))
    share: float | None = None
    flag: bool = option(False, "-f")
    text: bool | None = None
    file: str | None = option(None, const="")
    folders: Path = option(Path("here"), parse=Path)


@dataclass(frozen=True)
class Others:
    elsewhere: int = 0
    part: Part = field(default_factory=Part)


COMMANDS = {
    "one": Command("do it", f"{__name__}:Options"),
    "group": Command("more"),
    "group two": Command("do another", f"{__name__}:Others"),
}


def read(line: str) -> Any:
    name, words = choose(COMMANDS, line.split(), "All of it.")
    parser = Parser(name, COMMANDS)
    return parser.make(parser.parse(words))


def test_defaults_are_the_fields_own():
    assert read("one F -m M") == Options(folder=Path("F"), model=Path("M"))
    assert read("group two") == Others()


def test_values_of_every_kind():
    found = read(
        "one F --model=M --pair 3,4 --kind b --named two --paths p q --side 9 --with-more --left-out y --share 1 -f "
        "--no-text --file --threads 2"
    )
    assert found == Options(
        folder=Path("F"), model=Path("M"), pair=(3, 4), kind="b", named="two", paths=[Path("p"), Path("q")],
        part=Part(9), more=Part(left="y"), share=1.0, flag=True, text=False, file="", threads=2,
    )  # fmt: skip


@pytest.mark.parametrize("old", ["--workers 3", "--workers=3", "--work 3", "--thr 3", "--threads=3"])
def test_old_names_and_beginnings_of_names_are_read(old: str):
    assert read(f"one F -m M {old}").threads == 3


def test_an_empty_text_is_a_value_only_where_a_text_is_the_default():
    assert read("one F -m M --folders=") == read("one F -m M")
    with pytest.raises(ValueError):
        read("one F -m M --pair=")


def test_texts_stay_as_they_are_typed():
    for text in ("null", "[x]", "{a:1}", "1e3", "@x", "a:b"):
        assert read(f"one {text} -m M --file={text}").file == text


def test_help_says_names_defaults_and_docstrings():
    text = Parser("one", COMMANDS).format_help()
    assert text.startswith("usage: posters one ") and "Threads, 100% of them" in text
    assert "Two numbers (default 1,2)" in text and "--model MODEL" in text and "{a,b}" in text
    assert "--workers" not in text and "secret" not in text


MISTAKES: dict[Code, list[tuple[str, str]]] = {
    "option-missing": [
        ("one F", "the following arguments are required: --model (see `posters one --help`)"),
        ("group", "a command is missing: posters group two (see `posters group --help`)"),
    ],
    "option-unknown": [
        ("one F -m M --modle x", "unknown argument --modle; did you mean --model? (see `posters one --help`)"),
        ("one F -m M --sied=3", "unknown argument --sied=3; did you mean --side? (see `posters one --help`)"),
        ("one F -m M --elsewhere 3", "unknown argument --elsewhere: only other commands have this argument"),
        ("one F -m M --secret 3", "unknown argument --secret"),
        ("one F -m M stray", "unknown argument stray"),
        ("oen F", "unknown command 'oen'; did you mean 'one'?: posters one|group (see `posters --help`)"),
    ],
    "option-value": [
        ("one F -m M --side many", "--side: expected int, got many"),
        ("one F -m M --kind c", "argument --kind: invalid choice: 'c' (choose from 'a', 'b')"),
        ("one F -m M --share", "argument --share: expected one argument"),
    ],
}


@pytest.mark.parametrize(("code", "line", "message"), [(code, *each) for code in MISTAKES for each in MISTAKES[code]])
def test_mistakes_are_one_line(code: Code, line: str, message: str):
    with fails(code) as caught:
        read(line)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("line", "shown"), [("--help", "  group      more"), ("group -h", "  two        do another")])
def test_commands_are_listed(line: str, shown: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        read(line)
    assert not ended.value.code and shown in capsys.readouterr().out
