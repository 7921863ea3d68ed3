"""Read the names and byte ranges of a tar's members. Only headers are read.

Tars may come from untrusted sources. ``tarfile.TarInfo.frombuf`` parses header blocks and checks their checksums. Long
names and pax records are parsed here, because ``tarfile`` does not limit their size and reads an invalid size as 0.
"""

from __future__ import annotations

import re
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from shards.errors import UserError, one_line

BLOCK = 512
MAX_EXTENDED = 1 << 20
"""Largest size in bytes of a long name, or of a member's pax records (extra fields). libarchive has the same limit."""

#: Characters to percent-encode: control characters, line separators, and surrogates for bytes that are not UTF-8.
_QUOTED = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")

LONG_NAMES = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
DIRECTORIES = (tarfile.DIRTYPE, b"D")  # GNU tar writes D in incremental archives
PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
KINDS = {
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "FIFO",
}


@dataclass(frozen=True)
class Entry:
    """A member of a tar that is not a directory."""

    path: tuple[str, ...]
    """Folders and file name. Control characters and bytes that are not UTF-8 are percent-encoded."""
    offset: int
    size: int
    kind: str = ""
    """Type of the member, such as ``hard link`` or ``FIFO``. Empty for a regular file."""
    target: str = ""
    """Target of a link. Empty if the member is not a link."""

    @property
    def name(self) -> str:
        return "/".join(self.path)

    @property
    def key(self) -> str:
        """Key of the sample: the path up to the first dot of the file name."""
        return "/".join((*self.path[:-1], self.path[-1].partition(".")[0]))

    @property
    def extension(self) -> str:
        """Text after the first dot of the file name, in lower case, such as ``jpg`` or ``seg.png``."""
        return self.path[-1].partition(".")[2].lower()


def _broken(tar: Path, what: str) -> UserError:
    """Return the error for a tar that is not complete. ``what`` begins with "damaged" or "truncated"."""
    return UserError("tar-damaged", f"{tar} is {what}; copy it again, pack it again, or remove it")


def entries(tar: Path) -> Iterator[Entry]:
    """Yield the members of a tar, without directories. Raises UserError if the file is not a complete tar."""
    try:
        status = tar.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO can block forever
            raise UserError("path-unreadable", f"{tar} is not a file; remove it or rename it")
        with open(tar, "rb") as stream:
            yield from _entries(stream, tar, status.st_size)
    except OSError as error:
        raise UserError("path-unreadable", f"{tar} cannot be read: {one_line(error)}") from None


def _entries(stream: IO[bytes], tar: Path, size: int) -> Iterator[Entry]:
    count, extended, begun = 0, dict[str, str](), False
    while True:
        at = stream.tell()
        block = stream.read(BLOCK)
        if len(block) < BLOCK and (at or not any(block)):
            # Zero blocks end a tar. A tar that is cut exactly between two members has valid headers but no zero block.
            raise _broken(tar, f"truncated: no end-of-archive mark after {count} members")
        if not any(block):
            break
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            if at:
                why = f"no tar header at byte {at}, after {count} members"
                raise _broken(tar, f"damaged: {why}") from None
            remedy = "decompress it if it is compressed"
            raise UserError("tar-unsupported", f"{tar} is not an uncompressed tar; {remedy}") from None
        if info.type in LONG_NAMES or info.type in PAX or info.type == tarfile.XGLTYPE:
            fields, begun = _extended(stream, tar, info), True
            if twice := extended.keys() & fields.keys():
                why = f"the headers before byte {at} have the field {min(twice)} twice"
                raise _broken(tar, f"damaged: {why}")
            if info.type != tarfile.XGLTYPE:
                extended |= fields
            elif fields:
                what = f"the header at byte {at} gives all members the same {min(fields)}, which is not supported"
                raise UserError("tar-unsupported", f"{tar}: {what}")
            continue
        entry = _entry(stream, tar, size, info, block, extended)
        count, extended, begun = count + 1, {}, False
        if info.type not in DIRECTORIES:
            yield entry
        stream.seek(entry.offset + -(-entry.size // BLOCK) * BLOCK)
    if begun:
        raise _broken(tar, f"damaged: the last header, which ends at byte {at}, has no member")
    while rest := stream.read(1 << 16):
        if any(rest):
            what = f"data follow the end-of-archive mark at byte {at}, after {count} members (perhaps a second archive)"
            remedy = "put each archive into its own file, or join them with `tar --concatenate`"
            raise UserError("tar-unsupported", f"{tar}: {what}; {remedy}")


def _entry(stream: IO[bytes], tar: Path, size: int, info: tarfile.TarInfo, block: bytes, pax: dict[str, str]) -> Entry:
    name = pax.get("path", info.name)
    if block[257:265] == b"ustar  \0" and "path" not in pax:
        # Where a POSIX header has the folder, a GNU header has times. frombuf would read these times as a folder.
        name = block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    path, length = path_of(name), info.size
    shown = "/".join(path)
    if info.type == tarfile.GNUTYPE_SPARSE or "sparse" in pax:
        remedy = "pack the tar again without --sparse (bsdtar: with --no-read-sparse)"
        raise UserError("tar-unsupported", f"{tar}: member {shown} is sparse; {remedy}")
    if "size" in pax:
        if not (pax["size"].isascii() and pax["size"].isdigit() and len(pax["size"]) < 20):
            raise _broken(tar, f"damaged: the size of member {shown} is not a number")
        length = int(pax["size"])
    if info.type in tarfile.SUPPORTED_TYPES and not info.isreg():
        length = 0  # members of these types have no data, even if the header states a size
    if length < 0:
        raise _broken(tar, f"damaged: member {shown} has a size of {length} bytes")
    if stream.tell() + length > size:
        raise _broken(tar, f"truncated in member {shown}: the tar has {size} bytes")
    kind = "" if info.isreg() else KINDS.get(info.type, "member of an unknown type")
    target = "/".join(path_of(pax.get("linkpath", info.linkname))) if info.issym() or info.islnk() else ""
    return Entry(path, stream.tell(), length, kind, target)


def _extended(stream: IO[bytes], tar: Path, info: tarfile.TarInfo) -> dict[str, str]:
    """Return the fields path, linkpath, size and sparse of an extended header. Absent fields are left out."""
    at = stream.tell()
    if not 0 <= info.size <= MAX_EXTENDED:
        what = f"the header that ends at byte {at} has {info.size} bytes, over the limit of {MAX_EXTENDED}"
        raise UserError("tar-unsupported", f"{tar}: {what}; pack the tar again without extended attributes")
    body = stream.read(-(-info.size // BLOCK) * BLOCK)[: info.size]
    if len(body) < info.size:
        raise _broken(tar, f"truncated after the header that ends at byte {at}")
    if info.type in LONG_NAMES:
        return {LONG_NAMES[info.type]: body.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    fields: dict[str, str] = {}
    body = body.rstrip(b"\0")
    while body:
        # A record is "LENGTH KEYWORD=VALUE\n". LENGTH is the size of the whole record.
        digits, _, _ = body[:20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        keyword, equals, value = body[len(digits) + 1 : length].partition(b"=")
        if length > len(body) or not equals or not value.endswith(b"\n"):
            raise _broken(tar, f"damaged: the pax records at byte {at} cannot be parsed")
        name = "sparse" if keyword.startswith(b"GNU.sparse.") else keyword.decode("ascii", "replace")
        if name in ("path", "linkpath", "size", "sparse") and len(value) > 1:  # an empty value resets a global field
            fields[name] = value[:-1].decode("utf-8", "surrogateescape")
        body = body[length:]
    return fields


def path_of(name: str) -> tuple[str, ...]:
    """Split the name of a member at slashes. Drop empty parts and ``.``. Percent-encode unsafe characters."""
    name = _QUOTED.sub(lambda found: quote(found[0].encode("utf-8", "surrogateescape")), name)
    return tuple(part for part in name.split("/") if part not in ("", "."))
