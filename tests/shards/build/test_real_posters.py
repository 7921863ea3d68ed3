"""Real posters and their CSVs, in the layouts that users have."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from shard_tools import REAL, contents, posters, read_csv, write_csv

from shards.build.verify import verify_shards
from shards.dataset.index import list_tars, read_index
from shards.dataset.manifest import Manifest

ROWS = 400


@pytest.fixture(scope="module")
def real() -> Path:
    if not (REAL / "posters" / "meta_processed.csv").is_file():
        pytest.skip(f"real posters are not at {REAL}/posters")
    return REAL / "posters"


@pytest.fixture(scope="module")
def real_large() -> Path:
    if not (REAL / "posters_large" / "meta.csv").is_file():
        pytest.skip(f"real posters are not at {REAL}/posters_large")
    return REAL / "posters_large"


def genres_of(row: dict[str, str]) -> set[str]:
    return set(ast.literal_eval(row["genre"])) - {"(no genres listed)"}


def test_small_posters_keep_their_bytes(real: Path, tmp_path: Path) -> None:
    rows = read_csv(real / "meta_processed.csv")[:ROWS]
    table = write_csv(tmp_path / "meta.csv", [row.values() for row in rows], list(rows[0]))  # type: ignore[misc]
    out = tmp_path / "out"
    done = posters(
        *("shards", "build", "--images", real / "images", "--metadata", table, "--out", out),
        *("--samples-per-shard", 100),
    )
    assert done.returncode == 0, done.stderr
    manifest = Manifest.read(out)
    rejected = {row["id"] for row in read_csv(out / "rejected.csv")}
    expected = {row["poster_id"]: genres_of(row) for row in rows if row["poster_id"] not in rejected}
    assert len(expected) >= 0.95 * ROWS
    found = {}
    for shard in manifest.shards:
        members = contents(out / shard.name)
        for row in read_index(out / shard.name)[0].to_pylist():
            found[row["id"]] = {manifest.genres[column] for column in row["labels"]}
            assert members[f"{row['key']}.jpg"] == (real / "images" / f"{row['id']}.jpg").read_bytes()
    assert found == expected
    assert manifest.genres == sorted(set().union(*expected.values()))
    summary = manifest.split_summary()
    assert [abs(summary[s]["samples"] - share * len(found)) <= 4 for s, share in
            (("train", 0.8), ("val", 0.1), ("test", 0.1))] == [True] * 3  # fmt: skip
    assert verify_shards(out)[1] == []


@pytest.mark.long
def test_large_posters_are_shrunk(real_large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    where = ("--images", real_large / "images", "--metadata", real_large / "meta.csv", "--out", out)
    done = posters("shards", "build", *where)  # the column is found by its name, genre
    assert done.returncode == 0, done.stderr
    manifest = Manifest.read(out)
    rows = read_csv(real_large / "meta.csv")
    assert manifest.source["samples"] + sum(manifest.source["rejected"].values()) == len(rows)
    assert manifest.source["samples"] >= 0.95 * len(rows)
    sizes = [(row["width"], row["height"]) for tar in list_tars(out) for row in read_index(tar)[0].to_pylist()]
    assert max(map(min, sizes)) == 256 and max(map(max, sizes)) <= 512
    assert verify_shards(out)[1] == []
