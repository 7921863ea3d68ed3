"""WebDataset's rule: which members make a sample, which are counted, and which are refused."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from failing import fails
from shard_tools import write_tar
from tar_tools import File, python_tar, ranges

from shards.build.tar_samples import has_members, read_members, read_tar
from shards.dataset.index import Field, Member


def files(text: str) -> dict[str, bytes]:
    """Members by name, each with its own name as its bytes."""
    return {name: name.encode() for name in text.split()}


@pytest.mark.parametrize("layout", ["ustar", "gnu", "pax"])
def test_members_of_every_tar_layout(tmp_path: Path, layout: str) -> None:
    members = {"a.jpg": b"a" * 999, "a.json": b"{}", "a.txt": b"text", "b.json": b"[]", "b.PNG": b"b" * 512}
    tar = python_tar(tmp_path / "x.tar", layout, [File(name, data) for name, data in members.items()])
    assert tar is not None
    assert ranges(tar) == {"a": (b"a" * 999, b"{}"), "b": (b"b" * 512, b"[]")}
    assert read_tar(tar).others == {"txt": 1}


EVERY = ("a.jpg", "b.jpeg", "c.jpe", "d.jfif", "e.png", "f.webp", "g.avif", "h.bmp", "i.gif", "j.tif", "k.tiff")

#: Members of a tar, and the samples: key → image and JSON.
TAKEN = {
    "folders have dots": ("v1.0/x.jpg v1.0/x.json", {"v1.0/x": ("v1.0/x.jpg", "v1.0/x.json")}),
    "one name in two folders": ("a/1.jpg b/1.jpg", {"a/1": ("a/1.jpg", ""), "b/1": ("b/1.jpg", "")}),
    "./ is no folder": ("./x.jpg x.json", {"x": ("./x.jpg", "x.json")}),
    "slashes": ("/a//x.jpg a/./x.json", {"a/x": ("/a//x.jpg", "a/./x.json")}),
    "not in a row": ("a.jpg b.jpg a.json b.json", {"a": ("a.jpg", "a.json"), "b": ("b.jpg", "b.json")}),
    "double extension": ("x.input.jpg x.json", {"x": ("x.input.jpg", "x.json")}),
    "both double": ("x.input.jpg x.input.json", {"x": ("x.input.jpg", "x.input.json")}),
    "the plain one": ("x.seg.png x.jpg x.meta.json", {"x": ("x.jpg", "")}),
    "the plain JSON": ("x.1.jpg x.1.json x.json", {"x": ("x.1.jpg", "x.json")}),
    "any case": ("x.JPEG x.JSON y.Tif", {"x": ("x.JPEG", "x.JSON"), "y": ("y.Tif", "")}),
    "every ending": (" ".join(EVERY), {name[0]: (name, "") for name in EVERY}),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAKEN)
def test_samples_that_are_taken(tmp_path: Path, kind: str) -> None:
    members, samples = TAKEN[kind]
    tar = write_tar(tmp_path / "x.tar", files(members))
    assert ranges(tar) == {key: (image.encode(), record.encode() or None) for key, (image, record) in samples.items()}
    assert read_tar(tar).rejected == []


#: Members, and what of them is no part of a sample.
OTHERS = {
    "x.txt x.wav x.npy y.txt": {"txt": 2, "wav": 1, "npy": 1},
    "README a/0001": {"without an extension": 2},
    "._x.jpg .DS_Store a/.x.jpg": {"hidden": 3},
    "__meta__.json __index__/x.jpg a/__x__.jpg": {"__name__ (WebDataset's own)": 3},
    "x.heic x.jpg.part x.jp2": {"heic": 1, "jpg.part": 1, "jp2": 1},
}


@pytest.mark.parametrize("members", OTHERS)
def test_other_members_are_counted_by_kind(tmp_path: Path, members: str) -> None:
    tar = write_tar(tmp_path / "x.tar", files(f"{members} ok.jpg"))
    contents = read_tar(tar)
    assert [m.key for m in contents.members] == ["ok"]
    assert contents.rejected == [] and contents.others == OTHERS[members]


def test_members_beside_a_samples_own_are_counted_and_are_its_fields(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", files("x.TXT x.jpg x.seg.png x.json x.meta.json x.heic y.jpg z.txt"))
    contents = read_tar(tar)
    assert contents.others == {"txt": 2, "seg.png": 1, "meta.json": 1, "heic": 1}
    data = tar.read_bytes()
    fields = {m.key: {f.name: data[f.offset : f.offset + f.size] for f in m.fields} for m in contents.members}
    names = ("txt", "x.TXT"), ("seg.png", "x.seg.png"), ("meta.json", "x.meta.json"), ("heic", "x.heic")
    assert fields == {"x": {name: text.encode() for name, text in names}, "y": {}}
    assert has_members(tar, contents.members)
    first = contents.members[0]
    for wrong in (first.fields[0]._replace(name="cls"), first.fields[0]._replace(size=1), Field("txt", 0, 5)):
        assert not has_members(tar, [replace(first, fields=(wrong,))])


@pytest.mark.parametrize("name", ["n" * 129, "映" * 43, "a\u202eb"])
def test_members_whose_extension_is_no_name_of_a_field_are_only_counted(tmp_path: Path, name: str) -> None:
    contents = read_tar(write_tar(tmp_path / "x.tar", {"x.jpg": b"", f"x.{name}": b"", "x.txt": b""}))
    assert [field.name for field in contents.members[0].fields] == ["txt"]
    assert contents.others == {"txt": 1, name: 1}


#: Members, and why their sample cannot be taken.
REJECTED = {
    "x.json": ("x", "no image", "t.tar: x.json"),
    "x.heic x.json": ("x", "no image", "t.tar: x.json, x.heic"),
    "x.ppm x.cls": ("x", "no image", "t.tar: x.ppm, x.cls"),
    "x.mp4 x.wav x.cls": ("x", "no image", "t.tar: x.mp4, x.wav, x.cls"),
    "x.jpg x.png": ("x", "several images", "x.jpg, x.png have one key"),
    "x.jpg x.JPG": ("x", "several images", "x.jpg, x.JPG have one key"),
    "c.0.jpg c.1.jpg c.0.json c.1.json": ("c", "several images", "end at the first dot"),
    "x.jpg x.json x.JSON": ("x", "several JSON", "x.json, x.JSON"),
    "x.jpg x.txt x.TXT": ("x", "repeated member", "x.txt, x.TXT: several files have the same extension"),
    " ".join(["x.jpg", *(f"x.{n}" for n in range(257))]): ("x", "too many members", "257 beside the image"),
}


@pytest.mark.parametrize("members", REJECTED)
def test_samples_that_are_rejected(tmp_path: Path, members: str) -> None:
    contents = read_tar(write_tar(tmp_path / "t.tar", files(f"{members} ok.jpg")))
    assert [m.key for m in contents.members] == ["ok"]
    (row,) = contents.rejected
    key, reason, detail = REJECTED[members]
    assert (row.id, row.reason) == (key, reason) and row.detail.startswith("t.tar: ") and detail in row.detail


def test_links_and_what_is_no_file_are_rejected(tmp_path: Path) -> None:
    tar = python_tar(
        tmp_path / "t.tar",
        "pax",
        [
            File("0.jpg", b"image"),
            File("1.jpg", kind="hard link", target="0.jpg"),
            File("1.json", b"{}"),
            File("2.jpg", kind="symlink", target="/etc/passwd"),
            File("3.jpg", b"image"),
            File("3.json", kind="symlink", target="1.json"),
            File("4.jpg", kind="fifo"),
            File("d.jpg", kind="dir"),
            File("d.txt", kind="symlink"),
            File("e", kind="fifo"),
        ],
    )
    assert tar is not None
    contents = read_tar(tar)
    assert [m.key for m in contents.members] == ["0"]
    assert [(r.id, r.reason, r.detail.partition(":")[2].partition(":")[0]) for r in contents.rejected] == [
        ("1", "link", " 1.jpg is a hard link to 0.jpg"),
        ("2", "link", " 2.jpg is a symbolic link to etc/passwd"),
        ("3", "link", " 3.json is a symbolic link to 1.json"),
        ("4", "no regular file", " 4.jpg is a FIFO"),
    ]
    assert contents.others == {"symbolic link": 1, "FIFO": 1}


@pytest.mark.parametrize(
    ("first", "second"), [("x.jpg", "x.jpg"), ("x.json", "x.json"), ("x.jpg", "./x.jpg"), ("a/x.in.jpg", "a//x.in.jpg")]
)  # fmt: skip
@pytest.mark.parametrize("kind", ["file", "hard link"])
def test_a_name_twice_is_refused(tmp_path: Path, first: str, second: str, kind: str) -> None:
    members = [File("x.txt"), File(first, b"1"), File("y.jpg", b"2"), File("x.txt"), File(second, b"3", kind)]
    tar = python_tar(tmp_path / "t.tar", "ustar", members)
    assert tar is not None
    with fails("samples-repeated", "t.tar", f"'{first}'"):
        read_tar(tar)


#: What no text file could hold is percent-encoded, as a build encodes dots and slashes of ids.
NAMES = {
    "caf\udce9": "caf%E9",
    "a\nb": "a%0Ab",
    "\x1b[2Jx": "%1B[2Jx",
    "\x85": "%C2%85",
    "\u2028": "%E2%80%A8",
    "ünï 映 %41": "ünï 映 %41",
    "映" * 300: "映" * 300,
}


@pytest.mark.parametrize("layout", ["gnu", "pax"])
def test_names_that_are_no_text(tmp_path: Path, layout: str) -> None:
    members = [File(f"{name}.jpg", b"1") for name in NAMES]
    tar = python_tar(tmp_path / "t.tar", layout, members)
    assert tar is not None
    contents = read_tar(tar)
    assert [m.key for m in contents.members] == list(NAMES.values())
    "".join(m.key for m in contents.members).encode()  # no half characters
    assert has_members(tar, contents.members)


def test_two_names_that_are_encoded_alike_are_refused(tmp_path: Path) -> None:
    tar = python_tar(tmp_path / "t.tar", "pax", [File("caf\udce9.jpg"), File("caf%E9.jpg")])
    assert tar is not None
    with fails("samples-repeated", "'caf%E9.jpg'"):
        read_tar(tar)


def test_ranges_of_other_members_are_noticed(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "t.tar", files("./a.jpg ./a.json ./b.jpg"))
    a, b = read_members(tar)
    assert has_members(tar, [a, b]) and has_members(tar, [b])
    # earlier versions kept ./ in keys
    assert has_members(tar, [Member(f"./{a.key}", a.image_offset, a.image_size, a.json_offset, a.json_size)])
    for wrong in (
        Member("b", a.image_offset, a.image_size),
        Member("a", b.image_offset, b.image_size),
        Member("a", a.image_offset, a.image_size + 1),
        Member("a", a.image_offset, a.image_size, b.image_offset, b.image_size),
    ):
        assert not has_members(tar, [wrong])


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar")
def test_a_folder_that_was_packed_as_it_is(tmp_path: Path) -> None:
    """``tar -C FOLDER .`` begins every name with ``./``, and a second run with -r has all files twice."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in ("x.jpg", "a/x.jpg", "a/x.json"):
        (tmp_path / "images" / name).write_bytes(b"bytes")
    subprocess.run(["tar", "-C", "images", "-cf", "t.tar", "."], cwd=tmp_path, check=True)
    assert ranges(tmp_path / "t.tar") == {"x": (b"bytes", None), "a/x": (b"bytes", b"bytes")}
    subprocess.run(["tar", "-C", "images", "-rf", "t.tar", "./x.jpg"], cwd=tmp_path, check=True)
    with fails("samples-repeated", "'x.jpg'"):
        read_tar(tmp_path / "t.tar")
