"""A poster that cannot be cleaned is its own row of rejected.csv; what is wrong with all of them ends the run."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from failing import fails
from PIL import Image
from shard_tools import Source, build, draw, encoded, read_csv, samples, write_file
from text_tools import Bright, one_line_error, run_clean, titled_posters, write_meta

from shards.build.verify import verify_shards
from shards.errors import UserError
from shards.inputs.image_files import find_image
from shards.inputs.images import BadImage, blamed_on_the_picture
from shards.text.detector import Region
from shards.text.pipeline import TextRemoval
from shards.text.registry import make_fill
from shards.text.report import read_report


class Moody(Bright):
    """A detector that fails at pictures wider than 100 pixels, or with what it is given at all."""

    def __init__(self, limit: int = 100, error: Exception | None = None) -> None:
        super().__init__()
        self.limit, self.error = limit, error or RuntimeError("(-215:Assertion failed) dst.cols < SHRT_MAX")

    def detect(self, image: np.ndarray, index: int = 0) -> list[Region]:
        if image.shape[1] > self.limit:
            raise self.error
        return super().detect(image, index)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Moody:
    moody = Moody()
    monkeypatch.setattr("shards.text.pipeline._tools", lambda options: (moody, make_fill("surround", None)))
    return moody


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Seven small posters, and two wide ones among them."""
    made = titled_posters(tmp_path, 8, (96, 144))
    good = dict(made.good)
    for name in ("t0003", "wide"):
        write_file(made.images / f"{name}.jpg", encoded(draw(name, 140, 100)))
        good[name] = ("Drama",)
    return Source(made.images, write_meta(tmp_path, good), good, {})


def rejected(folder: Path) -> dict[str, tuple[str, str]]:
    return {row["id"]: (row["reason"], row["detail"]) for row in read_csv(folder / "rejected.csv")}


WHY = ("cannot be cleaned", "RuntimeError: (-215:Assertion failed) dst.cols < SHRT_MAX")


def test_clean_goes_on_without_them_and_tries_them_again(source: Source, detector: Moody, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run_clean(source, out, sheet=4)
    assert rejected(out) == {"t0003": WHY, "wide": WHY} and len(result.rows) == 7
    assert {row["id"] for row in result.rows} | {r.id for r in result.rejected} == set(source.good)
    assert find_image(out, "wide") is None and set(read_report(out)["id"]) == set(source.good) - {"t0003", "wide"}
    again = run_clean(source, out)  # of another detector of that name, perhaps
    assert again.cleaned_now == 9 and rejected(out) == {"t0003": WHY, "wide": WHY}
    detector.limit = 1000
    mended = run_clean(source, out)
    assert mended.cleaned_now == 9 and not rejected(out) and find_image(out, "wide") is not None
    assert run_clean(source, out).cleaned_now == 0
    detector.limit = 100
    (source.images / "wide.jpg").write_bytes(encoded(draw("another", 150, 100)))
    run_clean(source, out)
    assert find_image(out, "wide") is None  # not the one of the run before


@pytest.mark.parametrize("limit", [0, 90])
def test_a_detector_that_fails_at_all_ends_the_run(source: Source, detector: Moody, tmp_path: Path, limit: int) -> None:
    detector.limit = limit
    with fails("images-none", "none of 9 posters", "9 cannot be cleaned", WHY[1]):
        run_clean(source, tmp_path / "out")
    assert set(rejected(tmp_path / "out")) == set(source.good)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), UserError("model-damaged", "the model cannot be loaded")],
)
def test_what_is_no_posters_fault_ends_the_run(
    source: Source, detector: Moody, tmp_path: Path, error: Exception
) -> None:
    detector.error = error
    with pytest.raises(type(error)) as caught:
        run_clean(source, tmp_path / "out")
    assert str(error) in str(caught.value)


def test_a_poster_longer_than_a_jpeg_can_be(tmp_path: Path, detector: Moody) -> None:
    detector.limit = 100_000
    made = titled_posters(tmp_path, 3, (96, 144))
    write_file(made.images / "long.png", encoded(Image.new("RGB", (70_000, 40), "teal"), "PNG"))
    source = Source(made.images, write_meta(tmp_path, {**made.good, "long": ("Drama",)}), made.good, {})
    run_clean(source, tmp_path / "out")
    assert rejected(tmp_path / "out") == {
        "long": ("cannot be cleaned", "70000x40 pixels, but a JPEG has at most 65500 per side")
    }
    # A shard's copy of it is small.
    manifest = build(source, tmp_path / "shards", text=TextRemoval())
    assert manifest.source["samples"] == 4 and not rejected(tmp_path / "shards")


def test_building_goes_on_without_them(source: Source, detector: Moody, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    manifest = build(source, out, text=TextRemoval(), samples_per_shard=4)
    assert rejected(out) == {"t0003": WHY, "wide": WHY}
    kept = set(source.good) - {"t0003", "wide"}
    assert set(samples(out)) == set(read_report(out)["id"]) == kept
    assert manifest.source["samples"] == sum(shard.samples for shard in manifest.shards) == 7
    assert manifest.source["rejected"] == {"cannot be cleaned": 2}
    assert verify_shards(out, workers=1)[1] == []
    assert {path.name for path in out.glob("*.tar")} == {shard.name for shard in manifest.shards}
    # A tar whose index a kill kept from being written is this build's own.
    for path in out.glob("*.index.parquet"):
        path.unlink()
    assert build(source, out, text=TextRemoval(), samples_per_shard=4) == manifest


def test_building_ends_if_none_can_be_cleaned(source: Source, detector: Moody, tmp_path: Path) -> None:
    detector.limit = 0
    message = one_line_error(lambda: build(source, tmp_path / "out", text=TextRemoval(), samples_per_shard=4))
    assert message.startswith("none of 9 posters could be cleaned: 9 cannot be cleaned; ") and WHY[1] in message


def test_whose_fault_an_exception_is() -> None:
    pictures = (ValueError("x"), MemoryError(), OSError("encoder error -2"), IndexError(3))
    for fault in pictures:
        with pytest.raises(BadImage, match="why"), blamed_on_the_picture("why"):
            raise fault
    others = (OSError(errno.EIO, "disk"), UserError("device", "x"), KeyboardInterrupt(), BadImage("truncated"))
    for error in others:
        with pytest.raises(type(error)) as caught, blamed_on_the_picture("why"):
            raise error
        assert caught.value is error


def test_a_shard_of_none_but_such_posters_is_left_out(source: Source, detector: Moody, tmp_path: Path) -> None:
    manifest = build(source, tmp_path / "out", text=TextRemoval(), samples_per_shard=1)
    assert len(manifest.shards) == 7 and all(shard.samples == 1 for shard in manifest.shards)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 7 and verify_shards(tmp_path / "out", workers=1)[1] == []
    assert build(source, tmp_path / "out", text=TextRemoval(), samples_per_shard=1) == manifest
