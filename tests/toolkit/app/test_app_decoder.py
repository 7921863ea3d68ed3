"""Uploaded files are decoded in processes that can be killed."""

from __future__ import annotations

import io
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from failing import fails
from PIL import Image

from toolkit.app import decoder as app_decoder
from toolkit.app.decoder import SHOWN_SIDE, Decoder, Opened, Refused
from toolkit.data.transforms.batch_transform import RawTransform
from toolkit.data.transforms.preprocessing import Preprocessing

OURS = Preprocessing(64, 0.9, (0.5,) * 3, (0.5,) * 3)
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(OURS)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((1200, 1800)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A file that no decoder finishes: reading it waits for somebody who writes."""
    os.mkfifo(tmp_path / "endless.jpg")
    return tmp_path / "endless.jpg"


def test_what_is_kept_is_small_and_what_the_model_sees_is_exact(decoder: Decoder, picture: Path):
    (found,) = decoder.open([picture])
    assert isinstance(found, Opened)
    assert found.size == (1200, 1800) and len(found.jpeg) < 200_000
    np.testing.assert_array_equal(found.square, RawTransform(OURS)(picture.read_bytes()))
    assert max(Image.open(io.BytesIO(found.jpeg)).size) == SHOWN_SIDE


def test_a_file_that_takes_long_is_refused_and_the_others_go_on(
    decoder: Decoder, picture: Path, endless: Path, monkeypatch: pytest.MonkeyPatch
):
    decoder.open([picture])  # the server of processes is there now
    monkeypatch.setattr(app_decoder, "FILE_SECONDS", 1.0)
    found = decoder.open([picture, endless, picture])
    assert [type(item) for item in found] == [Opened, Refused, Opened]
    assert found[1] == Refused("endless.jpg", "decoding took more than 1 s, or too much memory")


def test_an_upload_has_an_end(decoder: Decoder, endless: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app_decoder, "FILE_SECONDS", 0.5)
    monkeypatch.setattr(app_decoder, "UPLOAD_SECONDS", 1.0)
    start = time.monotonic()
    found = decoder.open([endless] * 30)
    assert time.monotonic() - start < 10
    assert isinstance(found[-1], Refused) and "earlier files of the upload took too long" in found[-1].message


def test_one_visitors_slow_file_does_not_hold_up_another(
    decoder: Decoder, picture: Path, endless: Path, monkeypatch: pytest.MonkeyPatch
):
    decoder.open([picture])
    monkeypatch.setattr(app_decoder, "FILE_SECONDS", 3.0)
    ended = threading.Event()

    def visit() -> None:
        decoder.open([endless])
        ended.set()

    slow = threading.Thread(target=visit)
    slow.start()
    (found,) = decoder.open([picture])
    assert isinstance(found, Opened) and not ended.is_set()
    slow.join()


def test_a_decoder_that_dies_is_a_refused_file(decoder: Decoder, picture: Path, monkeypatch: pytest.MonkeyPatch):
    (found,) = decoder._results([(_die, picture, None)])
    assert found == Refused("a.png", "decoding took more than 10 s, or too much memory")


def _die(path: Path, argument: None) -> None:
    os._exit(9)


def test_a_second_look_at_all_pixels(decoder: Decoder, picture: Path, tmp_path: Path):
    assert decoder.pixels(picture, 10**8).size == (1200, 1800)
    assert decoder.pixels(picture, 60_000).size == (200, 300)
    with fails("image-unreadable", "gone.png", "upload"):
        decoder.pixels(tmp_path / "gone.png", 10)


def test_large_files_are_not_read(decoder: Decoder, tmp_path: Path):
    with open(tmp_path / "large.jpg", "wb") as stream:
        stream.truncate(app_decoder.MAX_MB * 2**20 + 1)
    assert decoder.open([tmp_path / "large.jpg"]) == [Refused("large.jpg", "larger than 20 MB")]
