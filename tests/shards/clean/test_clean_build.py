"""Shards of posters whose text is painted over on the way in, and shard sets with the splits of another."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from shard_tools import (
    Source,
    build,
    build_command,
    draw_posters,
    encoded,
    mtimes,
    only_error,
    read_csv,
    samples,
    tree,
    write_file,
)
from text_tools import QUICK, gradient, one_line_error, poster, titled_posters, write_meta

from shards.build import pack, planning
from shards.build.planning import splits_like
from shards.build.split import SPLITS
from shards.build.verify import verify_shards
from shards.clean.run import CleanOptions, clean_posters
from shards.dataset.manifest import Manifest, Shard
from shards.errors import UserError
from shards.inputs.images import ImageOptions, decode, shrunk
from shards.text.masks import MaskOptions
from shards.text.pipeline import TextRemoval, clean_image
from shards.text.report import NAME as REPORT
from shards.text.report import read_report

pytest_plugins = ("shard_fixtures",)
Command = Callable[..., tuple[int, str, str]]

TEXT = TextRemoval(QUICK)
SMALL = ImageOptions(short_side=80, long_side=160)


@pytest.fixture(scope="module")
def titled(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Nine posters with titles, and one without that fits into a shard as it is. Read-only."""
    folder = tmp_path_factory.mktemp("titled")
    made = titled_posters(folder, 9)
    write_file(made.images / "dull.jpg", encoded(gradient(80, 120, "dull")))
    good = {**made.good, "dull": ("Comedy",)}
    return Source(made.images, write_meta(folder, good), good, {})


@pytest.fixture(scope="module")
def cleaned_set(titled: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its shards, four posters each, without text. Read-only."""
    out = tmp_path_factory.mktemp("built") / "shards"
    build(titled, out, text=TEXT, image=SMALL, samples_per_shard=4)
    return out


@pytest.fixture
def some(tmp_path: Path) -> Source:
    """Eight posters that a test may spoil."""
    return titled_posters(tmp_path, 8, (96, 144))


def build_text(source: Source, out: Path, **options: object) -> Manifest:
    return build(source, out, **{"text": TEXT, "samples_per_shard": 4, **options})


def test_pixels_are_those_of_cleaning_then_shrinking_with_one_encoding(titled: Source, cleaned_set: Path) -> None:
    for sample_id, sample in samples(cleaned_set).items():
        raw = (titled.images / f"{sample_id}.jpg").read_bytes()
        cleaned = clean_image(sample_id, decode(raw, ImageOptions()), TEXT)
        if sample_id == "dull":
            assert sample["image"] == raw and not cleaned.painted
        else:
            assert sample["image"] == shrunk(cleaned.image, SMALL).data, sample_id
        with Image.open(io.BytesIO(sample["image"])) as image:
            assert image.size == (80, 120)
            assert np.asarray(image).max() < 190, "the letters are gone"


def test_cleaning_first_gives_nearly_the_same_set(titled: Source, cleaned_set: Path, tmp_path: Path) -> None:
    """But for the second JPEG generation."""
    clean_posters(CleanOptions(titled.images, tmp_path / "cleaned", metadata=titled.csv, text=TEXT, sheet=0, workers=1))
    twice = Source(tmp_path / "cleaned", titled.csv, titled.good, {})
    build(twice, tmp_path / "shards", image=SMALL)
    one, two = samples(cleaned_set), samples(tmp_path / "shards")
    assert one.keys() == two.keys()
    for sample_id in one:
        left, right = (np.asarray(Image.open(io.BytesIO(s[sample_id]["image"]))).astype(int) for s in (one, two))
        assert np.abs(left - right).mean() < 1.5, sample_id


def untimed(folder: Path) -> dict[str, str]:
    """The files whose bytes do not depend on how long cleaning took."""
    return {n: d for n, d in tree(folder).items() if n != REPORT and not n.endswith(".cleaning.json")}


def test_the_set_says_how_its_text_was_removed(titled: Source, cleaned_set: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(cleaned_set)
    assert manifest.packing["text_removal"] == TEXT.facts() == json.loads(json.dumps(TEXT.facts()))
    report = read_report(cleaned_set)
    assert sorted(report["id"]) == sorted(titled.good) and report.attrs["text_removal"] == TEXT.facts()
    rows = report.set_index("id")
    assert rows.loc["dull", "passes"] == 0 and (rows.drop("dull")["altered"] > 0.05).all()
    assert (rows["text_after"] == 0).all() and (rows.drop("dull")["width"] == 160).all()  # of the raw poster
    assert verify_shards(cleaned_set, 1)[1] == [] and not (cleaned_set / ".work").exists()
    build(titled, tmp_path / "raw", image=SMALL)
    assert Manifest.read(tmp_path / "raw").packing["text_removal"] is None
    assert not (tmp_path / "raw" / REPORT).exists()


def test_the_command_line_with_two_workers_writes_the_same_bytes(
    titled: Source, cleaned_set: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    options = ("--text-removal", "--scales", "256", "--short-side", "80", "--long-side", "160", "--workers", "2")
    status, _, error = command(*build_command(titled, out, *options), "--samples-per-shard", "4")
    assert status == 0, error
    assert untimed(out) == untimed(cleaned_set)
    one, two = (read_report(folder).drop(columns="seconds") for folder in (out, cleaned_set))
    assert one.map(repr).equals(two.map(repr))


def test_a_second_build_does_nothing(titled: Source, cleaned_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(cleaned_set, out)
    before, times = tree(out), mtimes(out)
    build(titled, out, text=TEXT, image=SMALL, samples_per_shard=4)
    assert tree(out) == before and mtimes(out) == times


def test_a_lost_shard_is_cleaned_again(titled: Source, cleaned_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(cleaned_set, out)
    before, times = untimed(out), mtimes(out)
    (out / "train-00000.tar").unlink()
    build(titled, out, text=TEXT, image=SMALL, samples_per_shard=4)
    assert untimed(out) == before
    assert [name for name, time in mtimes(out).items() if times[name] != time] == ["train-00000.tar"]


@pytest.mark.parametrize(
    "other",
    [None, TextRemoval(QUICK, MaskOptions(margin=0.3)), TextRemoval(QUICK, fill="ns"), TextRemoval(QUICK, passes=1)],
    ids=["none", "margin", "fill", "passes"],
)
def test_another_way_to_remove_text_is_another_set(
    titled: Source, cleaned_set: Path, tmp_path: Path, other: TextRemoval | None
) -> None:
    out = tmp_path / "out"
    shutil.copytree(cleaned_set, out)
    before = tree(out)
    message = one_line_error(lambda: build(titled, out, text=other, image=SMALL, samples_per_shard=4))
    assert "--overwrite" in message and tree(out) == before


def test_overwriting_changes_pixels_and_report(titled: Source, cleaned_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(cleaned_set, out)
    wide = TextRemoval(QUICK, MaskOptions(margin=0.5))
    build(titled, out, text=wide, image=SMALL, samples_per_shard=4, overwrite=True)
    assert Manifest.read(out).packing["text_removal"]["margin"] == 0.5
    assert read_report(out).attrs["text_removal"]["margin"] == 0.5
    one, two = samples(cleaned_set), samples(out)
    assert {i for i in one if one[i]["image"] != two[i]["image"]} == set(titled.good) - {"dull"}


def test_overwriting_with_raw_posters_takes_the_report_away(some: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_text(some, out)
    build_text(some, out, text=None, overwrite=True)
    assert Manifest.read(out).packing["text_removal"] is None and not (out / REPORT).exists()


def test_a_set_that_grows_reports_the_new_posters_too(some: Source, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    build(some, model, samples_per_shard=4, fractions=(0.5, 0.25, 0.25))
    new = next(i for i, s in samples(model).items() if s["split"] == "train")
    rest = {i: g for i, g in some.good.items() if i != new}
    build_text(Source(some.images, write_meta(tmp_path, rest), rest, {}), out, split_like=model)
    times = mtimes(out)
    write_meta(tmp_path, some.good)
    build_text(some, out, split_like=model, overwrite=True)
    assert any(times[name] == time for name, time in mtimes(out).items() if name in times), "some were kept"
    assert set(samples(out)) == set(some.good)
    assert set(read_report(out)["id"]) == set(some.good)


def test_a_refused_build_between_a_kill_and_its_restart(some: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_in_the_middle(some, out)
    assert list(out.glob("*.cleaning.json"))
    one_line_error(lambda: build_text(some, out, text=TextRemoval(QUICK, passes=1)))
    build_text(some, out)
    assert set(samples(out)) == set(some.good)
    assert set(read_report(out)["id"]) == set(some.good)


def stop_in_the_middle(source: Source, out: Path) -> None:
    """Leave what a build leaves that ends after its first shard."""
    calls = []
    real = pack.clean_image

    def until_five(*arguments: object) -> object:
        calls.append(1)
        if len(calls) > 5:
            raise UserError("tasks-failed", "killed here")
        return real(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "clean_image", until_five)
        assert one_line_error(lambda: build_text(source, out)) == "killed here"
    assert list(out.glob("*.index.parquet")) and not (out / "manifest.json").exists()


def test_a_build_that_was_stopped_ends_as_if_it_was_not(some: Source, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    build_text(some, whole)
    stop_in_the_middle(some, out)
    kept = {path.name for path in out.glob("*.tar") if path.with_suffix(".index.parquet").exists()}
    times = mtimes(out)
    build_text(some, out)
    assert kept and all(mtimes(out)[name] == times[name] for name in kept)
    assert untimed(out) == untimed(whole)
    assert list(read_report(out)["id"]) == list(read_report(whole)["id"])


# --- splits like another set's


@pytest.fixture(scope="module")
def model_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Path]:
    """Thirty posters and their shards. Read-only."""
    folder = tmp_path_factory.mktemp("model")
    source = draw_posters(folder, 30)
    build(source, folder / "shards", fractions=(0.5, 0.25, 0.25), seed=4)
    return source, folder / "shards"


def splits_of(folder: Path) -> dict[str, str]:
    return {sample_id: sample["split"] for sample_id, sample in samples(folder).items()}


def test_common_posters_keep_their_splits_whatever_the_seed(
    model_set: tuple[Source, Path], tmp_path: Path, command: Command
) -> None:
    source, model = model_set
    options = ("--split-like", model, "--seed", 9, "--splits", "0.1,0.1,0.8", "--workers", 1)
    status, _, error = command(*build_command(source, tmp_path / "out", *options))
    assert status == 0, error
    assert splits_of(tmp_path / "out") == splits_of(model)
    assert set(splits_of(model).values()) == set(SPLITS)
    build(source, tmp_path / "other", seed=9, fractions=(0.1, 0.1, 0.8))
    assert splits_of(tmp_path / "other") != splits_of(model)


def test_new_posters_go_to_train_and_copies_to_their_original(
    model_set: tuple[Source, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, model = model_set
    images = tmp_path / "images"
    shutil.copytree(source.images, images)
    splits = splits_of(model)
    held = {split: next(i for i, s in splits.items() if s == split) for split in SPLITS}
    good = dict(source.good)
    del good[next(i for i, s in splits.items() if s == "val" and i not in held.values())]
    for split, original in held.items():
        shutil.copy(images / f"{original}.jpg", images / f"copy-{split}.jpg")
        good[f"copy-{split}"] = ("Drama",)
    for name in ("new", "newer"):
        write_file(images / f"{name}.jpg", encoded(poster(name)))
        good[name] = ("Drama",)
    # the copies come first in the CSV
    ordered = dict(sorted(good.items(), key=lambda item: item[0].startswith("p")))
    more = Source(images, write_meta(tmp_path, ordered), ordered, {})
    with caplog.at_level("INFO"):
        build(more, tmp_path / "out", split_like=model)
    found = splits_of(tmp_path / "out")
    assert set(found) == set(good)
    assert {i: found[i] for i in good if i in splits} == {i: splits[i] for i in good if i in splits}
    assert {i: found[i] for i in good if i not in splits} == {
        **{f"copy-{split}": split for split in SPLITS},
        "new": "train",
        "newer": "train",
    }
    assert "5 posters are not in" in caplog.text
    together = {row["group"]: row["split"] for row in read_csv(tmp_path / "out" / "duplicates.csv")}
    assert len(together) == 3


def test_text_removal_keeps_the_splits_of_the_raw_set(some: Source, tmp_path: Path) -> None:
    """What an audit compares: the same posters in test, with and without text."""
    build(some, tmp_path / "raw", fractions=(0.5, 0.25, 0.25), seed=3)
    build_text(some, tmp_path / "cleaned", split_like=tmp_path / "raw")
    assert splits_of(tmp_path / "cleaned") == splits_of(tmp_path / "raw")


def test_no_common_poster_is_one_line(
    model_set: tuple[Source, Path], some: Source, tmp_path: Path, command: Command
) -> None:
    _, model = model_set
    status, _, error = command(*build_command(some, tmp_path / "out", "--split-like", model, "--workers", 1))
    assert status == 2
    assert "no poster of this build is in" in only_error(error) and str(model) in error
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_set_with_a_poster_in_two_splits_is_no_model(
    model_set: tuple[Source, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model = model_set
    real = planning.read_index_of

    def twice(root: Path, shard: Shard) -> pa.Table:
        table = real(root, shard)
        return table.set_column(table.column_names.index("id"), "id", [["p0000"] * len(table)])

    monkeypatch.setattr(planning, "read_index_of", twice)
    message = one_line_error(lambda: build(source, tmp_path / "out", split_like=model))
    assert "has sample 'p0000' in train and in val" in message


def test_no_shard_set_to_be_like_is_one_line(some: Source, tmp_path: Path) -> None:
    assert "absent" in one_line_error(lambda: build(some, tmp_path / "out", split_like=tmp_path / "absent"))


def test_unequal_lengths_are_no_splits(model_set: tuple[Source, Path]) -> None:
    with pytest.raises(ValueError, match="zip"):
        splits_like(model_set[1], ["p0000"], np.arange(2))
