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
    words: tuple[str, ...] = option((), "-w", several="words", parse=tuple)
    times: tuple[str, ...] | None = option(None, "-t", several="times", parse=tuple)


@dataclass(frozen=True)
class Others:
    elsewhere: int = 0
    part: Part = field(default_factory=Part)


@dataclass(frozen=True)
class Many:
    words: list[str] = option(factory=list, positional=True)
    part: Part = field(default_factory=Part)


COMMANDS = {
    "one": Command("do it", f"{__name__}:Options"),
    "many": Command("take words", f"{__name__}:Many"),
    "group": Command("more"),
    "group two": Command("do another", f"{__name__}:Others"),
}


def read(line: str) -> Any:
    name, words = choose(COMMANDS, line.split(), Command("All of it."))
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


@pytest.mark.parametrize("old", ["--workers 3", "--workers=3", "--threads=3"])
def test_old_names_are_read(old: str):
    assert read(f"one F -m M {old}").threads == 3


def test_an_empty_text_is_a_value_only_where_a_text_is_the_default():
    assert read("one F -m M --folders=") == read("one F -m M")
    with pytest.raises(ValueError):
        read("one F -m M --pair=")


def test_several_values_are_given_as_words_or_by_several_options():
    found = read("one F -m M -w a null [x] -t 1e3 --times=a=b -t [x]")
    assert found.words == ("a", "null", "[x]") and found.times == ("1e3", "a=b", "[x]")
    assert read("one -m M -t a F").folder == Path("F")  # one value each, so that an argument can follow
    assert read("one F -m M").words == () and read("one F -m M").times is None


def test_texts_stay_as_they_are_typed():
    for text in ("null", "[x]", "{a:1}", "1e3", "@x", "a:b"):
        assert read(f"one {text} -m M --file={text}").file == text


def test_help_says_names_defaults_and_docstrings():
    text = Parser("one", COMMANDS).format_help()
    assert text.startswith("usage: posters one ") and "Threads, 100% of them" in text
    assert "Two numbers (default 1,2)" in text and "--model MODEL" in text and "{a,b}" in text
    assert "Model folder (required)" in text and "(default [])" not in text
    assert "--workers" not in text and "secret" not in text


MISTAKES: dict[Code, list[tuple[str, str]]] = {
    "option-missing": [("one F", "the following arguments are required: --model (see `posters one --help`)")],
    "option-unknown": [
        ("one F -m M --modle x", "unknown argument --modle; did you mean --model? (see `posters one --help`)"),
        ("one F -m M --sied=3", "unknown argument --sied=3; did you mean --side? (see `posters one --help`)"),
        ("one F -m M --thr 3", "unknown argument --thr; did you mean --threads? (see `posters one --help`)"),
        ("one F -m M --worker=3", "unknown argument --worker=3; did you mean --threads? (see `posters one --help`)"),
        ("one F -m M --elsewhere 3", "unknown argument --elsewhere: only other commands have this argument"),
        ("one F -m M --secret 3", "unknown argument --secret"),
        ("one F -m M stray", "unknown argument stray: each value follows its option, as in --model MODEL"),
        ("many F --side 1 G", "unknown argument G: give all words in one place, before or after the options"),
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


def test_positional_words_may_be_missing_or_many():
    assert read("many") == Many() and read("many F G --side 3") == Many(words=["F", "G"], part=Part(3))
