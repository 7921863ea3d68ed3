"""Sample weights from the table of a build to the shard set: --weight-column."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from failing import fails
from foreign_tars import adopt, pack
from shard_tools import Source, build, draw_posters, read_csv, write_csv

from shards.build.tar_samples import read_members
from shards.build.verify import verify_shards
from shards.cli.main import render_info
from shards.console import console
from shards.dataset.index import WEIGHTED_SCHEMA, index_path, list_tars, read_index, write_index
from shards.dataset.manifest import Manifest
from shards.dataset.sample_table import map_sample_table, open_sample_table
from shards.tables.metadata import GenreOptions, read_metadata
from shards.tables.table import SampleColumns
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.sources.shard_set import ShardSet

WEIGHTS = SampleColumns(weight_column="weight")


def weighted_source(folder: Path, count: int = 40) -> tuple[Source, dict[str, float]]:
    """Posters, and a table with a column of weights. Return them, and the weight of each id."""
    source = draw_posters(folder, count)
    weights = {row["id"]: 0.25 * (1 + number % 7) for number, row in enumerate(read_csv(source.csv))}
    rows = [(*row.values(), weights[row["id"]]) for row in read_csv(source.csv)]
    write_csv(source.csv, rows, ("id", "title", "year", "genre", "weight"))
    return source, weights


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Source, dict[str, float]]:
    folder = tmp_path_factory.mktemp("weighted")
    source, weights = weighted_source(folder)
    build(source, folder / "set", weight_column="weight")
    return folder / "set", source, weights


def test_every_part_of_a_set_has_the_weights_of_the_table(weighted: tuple[Path, Source, dict[str, float]]) -> None:
    out, _, weights = weighted
    manifest = Manifest.read(out)
    assert manifest.weighted and manifest.source["weight_column"] == "weight"
    shown = io.StringIO()
    render_info(manifest, console(shown, 200))
    assert "sample weights  from column 'weight' of the table" in shown.getvalue()
    assert json.loads((out / "manifest.json").read_text())["format"] == 2
    found: dict[str, float] = {}
    for tar in list_tars(out):
        table = read_index(tar)[0]
        with open(tar, "rb") as stream:
            for member, row in zip(read_members(tar), table.to_pylist(), strict=True):
                stream.seek(member.json_offset)
                assert json.loads(stream.read(member.json_size))["weight"] == row["weight"]
                found[row["id"]] = row["weight"]
    assert found == weights
    for split in manifest.split_names:
        reader = ShardReader.of_split(out, split)
        assert reader.weights is not None and reader.weights.tolist() == [weights[i] for i in reader.sample_ids()]
        assert reader.weights_of(np.array([2, 0])).tolist() == reader.weights[[2, 0]].tolist()
    frame = ShardSet(out).to_pandas()
    assert dict(zip(frame["id"], frame["weight"], strict=True)) == weights
    assert verify_shards(out, workers=1)[1] == []


def test_a_set_without_weights_stays_as_it_was(tmp_path: Path) -> None:
    source = draw_posters(tmp_path, 20)
    manifest = build(source, tmp_path / "set")
    raw = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert raw["format"] == 1 and not manifest.weighted and "weight" not in json.dumps(raw)
    assert ShardReader.of_split(tmp_path / "set", "train").weights is None
    assert "weight" not in read_index(list_tars(tmp_path / "set")[0])[0].column_names


def test_a_build_with_other_weights_is_another_build(weighted: tuple[Path, Source, dict[str, float]]) -> None:
    out, source, _ = weighted
    before = (out / "manifest.json").read_bytes()
    build(source, out, weight_column="weight")  # the same build again
    with fails("path-exists", out):
        build(source, out, weight_column="year")
    with fails("path-exists", out):
        build(source, out)
    assert (out / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("", "no weight"),
        ("nan", "no weight"),
        ("heavy", "bad weight"),
        ("0,5", "bad weight"),
        ("0", "bad weight"),
        ("-1", "bad weight"),
        ("inf", "bad weight"),
        ("1e9", "bad weight"),
    ],
)
def test_a_row_without_a_usable_weight_is_rejected(tmp_path: Path, cell: str, reason: str) -> None:
    rows = [("a", "['War']", "1"), ("b", "['War', 'Drama']", cell), ("c", "['Drama']", "2e0")]
    found = read_metadata(
        write_csv(tmp_path / "m.csv", rows, ("id", "genre", "weight")), GenreOptions(), strict=False, others=WEIGHTS
    )
    assert [(row.id, row.weight) for row in found.rows] == [("a", 1.0), ("c", 2.0)]
    assert [(r.id, r.reason) for r in found.rejected] == [("b", reason)]
    assert "line 3" in found.rejected[0].detail and "weights in column 2 'weight'" in found.reading


def test_rows_of_a_poster_need_one_weight(tmp_path: Path) -> None:
    rows = [(f"p{n}", genre, 1) for n in range(9) for genre in ("War", "Drama")] + [("x", "War", 1), ("x", "Drama", 2)]
    found = read_metadata(
        write_csv(tmp_path / "m.csv", rows, ("id", "genre", "weight")), GenreOptions(), strict=False, others=WEIGHTS
    )
    assert len(found.rows) == 9 and {row.weight for row in found.rows} == {1.0}
    assert [(r.id, r.reason) for r in found.rejected] == [("x", "conflicting rows")] * 2
    assert "weights" in found.rejected[0].detail


@pytest.mark.parametrize(("cell", "reason"), [("", "no weight"), ("0,5", "bad weight")])
def test_a_poster_does_not_lose_the_genre_of_a_row_without_a_usable_weight(
    tmp_path: Path, cell: str, reason: str
) -> None:
    rows = [(f"p{n}", genre, "1") for n in range(9) for genre in ("War", "Drama")]
    rows += [("x", "War", cell), ("x", "Drama", "1")]
    found = read_metadata(
        write_csv(tmp_path / "m.csv", rows, ("id", "genre", "weight")), GenreOptions(), strict=False, others=WEIGHTS
    )
    assert "x" not in {row.id for row in found.rows} and len(found.rows) == 9
    assert [(r.id, r.reason) for r in found.rejected] == [("x", reason), ("x", "conflicting rows")]
    assert "line 20" in found.rejected[1].detail


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"weight_column": "id"}, ["0 'id'", "ids and weights", "--id-column or --weight-column"]),
        ({"weight_column": "2", "split_column": "use"}, ["2 'use'", "weights and splits", "--split-column"]),
        ({"weight_column": "genre"}, ["1 'genre'", "the column of weights", "--weight-column"]),
        ({"group_column": "genre"}, ["1 'genre'", "the column of groups", "--group-column"]),
    ],
)
def test_a_column_has_one_use(tmp_path: Path, columns: dict[str, str], words: list[str]) -> None:
    path = write_csv(tmp_path / "m.csv", [("1", "War", 1), ("2", "Drama", 2)], ("id", "genre", "use"))
    with fails("table-column", path, *words):
        read_metadata(path, GenreOptions(), strict=False, others=SampleColumns(**columns))


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "m.csv", [("a", "War", 1)], ("id", "genre", "weight"))
    with fails("table-column", path, "wieght", "did you mean", "--weight-column"):
        read_metadata(path, GenreOptions(), strict=False, others=SampleColumns(weight_column="wieght"))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), None])
def test_an_index_with_another_weight_is_damaged(
    weighted: tuple[Path, Source, dict[str, float]], tmp_path: Path, value: Any
) -> None:
    tar = list_tars(weighted[0])[0]
    table, facts = read_index(tar)
    column = pa.array([value, *table["weight"].to_pylist()[1:]], pa.float64())
    write_index(tmp_path / tar.name, table.set_column(table.num_columns - 1, "weight", column), facts)
    with fails("set-damaged", index_path(tmp_path / tar.name), "'weight'"):
        read_index(tmp_path / tar.name)


def test_weights_that_differ_between_the_files_of_a_set_are_found(tmp_path: Path) -> None:
    source, _ = weighted_source(tmp_path, 20)
    manifest = build(source, out := tmp_path / "set", weight_column="weight")
    tar = list_tars(out)[0]
    table, facts = read_index(tar)
    doubled = pa.array([2 * weight for weight in table["weight"].to_pylist()], pa.float64())
    write_index(
        tar, pa.table(table.set_column(table.num_columns - 1, "weight", doubled), schema=WEIGHTED_SCHEMA), facts
    )
    problems = "\n".join(verify_shards(out, workers=1)[1])
    assert "its index changed" in problems and "its samples differ between" in problems
    assert "its sample weight differs from the weight in the index" in problems
    # A set whose manifest says nothing of weights does not take indexes with weights, and the other way round.
    with fails("set-other", "sample weights, but the set has none"):
        manifest.write_tables(out, weighted=False)


def test_a_table_of_samples_must_have_the_layout_of_the_manifest(
    weighted: tuple[Path, Source, dict[str, float]],
) -> None:
    out = weighted[0]
    manifest = Manifest.read(out)
    table, genres = manifest.tables["train"], len(manifest.genres)
    samples = sum(shard.samples for shard in manifest.of_split("train"))
    path = out / table.name
    other = type(table)(table.name, table.bytes, table.sha256)
    with open_sample_table(path) as stream, fails("set-damaged", path, "layout"):
        map_sample_table(stream, path, other, samples, genres)


def tars_only(set_: Path, out: Path) -> Path:
    out.mkdir(exist_ok=True)
    for tar in list_tars(set_):
        shutil.copy(tar, out)
    return out


def test_tars_of_a_weighted_set_keep_their_weights_in_a_new_index(
    weighted: tuple[Path, Source, dict[str, float]], tmp_path: Path
) -> None:
    folder, weights = tars_only(weighted[0], tmp_path / "tars"), weighted[2]
    manifest = adopt(folder)
    assert manifest.weighted and verify_shards(folder, workers=1)[1] == []
    frame = ShardSet(folder).to_pandas()
    assert dict(zip(frame["id"], frame["weight"], strict=True)) == weights
    shown = io.StringIO()
    render_info(manifest, console(shown, 200))
    assert "sample weights  from the JSON of each sample" in shown.getvalue()
    assert adopt(folder).fingerprint == manifest.fingerprint  # the indexes are kept
    tar = list_tars(folder)[0]
    table, facts = read_index(tar)
    column = pa.array([9.0, *table["weight"].to_pylist()[1:]], pa.float64())
    write_index(tar, table.set_column(table.num_columns - 1, "weight", column), facts)
    assert any("sample weight differs" in problem for problem in verify_shards(folder, workers=1)[1])


def test_tars_with_and_without_weights_are_not_mixed(
    weighted: tuple[Path, Source, dict[str, float]], tmp_path: Path
) -> None:
    folder = tars_only(weighted[0], tmp_path / "tars")
    pack(folder / "more.tar", "x y", x={"genres": ["War"]}, y={"genres": ["War"]})
    with fails("set-other", "more.tar", "have none", "index them in separate folders"):
        adopt(folder)
    assert not (folder / "manifest.json").exists()


def test_the_field_weight_of_other_tools_is_not_a_sample_weight(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", "x y", x={"genres": ["War"], "weight": 80}, y={"genres": ["Drama"], "weight": "heavy"})
    assert not adopt(tmp_path).weighted
