"""JSON from outside is right, or one line that names the field."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import msgspec
import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UserError, printable
from shards.schema import Count, Sha256, check_as, parse_as


class Part(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(max_length=8)]
    size: Count
    digest: Sha256 = "0" * 64


class Whole(msgspec.Struct):
    parts: list[Part]
    rates: list[float] = []


GOOD = b'{"parts": [{"name": "a", "size": 3, "later": null}], "later": {"x": [1]}}'


def test_unknown_keys_are_ignored():
    assert parse_as(GOOD, Whole, "f.json", "whole", "mend it") == Whole([Part("a", 3)])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"parts": [{"name": "a", "size": -1}]}', "parts[0].size: expected int >= 0"),
        (b'{"parts": [{"name": "a", "size": 1.5}]}', "parts[0].size: expected int, got float"),
        (b'{"parts": [{"name": "a", "size": true}]}', "parts[0].size: expected int, got bool"),
        (b'{"parts": [{"name": "a", "size": 99999999999999999999}]}', "parts[0].size: expected int"),
        (b'{"parts": [{"name": "a", "size": 1, "digest": "../x"}]}', "parts[0].digest: expected str matching"),
        (b'{"parts": [{"name": "a", "size": 1, "digest": "' + b"0" * 64 + b'\\n"}]}', "parts[0].digest"),
        (b'{"parts": [{"name": "aaaaaaaaa", "size": 1}]}', "parts[0].name: expected str of length <= 8"),
        (b'{"parts": [], "rates": [1' + b"0" * 400 + b"]}", "rates[0]: number out of range"),
        (b'{"parts": [], "rates": [0.5, NaN]}', "rates[1]: expected a finite number, got nan"),
        (b'{"parts": [], "later": {"x\\n": -1e400, "y": NaN}}', "later.x\\n: expected a finite number, got -inf"),
        (b'{"parts": [], "rates": [NaN}', "JSON is malformed"),
        (b"[]", "Expected object, got array"),
        (b"", "truncated"),
        (b'{"parts": [], "later": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
        (b'{"parts": [{"name": "\xff", "size": 1}]}', ""),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_field(data: bytes, said: str):
    if data.count(b"[") > 1000:  # what is ignored may be nested as it likes, or is refused
        try:
            parse_as(data, Whole, "f.json", "whole", "mend it")
        except UserError as error:
            assert "nested too deeply" in str(error)
        return
    with fails("config-file", said) as caught:
        parse_as(data, Whole, "f.json", "whole", "mend it", "config-file")
    text = str(caught.value)
    assert text.startswith("f.json is not a valid whole: ") and text.endswith("; mend it")


def test_values_that_were_parsed_already():
    assert check_as({"parts": []}, Whole, "f", "whole", "mend it") == Whole([])
    with fails("path-unreadable", "f is", "whole", "rates[0]", "mend it"):
        check_as({"parts": [], "rates": ["1"]}, Whole, "f", "whole", "mend it")
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    with fails("path-unreadable", "whole", "mend it"):
        check_as({"parts": nested}, Whole, "f", "whole", "mend it")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text())
def test_printable_text_steers_no_terminal(text: str):
    shown = printable(text)
    assert not set(shown) & {*map(chr, [*range(9), *range(11, 32), *range(127, 160), 0x202E, 0x2028])}
    shown.encode()  # no lone surrogates
    assert printable(shown) == shown


def test_printable_keeps_every_script():
    text = "Amélie 千と千尋 Сталкер نمی‌خواهم 👩‍👩‍👧"
    assert printable(text) == text
    assert printable("\x1b]0;x\x07 \x9b2J a\u202eb\udcff\r") == "\\x1b]0;x\\x07 \\x9b2J a\\u202eb\\udcff\\r"


def test_schemas_are_quick_to_import():
    code = "import sys, shards.schema; sys.exit(any(n in sys.modules for n in ('numpy', 'pyarrow', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
