"""Targets of one sample, as JSON fields and .cls members have them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.build.index.targets import MAX_CLASS, MAX_GENRE, Target, class_target, columns_of, json_target, value_of
from shards.dataset.labels import MAX_GENRES

#: Value of a JSON field → target.
VALUES: list[tuple[Any, Target]] = [
    (None, Target()),
    ([], Target()),
    ("", Target()),
    ("None", Target()),
    ("Drama|War", Target("names", ("Drama", "War"))),
    (["Drama", "War", "Drama"], Target("names", ("Drama", "War"))),
    ([{"id": 18, "name": "Drama"}], Target("names", ("Drama",))),
    ("7", Target("names", ("7",))),
    (7, Target("class", (7,))),
    (7.0, Target("class", (7,))),
    (0, Target("class", (0,))),
    (MAX_CLASS, Target("class", (MAX_CLASS,))),
    ([0, 1, 0, 1], Target("binary", (1, 3), 4)),
    ([0.0, 1.0], Target("binary", (1,), 2)),
    ([False, True, True], Target("binary", (1, 2), 3)),
    ([0, 0], Target("binary", (), 2)),
    ([3, 7, 3], Target("numbers", (3, 7), 3)),
    ([2], Target("numbers", (2,), 1)),
]
#: Value of a JSON field that is not a target → reason and a part of the detail.
BAD_VALUES: list[tuple[Any, str, str]] = [
    (-1, "bad class", "the class -1 is not from 0"),
    (MAX_CLASS + 1, "bad class", f"not from 0 to {MAX_CLASS}"),
    ([3, -1], "bad class", "the class -1"),
    ([0, -1], "bad class", "the class -1"),
    ([10**30, 0], "bad class", f"the class {10**30}"),
    (True, "unparsable genres", "not a list, a text or a whole number: true"),
    (0.5, "unparsable genres", "whole number: 0.5"),
    (float("nan"), "unparsable genres", "whole number: NaN"),
    (float("inf"), "unparsable genres", "whole number: Infinity"),
    ({"a": 1}, "unparsable genres", "not a list, a text or a whole number"),
    ([0.5, 1], "unparsable genres", "not a list of"),
    ([1, "a"], "unparsable genres", "not a list of"),
    ([True, 5], "unparsable genres", "not a list of"),
    ([[1], [2]], "unparsable genres", "not a list of"),
    ([1, None], "unparsable genres", "not a list of"),
    ("x" * (MAX_GENRE + 1), "unparsable genres", "a genre has 4097 characters"),
    ([0] * (MAX_GENRES + 1), "unparsable genres", f"a list of {MAX_GENRES + 1} numbers, over the limit"),
]


@pytest.mark.parametrize(("value", "target"), VALUES, ids=lambda value: repr(value)[:40])
def test_values(value: Any, target: Target) -> None:
    assert json_target({"field": value}, "field", "|") == target
    assert json_target({"field": value}, "other", "|") == Target()


@pytest.mark.parametrize(("value", "reason", "detail"), BAD_VALUES, ids=lambda value: repr(value)[:40])
def test_values_that_are_no_target(value: Any, reason: str, detail: str) -> None:
    target = json_target({"field": value}, "field", "|")
    assert target.form == "bad" and target.values[0] == reason and detail in target.values[1]
    assert "\n" not in target.values[1] and len(target.values[1]) < 300


@pytest.mark.parametrize(
    ("data", "number"), [(b"0", 0), (b"7\n", 7), (b" +12 ", 12), (b"007", 7), (b"2147483647", MAX_CLASS)]
)
def test_cls_members(data: bytes, number: int) -> None:
    assert class_target(data) == Target("class", (number,))
    assert int(data) == number  # as WebDataset and timm read it


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the .cls member is empty"),
        (b" \n", "the .cls member is empty"),
        (b"cat", "is not a whole number: b'cat'"),
        (b"1.5", "is not a whole number"),
        (b"1_000", "is not a whole number"),
        (b"1 2", "is not a whole number"),
        ("٣".encode(), "is not a whole number"),
        (b"\x00\xff\n\x1b[2J", "is not a whole number"),
        (b"-1", "the class -1 is not from 0"),
        (b"2147483648", "the class 2147483648 is not from 0"),
        (b"9" * 60, "is not from 0"),
        (b"1" * 70, "is not a whole number"),
    ],
)
def test_cls_members_that_are_no_class(data: bytes, words: str) -> None:
    form, (reason, detail), _ = class_target(data)
    assert (form, reason) == ("bad", "bad class") and words in detail and detail.isprintable()


def test_fields_of_0_and_1() -> None:
    """timm's target key red,green,blue."""
    names = "red, green,blue"
    assert json_target({"red": 1, "green": 0, "blue": 0.5, "more": 7}, names, "|") == Target("flags", (0, 2))
    assert json_target({"red": False, "green": -1, "blue": 0}, names, "|") == Target("flags", ())
    assert json_target({"green": None, "more": 7}, names, "|") == Target()
    assert json_target({"a,b": ["Drama"]}, "a,b", "|") == Target("names", ("Drama",))
    nested = {"is": {"red": True, "green": True}, "blue": 0}
    assert json_target(nested, "is/red,is/green,blue", "|") == Target("flags", (0, 1))
    for value, words in (("yes", "'blue' is not a number"), (float("nan"), "not a number"), (None, "missing")):
        target = json_target({"red": 1, "green": 1, "blue": value}, names, "|")
        assert target.form == "bad" and target.values[0] == "unparsable genres" and words in target.values[1]


def test_paths() -> None:
    record = {"a": {"b": 3}, "a/b": 4, "objects": [{"id": 5, "name": "x"}, {"id": 6}], "n": 1}
    assert value_of(record, "a/b") == 4 and value_of({"a": {"b": 3}}, "a/b") == 3
    assert value_of(record, "objects/id") == [5, 6] and value_of(record, "objects/name") == ["x", None]
    assert [value_of(record, path) for path in ("", "/", "a/", "n/b", "b/a", "a/b/c/d", "objects/id/x")] == [
        *[None] * 6,
        [None, None],
    ]


def test_columns() -> None:
    assert list(columns_of(Target("binary", (1, 3), 4), "multi-hot")) == [1, 3]
    assert list(columns_of(Target("binary", (1, 3), 4), "indices")) == [0, 1]
    assert list(columns_of(Target("binary", (0,), 1), "indices")) == [1]
    assert list(columns_of(Target("binary", (), 1), "indices")) == [0]
    assert list(columns_of(Target("numbers", (3, 7), 3), "indices")) == [3, 7]


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", ""]), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.dictionaries(st.sampled_from(["a", "b", "a/b", ""]), ANY_JSON), st.sampled_from(["a", "a/b", "a,b", "b/a/b"]))
def test_any_json_is_a_target_or_has_a_reason(record: dict[str, Any], field: str) -> None:
    target = json_target(json.loads(json.dumps(record)), field, "|")
    if target.form == "bad":
        assert len(target.values) == 2 and "\n" not in target.values[1]
    elif target.form not in ("", "names"):
        assert all(isinstance(column, int) and column >= 0 for column in target.values)
