"""Which files are posters: any of the endings, in any case; and nothing else is left out without a word."""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from pathlib import Path

import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_tools import build, draw, draw_posters, encoded, write_csv, write_file

from shards.errors import UserError
from shards.executors.local import LocalExecutor
from shards.inputs.image_files import Walk, find_image, read_image_file, require_images, walk_images
from shards.inputs.images import BadImage, ImageOptions
from shards.inputs.listing import GROUP, _groups, list_posters
from shards.inputs.scan import scan_images
from shards.storage.endings import IMAGE_ENDINGS, is_image_name, others_text
from toolkit.data.sources.image_files import list_images

JPEG = encoded(draw("files"))
FORMATS = {
    ".png": "PNG",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


def cased(kind: str, mask: int) -> str:
    return "".join(c.upper() if mask >> k & 1 else c for k, c in enumerate(kind))


@pytest.mark.parametrize("kind", IMAGE_ENDINGS)
def test_every_ending_in_any_case(kind: str, tmp_path: Path) -> None:
    names = {f"id{mask:02d}": f"id{mask:02d}{cased(kind, mask)}" for mask in range(1 << len(kind))}
    for name in names.values():
        write_file(tmp_path / "sub" / name, encoded(draw("kind"), FORMATS.get(kind, "JPEG")))
    ids = [f"sub/{sample_id}" for sample_id in names]
    listed = list_posters(tmp_path, [*ids, "sub/id", "sub/id00.x", "id00"])
    assert {i: file.name for i, file in listed.items()} == {f"sub/{i}": f"sub/{n}" for i, n in names.items()}
    for sample_id, name in names.items():
        assert find_image(tmp_path, f"sub/{sample_id}") == tmp_path / "sub" / name
    scan = scan_images(tmp_path, ids, ImageOptions(), tmp_path / "work", LocalExecutor(1))
    assert not scan.rejected and list(scan.digests) == ids


def test_an_id_may_be_a_files_whole_name(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.WebP", "c.jpg.png", "c.jpg"):
        write_file(tmp_path / name, JPEG)
    listed = list_posters(tmp_path, ["a.jpg", "b.WebP", "b", "c.jpg", "./a"])
    assert {i: f.name for i, f in listed.items()} == {
        "a.jpg": "a.jpg",
        "b.WebP": "b.WebP",
        "b": "b.WebP",
        "c.jpg": "c.jpg.png",
        "./a": "a.jpg",
    }
    for sample_id, file in listed.items():
        assert find_image(tmp_path, sample_id) == tmp_path / file.name


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sets(
        st.sampled_from([f"{stem}{kind}" for stem in "ab" for kind in (".jpg", ".PNG", ".Png", ".webp", "", ".txt")])
    )
)
def test_a_listing_and_a_look_find_the_same(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    folder = tmp_path_factory.mktemp("same")
    for name in names:
        write_file(folder / name, JPEG)
    listed = list_posters(folder, ["a", "b", "c"])
    for sample_id in ("a", "b", "c"):
        found = find_image(folder, sample_id)
        assert (found.name if found else None) == (listed[sample_id].name if sample_id in listed else None)


def test_ids_that_name_one_file_are_one_group() -> None:
    """However many: a CSV may write one name in thousands of ways, with ./ and //."""
    pairs = [("a.", str(number)) for number in range(GROUP + 1)]
    assert list(_groups(pairs)) == [("a.", pairs)]


def test_several_files_of_an_id_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "a.jpg", "a.JPG", "b.webp", "b.JPG", "c.Png"):
        write_file(tmp_path / name, JPEG)
    with caplog.at_level(logging.WARNING):
        listed = list_posters(tmp_path, ["a", "b", "c"])
    assert {i: f.name for i, f in listed.items()} == {"a": "a.jpg", "b": "b.JPG", "c": "c.Png"}
    assert [record.getMessage() for record in caplog.records] == [
        "2 posters have several files, of which one is used: a.jpg (not a.png, a.JPG); b.JPG (not b.webp)"
    ]


def test_other_files_are_counted_by_ending(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = draw_posters(tmp_path, 8)
    for name in ("x.heic", "y.HEIC", "readme.txt", "LICENSE", ".DS_Store", "sub/z.psd"):
        write_file(source.images / name, b"x")
    with caplog.at_level(logging.WARNING):
        build(source, tmp_path / "out")
    lines = [record.getMessage() for record in caplog.records if "image ending" in record.getMessage()]
    (line,) = lines
    start, _, kinds = line.rpartition(": ")
    assert start == f"{source.images}: 5 files without a supported image ending were left out"
    assert sorted(kinds.split(", ")) == ["1 .psd", "1 .txt", "1 without an ending", "2 .heic"]


def test_many_kinds_are_told_in_a_line() -> None:
    others = Counter({f".k{number}": 20 - number for number in range(12)})
    text = others_text(others)
    start = "174 files without a supported image ending were left out: 20 .k0, "
    assert text.startswith(start) and text.endswith("13 .k7, 42 more")
    assert others_text(Counter({"": 1})) == "1 file without a supported image ending was left out: 1 without an ending"


def test_several_frames_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    film = {"save_all": True, "append_images": [draw("frame 2")]}
    for name, kind in (("a.gif", "GIF"), ("b.tiff", "TIFF"), ("c.webp", "WEBP"), ("d.png", "PNG")):
        write_file(tmp_path / "images" / name, encoded(draw(name), kind, **film))
    write_file(tmp_path / "images" / "e.gif", encoded(draw("e"), "GIF"))
    with caplog.at_level(logging.WARNING):
        scan = scan_images(tmp_path / "images", list("abcde"), ImageOptions(), tmp_path / "work", LocalExecutor(1))
    assert len(scan.digests) == 5
    assert [record.getMessage() for record in caplog.records] == [
        "4 posters have several frames or pages; the first of each is used: a, b, c, d"
    ]


def test_names_that_are_not_utf8_harm_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = draw_posters(tmp_path, 8)
    os.makedirs(os.fsencode(source.images) + b"/fr\xe9d\xe9ric")
    for name in (b"caf\xe9.jpg", b"fr\xe9d\xe9ric/x.png", b"x.j\xffg"):
        with open(os.fsencode(source.images) + b"/" + name, "wb") as stream:
            stream.write(JPEG)
    assert sum(shard.samples for shard in build(source, tmp_path / "out").shards) == 8
    assert len(list(walk_images(source.images, Walk()))) == 10
    assert "1 file without a supported image ending was left out: 1 .j\\udcffg" in caplog.text


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which one sub-folder cannot be listed, whoever runs the tests (root can list all)."""
    write_file(tmp_path / "images" / "a.jpg", JPEG)
    write_file(tmp_path / "images" / "locked" / "b.jpg", JPEG)
    real = os.scandir

    def scandir(path: os.PathLike[str] | str) -> object:
        if "locked" in os.fspath(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return tmp_path / "images"


def test_folders_that_cannot_be_read_are_named(locked: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        listed = list_posters(locked, ["a", "locked/b"])
    assert list(listed) == ["a"]
    said = f"{locked}/locked cannot be read (Permission denied); its contents are left out"
    assert [record.getMessage() for record in caplog.records] == [said]
    (locked / "a.jpg").unlink()
    with fails("images-none", ".jpg", f" in {locked};", f"{locked}/locked", "Permission denied"):
        require_images(locked)


def test_folders_behind_links_are_looked_at_by_id(tmp_path: Path) -> None:
    write_file(tmp_path / "elsewhere" / "x.PNG", JPEG)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
    assert list_posters(tmp_path / "images", ["linked/x", "gone/y"])["linked/x"].name == "linked/x.PNG"


def test_links_to_folders_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_file(tmp_path / "elsewhere" / "x.png", JPEG)
    images = tmp_path / "images"
    images.mkdir()
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    with fails("images-none", "links to folders were not followed: linked", "replace the links by the folders"):
        list_images(images)
    write_file(images / "a.png", JPEG)
    list_posters(images, ["a", "linked/x"])
    assert not caplog.text  # the link is used
    list_posters(images, ["a"])
    said = "links to folders were not followed: linked; to use their images, replace the links by the folders"
    assert [record.getMessage() for record in caplog.records] == [f"{images}: {said}"]
    (images / "linked").unlink()
    (tmp_path / "elsewhere").rename(images / "linked")
    assert set(list_posters(images, ["a", "linked/x"])) == {"a", "linked/x"}


def test_links_are_followed_once(tmp_path: Path) -> None:
    """Links that lead to each other, to a folder above them and to themselves have no end."""
    for name, other in (("a", "b"), ("b", "a")):
        write_file(tmp_path / name / f"{name}.jpg", JPEG)
        (tmp_path / name / "other").symlink_to(tmp_path / other)
        (tmp_path / name / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    walk = Walk(follow=True)
    assert sorted(walk_images(tmp_path, walk)) == ["a/a.jpg", "a/other/b.jpg", "b/b.jpg", "b/other/a.jpg"]
    assert sorted(walk.links) == ["a/other", "b/other"]
    assert sorted(walk_images(tmp_path, Walk())) == ["a/a.jpg", "b/b.jpg"]


def test_what_is_gone_since_it_was_listed_is_missing(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    for name in ("x.png", "y.jpg"):
        with pytest.raises(BadImage, match="missing file"):
            read_image_file(tmp_path, name[0], name)


def test_names_that_only_look_like_pictures() -> None:
    assert not any(map(is_image_name, (".jpg", "a.jpgx", "jpg", "a.jpg/b", "a.heic", "a.", "")))
    assert all(map(is_image_name, ("a.jpg", "a.b.JFIF", "x/a.TiFf", "ä.avif")))


def test_ids_may_come_from_any_csv(tmp_path: Path) -> None:
    write_file(tmp_path / "images" / "a.jpg", JPEG)
    long = "x" * 300
    write_csv(tmp_path / "m.csv", [("a", "", "", "['Drama']"), (long, "", "", "['Drama']")])
    assert find_image(tmp_path / "images", long) is None and list(list_posters(tmp_path / "images", ["a", long])) == [
        "a"
    ]


def test_a_disk_that_fails_rejects_no_poster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again, and then the build ends: a set that lacks posters for that would look like any other."""
    monkeypatch.setattr("shards.storage.retry.PAUSES", (0.001, 0.001))
    monkeypatch.setattr("shards.storage.retry.LONGEST", 0.05)
    (tmp_path / "a.jpg").write_bytes(JPEG)
    real, failures = Path.read_bytes, [errno.EIO, errno.ESTALE]

    def failing(self: Path) -> bytes:
        if failures:
            number = failures.pop()
            raise OSError(number, os.strerror(number), str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert read_image_file(tmp_path, "a") == JPEG
    for number in (errno.EIO, errno.EMFILE):
        failures[:] = [number] * 1000
        with pytest.raises(UserError, match=rf"a.jpg cannot be read on .*\[Errno {number}\]"):
            read_image_file(tmp_path, "a")
    failures[:] = [errno.EACCES]
    with pytest.raises(BadImage) as caught:
        read_image_file(tmp_path, "a")
    assert caught.value.reason == "unreadable file"
