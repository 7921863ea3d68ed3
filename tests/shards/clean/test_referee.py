"""The referee finds text that is there, none where it is gone, and its figures are right."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_tools import Source, encoded, only_error, write_file
from text_tools import LOOKS, gradient, one_line_error, poster, titled_posters, write_meta, write_words

from shards.clean.run import CleanOptions, clean_posters
from shards.clean.verify import CLEAN_ENOUGH, RefereeOptions, compare_text, summary, text_area
from shards.errors import UserError
from shards.inputs.images import ImageOptions
from shards.text.detector import DetectorOptions
from shards.text.pipeline import TextRemoval
from shards.text.report import NAME as REPORT
from shards.text.report import SCHEMA, read_report, write_report

pytest_plugins = ("shard_fixtures",)
Command = Callable[..., tuple[int, str, str]]

QUICK_LOOK = RefereeOptions(side=384)


@pytest.fixture(scope="module")
def titled(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Two posters with titles, one in a folder of its own. Read-only."""
    folder = tmp_path_factory.mktemp("titled")
    made = titled_posters(folder, 1)
    write_file(made.images / "sub" / "x.jpg", encoded(poster("sub")))
    good = {**made.good, "sub/x": ("Drama",)}
    return Source(made.images, write_meta(folder, good), good, {})


@pytest.fixture(scope="module")
def cleaned(titled: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cleaned with two looks. Read-only."""
    out = tmp_path_factory.mktemp("cleaned") / "out"
    text = TextRemoval(DetectorOptions(scales=(*LOOKS, (416,))))
    clean_posters(CleanOptions(titled.images, out, metadata=titled.csv, text=text, sheet=0, workers=1))
    return out


def test_text_that_is_there_is_found() -> None:
    image = gradient(160, 240, 3)
    ink = write_words(image, "MIDNIGHT", (80, 60), 24)
    area = text_area(np.asarray(image), QUICK_LOOK)
    assert area.shape == (240, 160) and area[ink].mean() > 0.9 and area.mean() < 0.3
    assert not area[120:].any()
    assert not text_area(np.asarray(gradient(160, 240, 3)), QUICK_LOOK).any()


def test_cleaned_posters_pass(titled: Source, cleaned: Path) -> None:
    found = compare_text(titled.images, cleaned, RefereeOptions(side=768), workers=1)
    assert (found["posters"], found["posters_with_text"]) == (2, 2)
    assert found["text_before_mean"] > 0.05 and found["text_after_of_before"] < 0.05
    assert found["clean_enough"] == 1.0
    report = read_report(cleaned)
    assert found["altered_median"] == pytest.approx(report["altered"].median())
    assert found["seconds_mean"] == pytest.approx(report["seconds"].mean())
    assert found["cleaning"] == report.attrs["text_removal"]
    assert found["referee"]["side"] == 768 and found["referee"]["anchor"] is True
    json.dumps(found)


def test_a_poster_that_was_not_cleaned_fails(titled: Source, cleaned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(cleaned, out)
    shutil.copy(titled.images / "sub" / "x.jpg", out / "sub" / "x.jpg")
    found = compare_text(titled.images, out, QUICK_LOOK, workers=1)
    assert found["clean_enough"] == 0.5 and found["text_after_of_before"] > 0.3
    assert found["worst"][0]["id"] == "sub/x"
    assert found["worst"][0]["before"] == found["worst"][0]["after"] > 0.05


def test_the_command(titled: Source, cleaned: Path, tmp_path: Path, command: Command) -> None:
    options = ("--images", titled.images, "--cleaned", cleaned, "--side", 384, "--workers", 1)
    status, said, error = command("referee", *options, "--json", tmp_path / "found.json")
    assert status == 0, error
    assert "2, 2 with text" in said and "100.0% of posters keep 10%" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == json.loads(json.dumps(compare_text(titled.images, cleaned, QUICK_LOOK, workers=1)))
    status, _, error = command("referee", *options, "--sample", -1)
    assert status == 2 and "--sample" in only_error(error)
    status, _, error = command("referee", *options, "--side", 10)
    assert status == 2 and "--side" in only_error(error)
    status, _, error = command("referee", *options, "--region-threshold", 1)
    assert status == 2 and "--region-threshold" in only_error(error)


def test_the_sample_depends_on_ids_alone(titled: Source, cleaned: Path, tmp_path: Path) -> None:
    first = compare_text(titled.images, cleaned, QUICK_LOOK, sample=1, workers=1)
    assert first["posters"] == 1
    report = read_report(cleaned)
    rows: list[dict[str, Any]] = report.to_dict("records")  # type: ignore[assignment]
    turned = tmp_path / "turned"
    shutil.copytree(cleaned, turned)
    write_report(turned / REPORT, rows[::-1], report.attrs["text_removal"])
    assert list(read_report(turned)["id"]) == list(report["id"])[::-1]
    assert compare_text(titled.images, turned, QUICK_LOOK, sample=1, workers=1) == first
    assert compare_text(titled.images, cleaned, QUICK_LOOK, sample=9, workers=1)["posters"] == 2


def test_what_cannot_be_judged_is_one_line(titled: Source, cleaned: Path, tmp_path: Path) -> None:
    with fails("path-missing", tmp_path / "absent"):
        compare_text(tmp_path / "absent", cleaned, QUICK_LOOK, workers=1)
    with fails("path-missing", titled.images / REPORT, "`posters clean`"):
        compare_text(titled.images, titled.images, QUICK_LOOK, workers=1)
    write_report(tmp_path / REPORT, [], {})
    with fails("images-none", tmp_path):
        compare_text(titled.images, tmp_path, QUICK_LOOK, workers=1)
    out = tmp_path / "out"
    shutil.copytree(cleaned, out)
    (out / "t0000.jpg").unlink()
    message = one_line_error(lambda: compare_text(titled.images, out, QUICK_LOOK, workers=1))
    assert "poster t0000" in message and str(out) in message and "missing file" in message


def test_small_posters_that_were_cleaned_are_judged(tmp_path: Path) -> None:
    write_file(tmp_path / "images" / "small.jpg", encoded(gradient(24, 36)))
    meta = write_meta(tmp_path, {"small": ("Drama",)})
    text, small = TextRemoval(DetectorOptions(scales=LOOKS)), ImageOptions(min_side=16)
    clean_posters(
        CleanOptions(tmp_path / "images", tmp_path / "out", metadata=meta, image=small, text=text, sheet=0, workers=1)
    )
    assert compare_text(tmp_path / "images", tmp_path / "out", QUICK_LOOK, workers=1)["posters"] == 1


# --- figures


shares = st.one_of(st.just(0.0), st.floats(1e-6, 1))
posters_found = st.lists(st.tuples(st.text(max_size=4), shares, shares), min_size=1, max_size=30)


@settings(max_examples=80, deadline=None)
@given(posters_found)
def test_findings_add_up(found: list[tuple[str, float, float]]) -> None:
    figures = summary(found)
    before, after = [row[1] for row in found], [row[2] for row in found]
    assert figures["posters"] == len(found)
    assert figures["posters_with_text"] == sum(share > 0 for share in before)
    assert figures["text_before_mean"] == pytest.approx(sum(before) / len(found))
    assert figures["text_after_mean"] == pytest.approx(sum(after) / len(found))
    if sum(before):
        assert figures["text_after_of_before"] == pytest.approx(sum(after) / sum(before))
    passed = [now <= CLEAN_ENOUGH * was for was, now in zip(before, after, strict=True)]
    assert figures["clean_enough"] == pytest.approx(sum(passed) / len(found))
    worst = [row["after"] for row in figures["worst"]]
    assert worst == sorted((share for share in after if share > 0), reverse=True)[:20]
    json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize(
    ("before", "after", "passes"),
    [(0.0, 0.0, True), (0.0, 0.001, False), (0.5, 0.0, True), (0.5, 0.05, True), (0.5, 0.06, False)],
)
def test_clean_enough(before: float, after: float, passes: bool) -> None:
    figures = summary([("a", before, after)])
    assert figures["clean_enough"] == float(passes)
    assert figures["text_after_of_before"] == (after / before if before else 0.0)


def report_bytes(table: pa.Table, facts: bytes = b"{}") -> bytes:
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({b"text_removal": facts}), out)
    return out.getvalue()


def test_a_report_with_values_that_none_has_is_one_line(tmp_path: Path) -> None:
    row: dict[str, Any] = {name: [] if pa.types.is_list(SCHEMA.field(name).type) else 1 for name in SCHEMA.names}
    good = pa.Table.from_pylist([{**row, "id": "a", "fill": "flat"}], schema=SCHEMA)
    path = tmp_path / REPORT
    path.write_bytes(report_bytes(good))
    assert list(read_report(tmp_path)["id"]) == ["a"]
    at = SCHEMA.get_field_index("width")
    for bad in (
        report_bytes(good.set_column(at, "width", pa.array(["wide"]))),
        report_bytes(good.set_column(at, SCHEMA.field("width"), pa.array([None], pa.int32()))),
        report_bytes(good, b"[]"),
        report_bytes(good, b"{"),
        b"PAR1",
    ):
        path.write_bytes(bad)
        with pytest.raises(UserError) as caught:
            read_report(tmp_path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
