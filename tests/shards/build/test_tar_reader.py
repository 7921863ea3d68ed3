"""Headers of tars: truncated, damaged, hostile or of rare kinds, each is one line or read right."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_tools import write_tar
from tar_tools import header, pax_body, ranges

from shards.build.tar_reader import entries
from shards.build.tar_samples import read_members, read_tar
from shards.errors import UserError

SAMPLES = {"a.jpg": b"image a", "a.json": b"{}", "a.txt": b"text", "b.json": b"[]", "b.PNG": b"image b" * 200}


def with_data(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_damaged_tars_are_user_errors(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "x.tar", SAMPLES).read_bytes()
    offsets = [m.image_offset for m in read_members(tmp_path / "x.tar")]
    second = read_members(tmp_path / "x.tar")[1].json_offset - 512
    broken_header = bytearray(data)
    broken_header[second + 3] ^= 1
    cases = {
        "empty": b"",
        "zero": b"\0" * 100,
        "text": b"no tar at all" * 100,
        "in the first header": data[:300],
        "in a member": data[: offsets[1] + 100],
        "in a later header": data[: second + 100],
        "between two members": data[:second],
        "before the end": data[: offsets[1] + 1536],
        "flipped bit in a header": bytes(broken_header),
    }
    for name, damaged in cases.items():
        no_tar = name in ("text", "in the first header")
        with fails("tar-unsupported" if no_tar else "tar-damaged", tmp_path / "y.tar"):
            read_members(with_data(tmp_path / "y.tar", damaged))


def test_compressed_and_sparse_tars_are_user_errors(tmp_path: Path) -> None:
    for compression in ("gz", "bz2", "xz"):
        tar = tmp_path / f"{compression}.tar"
        with tarfile.open(tar, f"w:{compression}") as archive:  # type: ignore[call-overload]
            archive.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
        with fails("tar-unsupported", tar):
            read_members(tar)
    info = tarfile.TarInfo("a.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    sparse = with_data(tmp_path / "sparse.tar", info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 9728)
    with fails("tar-unsupported", sparse, "a.jpg", "--sparse"):
        read_members(sparse)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 20), st.integers(1, 255), st.booleans())
def test_a_flipped_byte_loses_no_sample_silently(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int, long_names: bool
) -> None:
    tar = tmp_path_factory.getbasetemp() / f"flip-{long_names}.tar"
    if not tar.exists():
        members = {**SAMPLES, "映" * 60 + ".jpg" if long_names else "y.jpg": b"long", "z.jpg": b"last"}
        write_tar(tar, members, format=tarfile.PAX_FORMAT if long_names else tarfile.USTAR_FORMAT)
    data = bytearray(tar.read_bytes())
    data[at % len(data)] ^= flip
    try:
        found = read_members(with_data(tar.with_name("flipped.tar"), bytes(data)))
    except UserError:
        return
    if not long_names:  # the names in pax headers have no checksum: those may change
        assert found == read_members(tar)


def block(name: bytes, data: bytes = b"", kind: bytes = b"0", size: int | None = None, **options: Any) -> bytes:
    """A member: its header, and its data filled up to whole blocks. ``size`` is what the header claims."""
    claimed = len(data) if size is None else size
    return header(name, kind[0], claimed, **options) + data + b"\0" * (-len(data) % 512)


END = b"\0" * 1024
IMAGE = block(b"x.jpg", b"image")

HOSTILE = {
    "a second archive": (IMAGE + END + block(b"y.jpg", b"2") + END, "data follow the end-of-archive mark at byte 1024"),
    "text behind the end": (IMAGE + END + b"\0" * 9000 + b"x", "data follow the end-of-archive mark at byte 1024"),
    "one zero block between": (IMAGE + b"\0" * 512 + IMAGE + END, "data follow the end-of-archive mark at byte 1024"),
    "more than there is": (block(b"x.jpg", b"i", size=5000) + END, "truncated in member x.jpg: the tar has 2048 bytes"),
    "base-256, 8 EB": (block(b"x.jpg", size=1 << 63) + END, "truncated in member x.jpg"),
    "base-256, largest": (block(b"x.jpg", size=(1 << 88) - 1) + END, "truncated in member x.jpg"),
    "a huge device": (block(b"x", kind=b"V", size=1 << 80) + END, "truncated in member x"),
    "negative": (block(b"x.jpg", size=-512) + END, "damaged: member x.jpg has a size of -512 bytes"),
    "pax, negative": (block(b"p", pax_body([b"size=-512"]), b"x") + IMAGE + END, "member x.jpg is not a number"),
    "pax, no number": (block(b"p", pax_body([b"size=1e3"]), b"x") + IMAGE + END, "member x.jpg is not a number"),
    "pax, long number": (block(b"p", pax_body([b"size=1" + b"0" * 99]), b"x") + IMAGE + END, "is not a number"),
    "pax, too large": (block(b"p", pax_body([b"size=99999"]), b"x") + IMAGE + END, "truncated in member x.jpg"),
    "pax, wrong length": (block(b"p", pax_body([b"a=b"], 1), b"x") + IMAGE + END, "pax records at byte 512 cannot"),
    "pax, digits": (block(b"p", b"9" * 4000, b"x") + IMAGE + END, "pax records at byte 512 cannot be parsed"),
    "pax of 2 GB": (block(b"p", kind=b"x", size=1 << 31) + END, "has 2147483648 bytes, over the limit of 1048576"),
    "a name of 2 GB": (block(b"L", kind=b"L", size=1 << 31) + END, "has 2147483648 bytes, over the limit of 1048576"),
    "no member": (block(b"p", pax_body([b"path=y.jpg"]), b"x") + END, "which ends at byte 1024, has no member"),
    "two names": (block(b"p", pax_body([b"path=y"]), b"x") + block(b"L", b"z.jpg", b"L") + IMAGE + END, "path twice"),
    "one name for all": (block(b"g", pax_body([b"path=y.jpg"]), b"g") + IMAGE + END, "gives all members the same path"),
    "pax sparse": (block(b"p", pax_body([b"GNU.sparse.realsize=9"]), b"x") + IMAGE + END, "x.jpg is sparse"),
    "link with data": (block(b"y.jpg", b"data", b"1") + IMAGE + END, "damaged: no tar header at byte 512"),
    "only padding cut": (IMAGE[:-100], "truncated: no end-of-archive mark after 1 members; copy it again"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_are_one_line(tmp_path: Path, kind: str) -> None:
    data, message = HOSTILE[kind]
    unsupported = any(words in message for words in ("data follow", "over the limit", "gives all", "sparse"))
    with fails("tar-unsupported" if unsupported else "tar-damaged", tmp_path / "x.tar", message):
        read_tar(with_data(tmp_path / "x.tar", data))


def test_headers_that_are_rare_and_right(tmp_path: Path) -> None:
    comment = block(b"pax_global_header", pax_body([b"comment=0123", b"mtime=1.5"]), b"g")  # git archive
    long_name = block(b"././@LongLink", b"d/" + b"n" * 300 + b".jpg", b"L")
    own_size = block(b"p", pax_body([b"size=5", b"path=z.jpg", b"SCHILY.xattr.a=\xff\n="]), b"x")
    gnu_times = block(b"w.jpg", b"image", prefix=b"14723456701\0", magic=b"ustar  \0")
    folder = block(b"v.jpg", b"image", prefix=b"folder")
    data = comment + IMAGE + long_name + IMAGE + own_size + IMAGE + gnu_times + folder
    tar = with_data(tmp_path / "x.tar", data + b"\0" * 512 * 99)
    assert ranges(tar) == dict.fromkeys(["x", "d/" + "n" * 300, "z", "w", "folder/v"], (b"image", None))


@pytest.mark.parametrize("command", ["tar", "bsdtar"])
def test_sparse_tars_of_real_programs(tmp_path: Path, command: str) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"no {command}")
    with open(tmp_path / "x.jpg", "wb") as stream:
        stream.truncate(1 << 20)
    if (tmp_path / "x.jpg").stat().st_blocks:
        pytest.skip("the file system keeps no holes")
    for options in [["-S", "--format=gnu"], ["-S", "--format=posix"]] if command == "tar" else [["--format=pax"]]:
        subprocess.run([command, *options, "-cf", "s.tar", "x.jpg"], cwd=tmp_path, check=True)
        with fails("tar-unsupported", "x.jpg", "--sparse"):
            read_tar(tmp_path / "s.tar")


def test_names_in_gnu_tars_incremental_archives(tmp_path: Path) -> None:
    """Their headers have times where POSIX's have folders; ``tarfile`` reads 14723456701/d/x.jpg."""
    if shutil.which("tar") is None or b"GNU" not in subprocess.run(["tar", "--version"], capture_output=True).stdout:
        pytest.skip("no GNU tar")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.jpg").write_bytes(b"image")
    command = ["tar", "--format=gnu", "-g", "snapshot", "-cf", "x.tar", "d"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert ranges(tmp_path / "x.tar") == {"d/x": (b"image", None)}


def test_names_of_tars_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.tar")  # opening it would wait
    (tmp_path / "folder.tar").mkdir()
    for name in ("fifo.tar", "folder.tar", "absent.tar"):
        with fails("path-unreadable", name):
            read_tar(tmp_path / name)


def test_memory_is_that_of_one_header(tmp_path: Path) -> None:
    """The walk over a tar keeps no member."""
    tar = with_data(tmp_path / "x.tar", IMAGE * 2000 + END)
    tracemalloc.start()
    try:
        assert sum(1 for _ in entries(tar)) == 2000
        assert tracemalloc.get_traced_memory()[1] < 1 << 19
    finally:
        tracemalloc.stop()
