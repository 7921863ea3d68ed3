"""Options of a command from keywords of Python: names, types, texts, and what is said of mistakes."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from failing import fails

from shards.build.run import BuildOptions
from shards.cli.keywords import in_python, keywords_of, options_of
from shards.errors import Code, UserError
from shards.inputs.images import ImageOptions
from shards.options import option
from shards.values import Checked, Count


def parse_pair(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise UserError("option-value", f"--pair takes two numbers, not {text}") from None


@dataclass(frozen=True)
class Part:
    folder: Path | None = option(None, "--part-folder")
    limit: int = 3


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    out: Path = option(MISSING, "-o")
    files: list[Path] | None = None
    kind: Literal["a", "b"] = "a"
    color: str = option("red", choices=("red", "blue"))
    pair: tuple[int, ...] = option((1, 2), parse=parse_pair, text="1,2")
    count: Count = 1
    share: float = 0.5
    flag: bool | None = None
    part: Part = field(default_factory=Part)
    extra: Part | None = option(None, switch="--with-extra", only=("limit",))
    internal: int = option(0, hidden=True)


def test_keywords_are_the_names_of_options():
    assert set(keywords_of(Options)) == {
        "out", "files", "kind", "color", "pair", "count", "share", "flag", "part_folder", "limit", "with_extra",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"files": ["a", Path("b")]}, {"files": [Path("a"), Path("b")]}),
        ({"pair": "3,4"}, {"pair": (3, 4)}),
        ({"pair": [3, 4]}, {"pair": (3, 4)}),
        ({"count": np.int64(3), "share": 1, "flag": True}, {"count": 3, "share": 1.0, "flag": True}),
        ({"count": None, "kind": "b", "color": "blue"}, {"kind": "b", "color": "blue"}),
        ({"part_folder": "x", "limit": 5}, {"part": Part(Path("x"), 5)}),
        ({"with_extra": True, "limit": 5}, {"part": Part(None, 5), "extra": Part(None, 5)}),
        ({"with_extra": False}, {}),
    ],
)
def test_values_are_converted(given: dict[str, Any], expected: dict[str, Any]):
    assert options_of(Options, {"out": "o", **given}) == Options(out=Path("o"), **expected)


@pytest.mark.parametrize(
    ("given", "code", "facts"),
    [
        ({"ouut": "o"}, "option-unknown", ["'ouut'", "'out'"]),
        ({"out": "o", "internal": 1}, "option-unknown", ["'internal'"]),
        ({"kind": "b"}, "option-missing", ["out"]),
        ({"out": None}, "option-value", ["out"]),
        ({"out": 3}, "option-value", ["out", "int"]),
        ({"out": "o", "kind": "c"}, "option-value", ["kind", "'c'"]),
        ({"out": "o", "color": "c"}, "option-value", ["color", "red, blue", "'c'"]),
        ({"out": "o", "pair": "x"}, "option-value", ["pair takes two numbers", "x"]),
        ({"out": "o", "count": "3"}, "option-value", ["count", "str"]),
        ({"out": "o", "count": 0}, "option-value", ["count must be at least 1"]),
        ({"out": "o", "files": [3]}, "option-value", ["files", "int"]),
        ({"out": "o", "files": "abc"}, "option-value", ["files", "str"]),
    ],
)
def test_what_is_said_of_mistakes(given: dict[str, Any], code: Code, facts: list[str]):
    with fails(code, *facts):
        options_of(Options, given)


def test_a_message_has_the_words_of_python():
    for text, shown in (
        ("pass --flag, or choose another --out.", "pass flag=True, or choose another out."),
        ("--part-folder X needs --with-extra; see `posters a --out B` and --other", None),
        ("set --optim.lr 1 or --no-flag", "set optim.lr 1 or flag=False"),
    ):
        with fails("option-value") as caught, in_python(Options):
            raise UserError("option-value", text)
        assert str(caught.value) == (
            shown or "part_folder X needs with_extra=True; see `posters a --out B` and --other"
        )


def test_options_of_a_real_command():
    found = options_of(BuildOptions, {"metadata": "a.csv", "out": "s", "splits": (0.5, 0.5, 0), "short_side": 64})
    expected = BuildOptions(
        metadata=Path("a.csv"), out=Path("s"), fractions=(0.5, 0.5, 0.0), image=ImageOptions(short_side=64)
    )
    assert found == expected
