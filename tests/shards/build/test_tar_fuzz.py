"""Tars of every writer, with every kind of member: sample for sample what ``tarfile`` reads, or one line."""

from __future__ import annotations

import random
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from failing import fails
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from shard_tools import draw, encoded, read_csv
from tar_tools import BSD, GNU, PYTHON, File, command_tar, header, pax_body, python_tar, ranges, read_naively

from shards.build.index.tars import IndexOptions, index_folder
from shards.build.tar_reader import entries
from shards.build.tar_samples import has_members, read_tar
from shards.dataset.index import read_index
from shards.errors import UserError

bounded = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])

FOLDERS = ("", "", "", "./", "a/", "b.c/", "./a//", "é/", "x" * 90 + "/", "__m__/")
STEMS = (*"xyzxyz", "0001", "é", "映" * 40, "n" * 120, "a b", "%41", "c\udce9", "t\tb", ".h", "__m__")
ENDINGS = (
    "jpg",
    "jpg",
    "json",
    "json",
    "png",
    "JPG",
    "Json",
    "webp",
    "txt",
    "TXT",
    "cls",
    "in.jpg",
    "in.json",
    "1.jpg",
    "",
)
SOME_BYTES = st.binary(max_size=1100)
KINDS = ("file",) * 12 + ("hard link", "symlink", "dir", "fifo")


@st.composite
def files(draw_from: st.DrawFn, data: st.SearchStrategy[bytes] = SOME_BYTES) -> list[File]:
    """Members of a tar, in any order; now and then one is there twice."""
    found: dict[str, File] = {}
    for _ in range(draw_from(st.integers(1, 4))):
        key = draw_from(st.sampled_from(FOLDERS)) + draw_from(st.sampled_from(STEMS))
        for ending in draw_from(st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=4)):
            name = f"{key}.{ending}" if ending else key
            found[name] = File(name, draw_from(data), draw_from(st.sampled_from(KINDS)))
    members = draw_from(st.permutations(list(found.values())))
    return members + draw_from(st.sampled_from([[]] * 7 + [members[:1]]))


def writers() -> list[Any]:
    params = [pytest.param(python_tar, layout, id=f"python-{layout}") for layout in PYTHON]
    for command, layouts in (("tar", GNU), ("bsdtar", BSD)):
        absent = pytest.mark.skipif(shutil.which(command) is None, reason=f"no {command}")
        for layout in layouts:
            call = _Command(command)
            params.append(pytest.param(call, layout, id=f"{command}-{layout}", marks=absent))
    return params


class _Command:
    def __init__(self, command: str) -> None:
        self.command = command

    def __call__(self, path: Path, layout: str, files: list[File]) -> Path | None:
        return command_tar(self.command, path, layout, files)


Writer = Callable[[Path, str, list[File]], Path | None]


@pytest.mark.parametrize(("write", "layout"), writers())
def test_samples_are_those_that_tarfile_reads(tmp_path: Path, write: Writer, layout: str) -> None:
    @settings(bounded, max_examples=100 if write is python_tar else 25)
    @given(files())
    def check(members: list[File]) -> None:
        tar = write(tmp_path / "x.tar", layout, members)
        assume(tar is not None)
        assert tar is not None
        compare(tar)

    check()


def compare(tar: Path) -> None:
    expected = read_naively(tar)
    if expected.twice:
        with fails("samples-repeated", tar):
            read_tar(tar)
        return
    contents = read_tar(tar)
    assert ranges(tar) == expected.taken
    data = tar.read_bytes()
    fields = {m.key: {f.name: data[f.offset : f.offset + f.size] for f in m.fields} for m in contents.members}
    assert fields == expected.fields
    assert sorted(r.id for r in contents.rejected) == sorted(expected.rejected)
    assert has_members(tar, contents.members)


SIZES = (0, 0, 0, 1, 511, 512, 513, 1024, 40_000, 1 << 33, (1 << 62) + 7, 1 << 80, -1, -512)
RECORDS = (
    *(b"path=p.jpg", b"path=", b"size=512", b"size=1", b"size=-512", b"size=1e3", b"size=9" + b"9" * 30),
    *(b"linkpath=q", b"comment=x", b"GNU.sparse.map=0,1", b"GNU.sparse.realsize=99999", b"path=\xe9.json"),
    *(b"hdrcharset=BINARY", b"mtime=nan", b"=", b"", b"GNU.sparse.major=1"),
)


def raw_tar(dice: random.Random) -> bytes:
    """Headers with a right checksum and anything else in them, and data that may be of another size."""
    out = b""
    for _ in range(dice.randint(1, 5)):
        body = dice.choice([b"", b"\0", b"data" * dice.randrange(200)])
        kind = dice.choice(b"00000\x00001235xxgLKX67SDMVZ ")
        if kind in b"xXg":
            body = pax_body(dice.choices(RECORDS, k=dice.randrange(3)), dice.choice([0, 0, 0, 0, 0, 1, -1]))
        elif kind in b"LK":
            body = dice.choice([b"long.jpg\0", b"long.json", b"l" * 600 + b".jpg\0", b""])
        out += header(
            dice.choice([b"x.jpg", b"x.json", b"y.png", b"z.jpg", b"././@LongLink", b"d/", b""]),
            kind,
            dice.choice(SIZES) if dice.random() < 0.1 else len(body),
            dice.choice([b"", b"", b"folder"]),
            dice.choice([b"ustar\x0000", b"ustar  \0", b""]),
        )
        out += body + b"\0" * (-len(body) % 512)
    end = dice.choice([2, 2, 2, 2, 1, 0]) * 512
    return out + b"\0" * end + dice.choice([b"", b"", b"", b"\0" * 9000, b"\0" * 512 + b"x"])


def test_any_headers_are_one_line_or_read_as_tarfile_does(tmp_path: Path) -> None:
    """Thousands of headers: drawn from a seed, which is far quicker than by hypothesis."""
    read, tar = 0, tmp_path / "x.tar"
    for seed in range(3000):
        data = raw_tar(random.Random(seed))
        tar.write_bytes(data)
        try:
            contents = read_tar(tar)
            found = [(e.offset, e.size) for e in entries(tar) if not e.kind]
        except UserError as error:
            assert str(tar) in str(error) and "\n" not in str(error), seed
            continue
        assert all(m.image_offset + m.image_size <= len(data) for m in contents.members), seed
        with tarfile.open(tar, "r:") as archive:
            assert found == [(info.offset_data, info.size) for info in archive if info.isreg()], seed
        read += 1
    assert read > 500  # and not all are refused


IMAGES = [encoded(draw(number, 9 + number, 12)) for number in range(6)]
BROKEN = [IMAGES[0][:200], b"", b"no image"]
RECORDS_OF = {
    b'{"genres": ["Drama", "War"]}': ("Drama", "War"),
    b'{"genres": "War|Comedy", "other": NaN}': ("War", "Comedy"),
    b'{"genres": []}': (),
    b"{}": (),
    b'{"genres": 0.5}': None,
    b"[" * 5000: None,
    b'{"genres": ["A"], "genres": ["B"]}': None,
    b'{"id": true}': None,
}


@settings(bounded, max_examples=60)
@given(st.lists(files(st.just(b"")), min_size=1, max_size=2), st.randoms(use_true_random=False))
def test_index_takes_each_sample_or_says_why_not(
    tmp_path_factory: pytest.TempPathFactory, tars: list[list[File]], dice: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("set")
    expected: dict[tuple[str, str], tuple[bytes, bytes | None]] = {}
    rejected: set[tuple[str, str]] = set()
    refused = False
    for number, members in enumerate(tars):
        filled = [replace(file, data=some_data(file.name, dice)) for file in members if not file.name.endswith("cls")]
        tar = python_tar(folder / f"{number}.tar", "pax", filled)
        assert tar is not None
        naive = read_naively(tar)
        refused |= naive.twice
        expected |= {(tar.name, key): parts for key, parts in naive.taken.items()}
        rejected |= {(tar.name, key) for key in naive.rejected}
    refused |= len({path.read_bytes() for path in folder.glob("*.tar")}) < len(tars)  # a tar and its copy
    sound = {
        key: RECORDS_OF.get(record or b"{}")
        for key, (image, record) in expected.items()
        if image in IMAGES and RECORDS_OF.get(record or b"{}") is not None
    }
    if any(sound.values()):
        sound = {key: genres for key, genres in sound.items() if genres}
    try:
        manifest = index_folder(IndexOptions(folder, workers=1))
    except UserError as error:
        assert refused or not sound, error
        assert "\n" not in str(error)
        return
    found, ids = {}, list[str]()
    for shard in manifest.shards:
        data = (folder / shard.name).read_bytes()
        for row in read_index(folder / shard.name)[0].to_pylist():
            key = shard.name, row["key"]
            found[key] = tuple(manifest.genres[column] for column in row["labels"])
            image = data[row["image_offset"] : row["image_offset"] + row["image_size"]]
            assert image == expected[key][0]
            ids.append(row["id"])
    assert len(set(ids)) == len(ids)
    assert found == {key: tuple(sorted(genres or ())) for key, genres in sound.items()}
    lost = (expected.keys() | rejected) - found.keys()
    rows = [row for row in read_csv(folder / "rejected.csv") if row["reason"] != "no samples"]
    assert lost == {(row["detail"].partition(":")[0], row["id"]) for row in rows}


def some_data(name: str, dice: random.Random) -> bytes:
    """An image or a record, as the name has it; one in five is broken."""
    if name.lower().endswith("json"):
        return dice.choice(list(RECORDS_OF))
    return dice.choice(IMAGES if dice.random() < 0.8 else BROKEN)
