"""What the tests of ``shards`` share: posters drawn from a seed, commands run for real, folders compared."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.build.run import BuildOptions, build_shards
from shards.dataset.manifest import Manifest
from shards.storage.files import sha256_file

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared"
GENRES = ("Action", "Comedy", "Drama", "Film-Noir", "Sci-Fi")


@dataclass(frozen=True)
class Source:
    """Posters and their CSV, and what a build should make of them."""

    images: Path
    csv: Path
    good: dict[str, tuple[str, ...]]
    """Genres of every usable id."""
    bad: dict[str, str]
    """Reason of every other row's id."""
    copies: tuple[tuple[str, str], ...] = ()
    """Pairs of ids whose posters are the same picture."""


def draw(seed: object, width: int = 60, height: int = 90) -> Image.Image:
    """A smooth random picture, unlike that of any other seed."""
    coarse = np.random.default_rng(abs(hash_of(seed))).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def hash_of(value: object) -> int:
    """A number for any value, the same in every process."""
    return int.from_bytes(repr(value).encode()[-64:], "big")


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def bomb_png(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG of some bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def many_scans(count: int, size: tuple[int, int] = (40, 60)) -> bytes:
    """A sound progressive JPEG of ``count`` scans, most of which say nothing: they repeat the last refinement."""
    data = encoded(draw("scans", *size), progressive=True)
    starts = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    first = data[starts[0] : data.index(b"\xff", starts[0] + 14)]
    # DC of all components, sent again and again before the rest refines it
    return data[: starts[0]] + first * (count - len(starts)) + data[starts[0] :]


def write_file(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_csv(
    path: Path, rows: Iterable[Sequence[object]], header: Sequence[str] = ("id", "title", "year", "genre")
) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def draw_posters(folder: Path, count: int, size: tuple[int, int] = (60, 90)) -> Source:
    """``count`` sound posters p0000.jpg ... in folder/images, and folder/meta.csv."""
    rng = np.random.default_rng(count)
    good = {}
    for number in range(count):
        name = f"p{number:04d}"
        write_file(folder / "images" / f"{name}.jpg", encoded(draw(name, *size)))
        chosen = rng.random(len(GENRES)) < (0.3, 0.4, 0.6, 0.1, 0.2)
        good[name] = tuple(g for g, has in zip(GENRES, chosen, strict=True) if has) or ("Drama",)
    rows = [(name, "a title", 1999, repr(list(genres))) for name, genres in good.items()]
    return Source(folder / "images", write_csv(folder / "meta.csv", rows), good, {})


def build(source: Source, out: Path, **options: Any) -> Manifest:
    options = {"workers": 1, "samples_per_shard": 20, "max_rejected": 1.0, **options}
    return build_shards(BuildOptions(metadata=source.csv, images=source.images, out=out, **options))


def build_command(source: Source, out: Path, *options: object) -> list[str]:
    return [
        *("shards", "build", "--images", str(source.images), "--metadata", str(source.csv)),
        *("--out", str(out), "--samples-per-shard", "20", "--max-rejected", "1", *map(str, options)),
    ]


def environment(**more: str) -> dict[str, str]:
    """This process's, without a launcher's rank; the project importable from any folder."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**env, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def posters(*arguments: object, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``posters ...`` in a process of its own."""
    return python("-m", "toolkit", *arguments, timeout=timeout, **options)


def python(*arguments: object, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        **{"env": environment(), **options},
    )


def only_error(stderr: str) -> str:
    """The one line of stderr that begins with ``error:``; whatever else it says, there is no traceback."""
    assert "Traceback" not in stderr, stderr
    # Progress bars end with a carriage return or a newline; warnings and counts may stand before the error.
    lines = stderr.replace("\r", "\n").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], stderr
    return errors[0]


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, but for the lock."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def mtimes(folder: Path, pattern: str = "*.tar") -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob(pattern))}


def contents(tar: Path) -> dict[str, bytes]:
    """Name and bytes of every member, as the standard library reads them."""
    with tarfile.open(tar) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]


def write_tar(path: Path, members: dict[str, bytes], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(folder: Path) -> dict[str, dict[str, Any]]:
    """id -> split, record, image bytes and key of every sample of a set, read with the standard library."""
    found = {}
    for shard in Manifest.read(folder).shards:
        members = contents(folder / shard.name)
        for name, data in members.items():
            if name.endswith(".json"):
                record, key = json.loads(data), name[: -len(".json")]
                assert record["id"] not in found
                found[record["id"]] = {"split": shard.split, "image": members[f"{key}.jpg"], "key": key, **record}
    return found


def rows_of(path: Path) -> list[list[str]]:
    return [list(row.values()) for row in read_csv(path)]
