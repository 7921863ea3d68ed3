"""A build's folder may hold its own unfinished work, another set, or somebody's own tars."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from failing import fails
from shard_tools import (
    Source,
    build,
    draw,
    draw_posters,
    encoded,
    mtimes,
    rows_of,
    samples,
    tree,
    write_csv,
    write_file,
)

from shards.build.verify import verify_shards
from shards.dataset.index import index_path, read_index, write_index

pytest_plugins = ("shard_fixtures",)


def test_a_tar_of_somebody_else_under_one_of_our_names_is_spared(few: Source, few_shards: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(few_shards / "test-00000.tar", out / "train-00000.tar")  # sound, but with other samples
    before = tree(out)
    with fails("path-exists", "train-00000.tar", "no index", "--overwrite"):
        build(few, out)
    assert {k: v for k, v in tree(out).items() if not k.endswith(".lock")} == before
    build(few, out, overwrite=True)
    assert verify_shards(out, 1)[1] == []


def test_our_own_tar_whose_index_a_kill_prevented_is_finished(few: Source, tmp_path: Path):
    out = tmp_path / "out"
    build(few, out)
    whole = tree(out)
    index_path(out / "train-00000.tar").unlink()
    (out / "manifest.json").unlink()
    build(few, out)
    assert tree(out) == whole


def test_a_finished_shard_whose_index_was_changed_is_made_again(few: Source, few_shards: Path, tmp_path: Path) -> None:
    """Its labels would be vouched for by the build's manifest."""
    for column in ("id", "labels"):
        out = tmp_path / column
        shutil.copytree(few_shards, out)
        (out / "manifest.json").unlink()
        table, facts = read_index(out / "train-00000.tar")
        at = table.schema.get_field_index(column)
        other = table[column].take(list(range(table.num_rows))[::-1])
        write_index(out / "train-00000.tar", table.set_column(at, table.schema.field(at), other), facts)
        build(few, out, samples_per_shard=8)
        assert tree(out) == tree(few_shards)


@pytest.mark.parametrize("digest", ["../../victim", "A" * 64, 5, None])
def test_a_finished_shard_whose_digest_is_none_is_made_again(
    few: Source, few_shards: Path, tmp_path: Path, digest: object
) -> None:
    """It would become the manifest's, and so a name in caches."""
    out = shutil.copytree(few_shards, tmp_path / "out")
    (out / "manifest.json").unlink()
    table, facts = read_index(out / "train-00000.tar")
    write_index(out / "train-00000.tar", table, {**facts, "sha256": digest})
    build(few, out, samples_per_shard=8)
    assert tree(out) == tree(few_shards)


def test_a_finished_set_is_not_written_again(few: Source, few_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(few_shards, out)
    before, times = tree(out), mtimes(out) | mtimes(out, "*.parquet")
    build(few, out, samples_per_shard=8)
    build(few, out, samples_per_shard=8, overwrite=True, workers=2)
    assert tree(out) == before
    assert mtimes(out) | mtimes(out, "*.parquet") == times


def test_another_content_is_refused_and_nothing_changes(few: Source, few_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(few_shards, out)
    before, times = tree(out), mtimes(out, "*")
    fewer = Source(few.images, write_csv(tmp_path / "fewer.csv", rows_of(few.csv)[:10]), {}, {})
    changes: list[tuple[Source, dict[str, Any]]] = [
        (few, {"seed": 1}),
        (few, {"samples_per_shard": 5}),
        (few, {"samples_per_shard": 1000}),
        (few, {"samples_per_shard": 8, "genre_separator": "|", "fractions": (1.0, 0.0, 0.0)}),
        (fewer, {"samples_per_shard": 8}),
    ]
    for source, options in changes:
        with fails("path-exists", out, "--out", "--overwrite"):
            build(source, out, **options)
        assert tree(out) == before and {n: t for n, t in mtimes(out, "*").items() if n in times} == times


@pytest.mark.parametrize("options", [{"samples_per_shard": 1000}, {"samples_per_shard": 3}, {"seed": 1}])
def test_overwrite_leaves_nothing_stale(few: Source, few_shards: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    out = tmp_path / "out"
    shutil.copytree(few_shards, out)
    write_file(out / "notes.txt", b"the user's own")
    build(few, out, overwrite=True, **options)
    build(few, tmp_path / "fresh", **options)
    assert tree(out) == {**tree(tmp_path / "fresh"), "notes.txt": tree(out)["notes.txt"]}


def test_a_tar_that_a_killed_build_left_is_no_stale_file(few: Source, few_shards: Path, tmp_path: Path) -> None:
    """Killed between a tar and its index, then started with larger shards."""
    out = tmp_path / "out"
    shutil.copytree(few_shards, out)
    for path in [*out.glob("*.parquet"), out / "manifest.json"]:
        path.unlink()
    with fails("path-exists", "train-00001.tar"):
        build(few, out, samples_per_shard=1000)
    build(few, out, samples_per_shard=1000, overwrite=True)
    build(few, tmp_path / "fresh", samples_per_shard=1000)
    assert tree(out) == tree(tmp_path / "fresh")


def test_a_damaged_index_is_refused_or_overwritten(few: Source, few_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(few_shards, out)
    index = out / "train-00001.index.parquet"
    index.write_bytes(index.read_bytes()[:-9])
    with fails("set-damaged", "train-00001.index.parquet"):
        build(few, out, samples_per_shard=8)
    build(few, out, samples_per_shard=8, overwrite=True)
    assert tree(out) == tree(few_shards)


@pytest.mark.parametrize("lost", ["train-00001.tar", "train-00001.index.parquet", "manifest.json", "rejected.csv"])
def test_a_lost_file_is_made_again(few: Source, few_shards: Path, tmp_path: Path, lost: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(few_shards, out)
    (out / lost).unlink()
    build(few, out, samples_per_shard=8)
    assert tree(out) == tree(few_shards)


def test_a_poster_replaced_later_is_another_content(tmp_path: Path) -> None:
    own = draw_posters(tmp_path / "own", 12)
    build(own, tmp_path / "out")
    write_file(own.images / "p0003.jpg", encoded(draw("another")))
    with fails("path-exists", tmp_path / "out"):
        build(own, tmp_path / "out")
    build(own, tmp_path / "out", overwrite=True)
    assert samples(tmp_path / "out")["p0003"]["image"] == encoded(draw("another"))
