"""Lists of classes for `posters import`: their forms, and the forms that are refused instead of guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
from failing import fails

from toolkit.export.class_list import read_classes


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("c.yaml", "a\nb\nc\n", ["is a .yaml file"]),
        ("c.CSV", "a\nb\nc\n", ["is a .csv file"]),
        ("c.txt", "- a\n- b\n- c\n", ["line 1 is YAML: '- a'"]),
        ("c.txt", "names:\n  - a\n  - b\n", ["line 1 is YAML: 'names:'"]),
        ("c.txt", "0: a\n1: b\n2: c\n", ["line 1 has a number besides the name: '0: a'"]),
        ("c.txt", "5,a\n7,b\n9,c\n", ["line 1 has a number besides the name: '5,a'"]),
        ("c.txt", "0 a\n1 b\n2 c\n", ["line 1 has a number besides the name: '0 a'"]),
        ("c.txt", "1. a\n2. b\n3. c\n", ["line 1 has a number besides the name: '1. a'"]),
        ("c.txt", "b 1\na 0\nc 2\n", ["line 1 has a number besides the name: 'b 1'"]),
        ("c.txt", "a\nb,1\nc\tx\n", ["line 3 has a tab", r"'c\tx'"]),
        ("c.txt", 'a\n"b"\nc\n', ["line 2 has quotes"]),
        ("c.txt", "a\n'b',\nc\n", ["line 2 has quotes"]),
        ("c.txt", "a\nb\0b\nc\n", ["line 2 has a control character", r"'b\x00b'"]),
        ("c.txt", "a\nb\x85\nc\n", ["line 2 has a control character", r"'b\x85'"]),
        ("c.txt", "a\rb\rc\r", ["line 1 has a control character"]),
        ("c.txt", "Drama\nWar\ndrama\n", ["'Drama' and 'drama'", "rename one"]),
        ("c.txt", '["a", "b", "c"]', ["contains JSON", ".json"]),
        ("c.txt", f"a\nb\n{'1 ' * 5000}\n", ["length"]),
        ("c.txt", "a,b,c\n", ["one line with several names", "'a,b,c'"]),
        ("c.json", '["a", "b\\u0000", "c"]', ["output 1 has a control character"]),
        ("c.json", '{"0": "a", "0": "b", "1": "c"}', ["the same key twice"]),
        ("c.json", '{"a": 0, "b": 0, "c": 1}', ["two names the same number"]),
        ("c.json", '{"a": 1, "b": 2, "c": 3}', ["no name for output 0"]),
        ("c.json", '{"0": 1, "1": 0, "2": 2}', ["no list of genres or classes"]),
        ("c.json", "[1", ["is not valid JSON"]),
    ],
)
def test_class_lists_of_other_forms_are_not_guessed(tmp_path: Path, name: str, content: str, facts: list[str]):
    (tmp_path / name).write_bytes(content.encode())
    with fails("labels-invalid", tmp_path / name, *facts):
        read_classes(tmp_path / name)


@pytest.mark.parametrize(
    "names",
    [
        ("season 1", "season 2", "season 3"),
        ("1917", "3 Idiots", "Drama"),
        ("0 to 2", "3 to 5", "6 to 8"),
        ("Sci-Fi, Fantasy", "'Tis", "x: y"),
        ("a\u2003b", "\u0641\u06cc\u0644\u0645\u200c\u0647\u0627", "-"),
    ],
)
def test_names_with_numbers_and_signs_are_names(tmp_path: Path, names: tuple[str, ...]):
    (tmp_path / "c.txt").write_bytes("\n".join(names).encode())
    assert read_classes(tmp_path / "c.txt").genres == names


def test_a_folder_as_the_list_of_classes(tmp_path: Path):
    with fails("path-unreadable", "--classes", tmp_path, "is a folder: name a text file"):
        read_classes(tmp_path)
    (tmp_path / "labels.json").write_text("{}")
    with fails("path-unreadable", "is a folder: name a file, such as", tmp_path / "labels.json"):
        read_classes(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        '["a", "b", "c"]',
        '{"0": "a", "2": "c", "1": "b"}',
        '{"c": 2, "a": 0, "b": 1}',
        '{"model_type": "vit", "id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0}}',
        '{"architecture": "resnet18", "label_names": ["a", "b", "c"]}',
        '{"genres": ["a", "b", "c"], "fingerprint": "x"}',
        '{"labels": {"genres": ["a", "b", "c"]}, "shards": []}',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_class_lists_in_json(tmp_path: Path, content: str, encoding: str):
    (tmp_path / "c.json").write_text(content, encoding=encoding)
    assert read_classes(tmp_path / "c.json").genres == ("a", "b", "c")
