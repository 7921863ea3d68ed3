"""Tars by Python's, GNU's and bsdtar's writers, and what the ``tarfile`` module reads in them."""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shards.build.tar_samples import read_members
from shards.storage.endings import IMAGE_ENDINGS

PYTHON = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
GNU = ("v7", "oldgnu", "gnu", "ustar", "posix")
BSD = ("ustar", "pax", "gnutar")


@dataclass(frozen=True)
class File:
    """A member to be written. ``name`` may hold bytes that are no UTF-8, as os.fsdecode has them."""

    name: str
    data: bytes = b""
    kind: str = "file"
    """``file``, ``dir``, ``fifo``, ``hard link`` or ``symlink`` (to ``target``)."""
    target: str = "x.jpg"


def python_tar(path: Path, layout: str, files: Sequence[File]) -> Path | None:
    """Written by ``tarfile``; None if the layout cannot hold a name."""
    types = {"dir": tarfile.DIRTYPE, "fifo": tarfile.FIFOTYPE, "hard link": tarfile.LNKTYPE, "symlink": tarfile.SYMTYPE}
    try:
        with tarfile.open(path, "w", format=PYTHON[layout]) as archive:
            for file in files:
                info = tarfile.TarInfo(file.name)
                info.type = types.get(file.kind, tarfile.REGTYPE)
                info.linkname = file.target if "link" in file.kind else ""
                info.size = len(file.data) if file.kind == "file" else 0
                archive.addfile(info, io.BytesIO(file.data))
    except ValueError:  # too long for this layout
        return None
    return path


def command_tar(command: str, path: Path, layout: str, files: Sequence[File]) -> Path | None:
    """Written by the program ``command`` (tar, bsdtar) from files on a disk; None if it made no tar."""
    tree = path.with_suffix(".files")
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    names = []
    for file in files:
        place = os.path.join(tree, file.name)
        try:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            _make(place, file, tree)
        except OSError:
            continue  # a folder and a file of one name, or a link to nothing
        names.append(os.fsencode(file.name))
    own = ["--no-recursion"] if command == "tar" else ["-n"]
    path.unlink(missing_ok=True)
    subprocess.run(
        [command, f"--format={layout}", "-cf", str(path), "-C", str(tree), *own, "--null", "-T", "-"],
        input=b"".join(name + b"\0" for name in names),
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        stderr=subprocess.DEVNULL,  # names that are too long for a layout are left out, with status 2
        check=False,
    )
    return path if path.exists() and names else None


def _make(place: str, file: File, tree: Path) -> None:
    if file.kind == "dir":
        os.makedirs(place, exist_ok=True)
    elif file.kind == "fifo":
        os.mkfifo(place)
    elif file.kind == "symlink":
        os.symlink(file.target, place)
    elif file.kind == "hard link":
        os.link(os.path.join(tree, file.target), place)
    elif not os.path.exists(place):
        with open(place, "wb") as stream:
            stream.write(file.data)


@dataclass
class Naive:
    """What ``tarfile`` finds, by the rule of shards/build/tar_samples.py."""

    taken: dict[str, tuple[bytes, bytes | None]] = field(default_factory=dict)
    """Image and JSON by key."""
    fields: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Bytes of the other members by key and extension."""
    rejected: set[str] = field(default_factory=set)
    twice: bool = False


def read_naively(tar: Path) -> Naive:
    """Read a sound tar with ``tarfile``."""
    found = Naive()
    parts: dict[str, dict[str, bytes | None]] = {}
    others: dict[str, list[tuple[str, bytes]]] = {}
    with tarfile.open(tar, "r:", encoding="utf-8", errors="surrogateescape") as archive:
        for info in archive:
            name = re.sub(r"(?<![^/])\./|(?<=/)/|^/", "", re.sub("/+", "/", info.name))
            name = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]", _percent, name)
            match = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", name, re.DOTALL)
            if info.isdir() or not match or re.search(r"(^|/)__[^/]*__$|^__[^/]*__/", match[1]):
                continue
            key, extension = match.groups()
            data = archive.extractfile(info).read() if info.isreg() else None  # type: ignore[union-attr]
            if "." + extension.lower().split(".")[-1] not in (*IMAGE_ENDINGS, ".json"):
                others.setdefault(key, []).extend([(extension.lower(), data)] if data is not None else [])
                if extension.lower() == "cls" and data is not None:
                    parts.setdefault(key, {})
                continue
            of_key = parts.setdefault(key, {})
            found.twice |= extension in of_key
            of_key[extension] = data
    for key, of_key in parts.items():
        images = {e: d for e, d in of_key.items() if not e.lower().endswith("json")}
        images = {e: d for e, d in images.items() if "." not in e} or images
        prefix = next(iter(images), "").lower().rpartition(".")[0]
        records = {e: d for e, d in of_key.items() if e.lower() == "json"}
        records = records or {e: d for e, d in of_key.items() if prefix and e.lower() == f"{prefix}.json"}
        used = [*images.values(), *records.values()]
        rest = [(e.lower(), d) for e, d in of_key.items() if e not in (*images, *records) and d is not None]
        rest += others.get(key, [])
        if len(images) != 1 or len(records) > 1 or None in used or len(dict(rest)) < len(rest):
            found.rejected.add(key)
        else:
            found.taken[key] = (used[0], used[1] if records else None)  # type: ignore[assignment]
            found.fields[key] = dict(rest)
    return found


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def ranges(tar: Path) -> dict[str, tuple[bytes, bytes | None]]:
    """Key to the image's and JSON's bytes, as an index would have them read."""
    data = tar.read_bytes()
    return {
        m.key: (
            data[m.image_offset : m.image_offset + m.image_size],
            data[m.json_offset : m.json_offset + m.json_size] if m.json_offset >= 0 else None,
        )
        for m in read_members(tar)
    }


def header(name: bytes, kind: int, size: int, prefix: bytes = b"", magic: bytes = b"ustar\x0000") -> bytes:
    """A header block; sizes that octal digits cannot say are GNU's base-256."""
    field = b"%011o\0" % size if 0 <= size < 8**11 else (size & (1 << 96) - 1 | 1 << 95).to_bytes(12, "big")
    block = struct.pack(
        "100s8s8s8s12s12s8sB100s8s32s32s8s8s155s12x",
        *(name, b"0000644\0", b"0000000\0", b"0000000\0", field, b"0" * 11 + b"\0", b" " * 8, kind),
        *(b"target", magic, b"", b"", b"0000000\0", b"0000000\0", prefix),
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def pax_body(records: list[bytes], wrong: int = 0) -> bytes:
    """``LENGTH KEYWORD=VALUE`` lines; lengths are off by ``wrong``."""
    lines = []
    for record in records:
        length = len(record) + 3
        length += len(str(length)) - 1
        lines.append(b"%d %s\n" % (length + wrong, record))
    return b"".join(lines)
