"""Ids and paths of a table become sample ids. Different ids stay different."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.tables.sample_ids import sample_ids

CASES: dict[str, tuple[list[str], list[str]]] = {
    "ids stay": (["tt1", "sub/tt2", "a.b"], ["tt1", "sub/tt2", "a.b"]),
    "endings": (["p1.jpg", "p2.PNG", "p3"], ["p1", "p2", "p3"]),
    "a common folder": (["posters/p1.jpg", "posters/a/p2.jpg"], ["p1", "a/p2"]),
    "dots and slashes": (["./p1.jpg", "a//p2.jpg"], ["p1", "a/p2"]),
    "equal without ending": (["p1.jpg", "p1.png"], ["p1.jpg", "p1.png"]),
    "decimals": (["66773.0", "12.0", ""], ["66773", "12", ""]),
    "no decimals": (["66773.5", "12.0"], ["66773.5", "12.0"]),
    "absolute": (["/data/x/p1.jpg", "/data/y/p2.jpg"], ["x/p1", "y/p2"]),
    "some absolute": (["/data/p1.jpg", "p2.jpg"], ["/data/p1", "p2"]),
    "windows": (["C:\\data\\p1.jpg", "C:\\data\\p2.jpg"], ["p1", "p2"]),
    "upwards": (["../p1.jpg", "../p2.jpg"], ["../p1", "../p2"]),
    "URLs": (["https://a.b/w5/p1.jpg?w=500", "https://a.b/w5/p2.jpg#x", "https://a.b/w5/p3.jpg"], ["p1", "p2", "p3"]),
    "URLs that differ in the query": (
        ["http://a/p.jpg?id=1", "http://a/p.jpg?id=2"],
        ["http:/a/p.jpg?id=1", "http:/a/p.jpg?id=2"],
    ),
    "unicode": (["e\u0301.jpg"], ["\u00e9"]),
    "both forms": (["e\u0301", "\u00e9"], ["e\u0301", "\u00e9"]),
}


@pytest.mark.parametrize("case", CASES)
def test_ids(case: str) -> None:
    written, wanted = CASES[case]
    assert sample_ids(written).ids == wanted


def test_paths_below_the_image_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    found = sample_ids([f"{tmp_path}/images/a/p1.jpg", f"{tmp_path}/images/p2.jpg"], Path("images"))
    assert found.ids == ["a/p1", "p2"] and found.paths == ["a/p1.jpg", "p2.jpg"]
    assert any("below images" in change for change in found.changes)


def test_decimals_keep_their_path() -> None:
    """Earlier versions of fetch wrote files such as 66773.0.jpg."""
    found = sample_ids(["66773.0", "12.0"])
    assert found.ids == ["66773", "12"] and found.paths == ["66773.0", "12.0"]


def test_file_names_unless_two_are_equal() -> None:
    assert sample_ids(["train/p1.jpg", "test/p2.jpg"], by_file=True).ids == ["p1", "p2"]
    assert sample_ids(["Drama/p1.jpg", "War/p1.jpg"], by_file=True).ids == ["Drama/p1", "War/p1"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.text("ab./\\01é", min_size=1, max_size=8).map(lambda text: text + ".jpg"), max_size=6), st.booleans()
)
def test_different_paths_have_different_ids(written: list[str], by_file: bool) -> None:
    found = sample_ids(written, by_file=by_file)
    assert len(found.ids) == len(found.paths) == len(written)
    assert len(set(found.ids)) == len(set(found.paths))
