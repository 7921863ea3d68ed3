"""Names in tars of other tools: each key, id and row of a CSV stands for one sample, or the set is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from failing import fails
from foreign_tars import adopt, found, pack, rejected
from shard_tools import draw, encoded, only_error, rows_of, tree, write_csv, write_tar
from tar_tools import File, python_tar

from shards.build.verify import verify_shards
from shards.dataset.index import read_index
from toolkit.data.sources.shard_reader import ShardReader

pytest_plugins = ("shard_fixtures",)

Command = Callable[..., tuple[int, str, str]]
Genres = dict[str, list[str]]


def test_keys_that_tars_share_become_ids_with_the_tar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Many tools number the samples of every tar from 0."""
    (tmp_path / "val").mkdir()
    pack(tmp_path / "a.tar", "0 1 2", **{"2": {"id": "tt2"}})
    pack(tmp_path / "val" / "a.tar", "1 2")
    with caplog.at_level("INFO"):
        manifest = adopt(tmp_path)
    ids = {shard.name: read_index(tmp_path / shard.name)[0]["id"].to_pylist() for shard in manifest.shards}
    assert ids == {"a.tar": ["a/0", "a/1", "tt2"], "val/a.tar": ["val/a/1", "val/a/2"]}
    assert read_index(tmp_path / "a.tar")[0]["key"].to_pylist() == ["0", "1", "2"]
    (line,) = [record.message for record in caplog.records if record.name == "shards.build.index.join"]
    assert "a.tar both contain a sample '1'; so ids are written as TAR/KEY" in line
    assert verify_shards(tmp_path, 1)[1] == []
    assert ShardReader.of_split(tmp_path, "val").sample_ids() == ["val/a/1", "val/a/2"]
    before = tree(tmp_path)
    adopt(tmp_path)
    assert tree(tmp_path) == before


def test_a_key_of_a_broken_sample_is_shared_too(tmp_path: Path) -> None:
    """Ids do not change if the image is repaired."""
    pack(tmp_path / "a.tar", "0")
    write_tar(tmp_path / "b.tar", {"0.jpg": b"broken", "1.jpg": encoded(draw(2))})
    adopt(tmp_path)
    assert [read_index(tmp_path / name)[0]["id"].to_pylist() for name in ("a.tar", "b.tar")] == [["a/0"], ["b/1"]]


def test_an_id_that_is_another_tars_name_and_key_is_refused(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", "0")
    pack(tmp_path / "b.tar", "0 1", **{"1": {"id": "a/0"}})
    with fails("samples-repeated", "a.tar", "'0'", "b.tar) both have the id 'a/0'"):
        adopt(tmp_path)


def test_a_tar_and_its_copy_are_refused(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", "0")
    shutil.copy(tmp_path / "a.tar", tmp_path / "val-a.tar")
    with fails("samples-repeated", tmp_path / "a.tar", "val-a.tar have the same bytes"):
        adopt(tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_a_key_in_two_tars_fits_no_row_of_a_table(tmp_path: Path) -> None:
    """One row would be of several posters."""
    pack(tmp_path / "a.tar", "0 1")
    pack(tmp_path / "b.tar", "1 2")
    table = write_csv(tmp_path / "meta.csv", [(str(n), "", "", f"['{'ABA'[n]}']") for n in range(3)])
    with fails("samples-repeated", "a.tar", "b.tar both contain a sample '1'"):
        adopt(tmp_path, metadata=table)
    write_tar(tmp_path / "b.tar", {"1.jpg": b"broken", "2.jpg": encoded(draw(2))})
    with fails("samples-repeated", "a.tar", "b.tar", "'1'"):
        adopt(tmp_path, metadata=table)  # the row might be that of the broken one
    assert not (tmp_path / "manifest.json").exists()


def test_an_id_of_two_samples_is_refused(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", "x y", x={"id": "tt1"}, y={"id": "tt2"})
    pack(tmp_path / "b.tar", "z", z={"id": "tt1"})
    with fails("samples-repeated", "a.tar", "'x'", "'z'", "b.tar) both have the id 'tt1'"):
        adopt(tmp_path)
    pack(tmp_path / "b.tar", "tt2")  # its key is its id
    with fails("samples-repeated", "'y'", "'tt2'"):
        adopt(tmp_path)


def test_a_name_twice_refuses_the_set(tmp_path: Path, command: Command) -> None:
    files = [File("x.jpg", encoded(draw(1))), File("x.json", b"{}"), File("x.jpg", encoded(draw(2)))]
    tar = python_tar(tmp_path / "a.tar", "gnu", files)
    pack(tmp_path / "b.tar", "z")
    status, _, err = command("shards", "index", tmp_path, "--workers", 1)
    assert status == 2 and f"{tar}: member 'x.jpg' occurs twice" in only_error(err)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "b.tar", ".lock"}


def joined(tmp_path: Path, rows: Genres, names: str, **records: Any) -> tuple[Genres, dict[str, str]]:
    """Genres by key, and reasons by key, of a tar that is joined with a CSV."""
    folder = tmp_path / "set"
    pack(folder / "a.tar", names, **records)
    table = write_csv(tmp_path / "meta.csv", [(i, "", "", repr(genres)) for i, genres in rows.items()])
    adopt(folder, metadata=table)
    assert verify_shards(folder, 1)[1] == []
    return found(folder), rejected(folder)


def test_rows_by_file_name(tmp_path: Path) -> None:
    assert joined(tmp_path, {"1": ["A"], "2": ["B"]}, "./1 dir/sub/2") == ({"1": ["A"], "dir/sub/2": ["B"]}, {})


def test_rows_by_path_and_by_id(tmp_path: Path) -> None:
    rows = {"a/1": ["A"], "b/1": ["B"], "tt7": ["C"], "9": ["D"]}
    assert joined(tmp_path, rows, "a/1 ./b/1 8 9", **{"8": {"id": "tt7"}, "9": {"id": "tt8"}}) == (
        {"a/1": ["A"], "b/1": ["B"], "8": ["C"], "9": ["D"]},
        {},
    )


def test_names_as_macos_and_windows_write_them(tmp_path: Path) -> None:
    assert joined(tmp_path, {"\u00e9": ["A"], "w": ["B"]}, "d/e\u0301 c\\w") == (
        {"d/e\u0301": ["A"], "c\\w": ["B"]},
        {},
    )


def test_samples_without_a_usable_row_are_rejected(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    pack(folder / "a.tar", "1 2 3 4")
    table = write_csv(tmp_path / "meta.csv", [("1", "", "", "['A']"), ("2", "", "", "['A"), ("3", "", "", "[]")])
    manifest = adopt(folder, metadata=table)
    assert found(folder) == {"1": ["A"]}
    assert rows_of(folder / "rejected.csv") == [
        ["2", "unparsable genres", "a.tar: table, line 3: a quote is not closed in \"['A\"; write ['Action', 'Drama']"],
        ["3", "no genres", "a.tar: table, line 4"],
        ["4", "not in the table", "a.tar"],
    ]
    assert manifest.source["samples"] == 1


def test_rows_whose_ids_are_file_names(tmp_path: Path) -> None:
    rows = {"./p/1.jpg": ["A"], "2.JPEG": ["B"], "q/3": ["C"], "4.webp": ["D"], "r/4.webp": ["E"]}
    assert joined(tmp_path, rows, "1 2 p/3 q/3 4") == (
        {"1": ["A"], "2": ["B"], "q/3": ["C"], "4": ["D"]},
        {"p/3": "not in the table"},
    )


def test_a_name_of_several_rows_is_none_of_them(tmp_path: Path) -> None:
    rows = {"1": ["A"], "a/2": ["B"], "b/2": ["C"], "3.jpg": ["D"], "3.png": ["E"]}
    assert joined(tmp_path, rows, "1 2 3") == ({"1": ["A"]}, {"2": "not in the table", "3": "not in the table"})


@pytest.mark.parametrize("names", ["a/1 b/1", "1 b/1", "b/1 1"])
def test_a_row_that_fits_two_samples_is_refused(tmp_path: Path, names: str) -> None:
    with fails("table-row", "'1'", "meta.csv fits two samples", "a row of the table"):
        joined(tmp_path, {"1": ["A"]}, names)


def test_a_row_whose_own_sample_is_broken_goes_to_no_other(tmp_path: Path) -> None:
    write_tar(tmp_path / "set" / "a.tar", {"a/1.jpg": b"broken", "b/1.jpg": encoded(draw(1))})
    table = write_csv(tmp_path / "meta.csv", [("1", "", "", "['A']")])
    with fails("table-row", "'a/1'", "'b/1'"):
        adopt(tmp_path / "set", metadata=table)


def test_a_csv_of_other_posters_takes_nothing(tmp_path: Path, command: Command) -> None:
    """And leaves the set that is there as it is, but for the list of reasons."""
    pack(tmp_path / "set" / "a.tar", "1 2", **{"1": {"genres": ["A"]}, "2": {"genres": ["A"]}})
    adopt(tmp_path / "set")
    before = tree(tmp_path / "set")
    table = write_csv(tmp_path / "meta.csv", [("9", "", "", "['A']")])
    status, out, err = command("shards", "index", tmp_path / "set", "--metadata", table, "--workers", 1)
    assert (status, out) == (2, "")
    assert "has no usable sample: 2 not in the table; for example id '1'" in only_error(err)
    assert rejected(tmp_path / "set") == {"1": "not in the table", "2": "not in the table"}
    del before["rejected.csv"]
    assert tree(tmp_path / "set").items() >= before.items()
