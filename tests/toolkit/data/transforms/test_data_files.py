"""Users' own files: plain JPEGs as shards are seen, everything else upright on white, damage with its reason."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import UserError
from shards.inputs.images import ANY, decode
from toolkit.data.sources.errors import Undecodable
from toolkit.data.sources.image_files import FileSource
from toolkit.data.transforms.batch_transform import DecodedTransform, RawTransform
from toolkit.data.transforms.crops import eval_views
from toolkit.data.transforms.preprocessing import Preprocessing

MEAN = STD = (0.5, 0.5, 0.5)


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def poster(posters: Path) -> Image.Image:
    return Image.open(posters / "images" / "p00000.jpg").convert("RGB")


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("scale", [1, 4])
def test_a_plain_jpeg_is_seen_as_a_shard_sample(poster: Image.Image, fit: str, scale: int) -> None:
    large = poster.resize((poster.width * scale, poster.height * scale))
    data = encoded(large, quality=90)
    preprocessing = Preprocessing(32, 0.9, MEAN, STD, fit)
    ours = RawTransform(preprocessing)(data)
    views = eval_views(32, 0.9, np.array([large.width]), np.array([large.height]), fit)
    assert (ours == DecodedTransform(views).square(0, memoryview(bytearray(data)))).all()
    # and close to the slow reference
    assert np.abs(ours.astype(int) - preprocessing.square(decode(data, ANY))).mean() < 0.7


def test_others_are_upright_rgb_on_white(poster: Image.Image) -> None:
    preprocessing = Preprocessing(32, 1.0, MEAN, STD, "stretch")
    transform = RawTransform(preprocessing)
    expected = preprocessing.square(poster).astype(int)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise makes it upright
    turned = encoded(poster.rotate(90, expand=True), exif=exif, quality=95, subsampling=0)
    assert np.abs(transform(turned) - expected).mean() < 3
    assert np.abs(transform(encoded(poster, "PNG")) - expected).mean() < 0.7  # Pillow's resize
    glass = Image.new("RGBA", poster.size, (0, 0, 0, 0))
    assert (transform(encoded(glass, "PNG")) == 255).all()
    grey = transform(encoded(poster.convert("L"), quality=95))
    assert (grey[..., 0] == grey[..., 1]).all()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: b"", "not an image"),
        (lambda data: b"GIF89a and so on", "not an image"),
        (lambda data: data[:20], "truncated"),
    ],
)
def test_damage_has_a_reason(poster: Image.Image, spoil, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RawTransform(Preprocessing(32, 1.0, MEAN, STD))(spoil(encoded(poster)))


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    for mode, format in (("RGB", "JPEG"), ("L", "PNG")):
        data = encoded(Image.new(mode, (9000, 9000)), format)
        with pytest.raises(ValueError, match="decompression bomb"):
            RawTransform(Preprocessing(32, 1.0, MEAN, STD))(data)


def test_a_source_of_files(posters: Path) -> None:
    paths = sorted((posters / "images").glob("p0000*.jpg"))
    source = FileSource(paths)
    assert len(source) == len(paths) and bytes(source.read(2)) == paths[2].read_bytes()
    assert source.where(2) == str(paths[2])


def test_what_is_wrong_with_a_file_and_what_is_not(
    posters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is gone is a row's error; a disk that fails, or too many open files, is no file's."""
    monkeypatch.setattr("shards.storage.retry.PAUSES", (0.001, 0.001))
    monkeypatch.setattr("shards.storage.retry.LONGEST", 0.05)
    path = posters / "images" / "p00000.jpg"
    with pytest.raises(Undecodable, match="No such file"):
        FileSource([tmp_path / "gone.jpg"]).read(0)
    with pytest.raises(Undecodable, match="Is a directory"):
        FileSource([tmp_path]).read(0)
    real, fails = Path.read_bytes, [errno.EIO, errno.ESTALE]

    def failing(self: Path) -> bytes:
        if fails:
            number = fails.pop()
            raise OSError(number, os.strerror(number), str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert bytes(FileSource([path]).read(0)) == real(path)
    for number, words, status in (
        (errno.EIO, r"cannot be read on .*: \[Errno 5\] Input/output error \(tried for", 69),
        (errno.EMFILE, r"cannot be read on .*: \[Errno 24\] Too many open files; check", 2),
    ):
        fails[:] = [number] * 1000
        with pytest.raises(UserError, match=f"p00000.jpg {words}") as caught:
            FileSource([path]).read(0)
        assert caught.value.status == status
