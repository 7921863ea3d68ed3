"""Read the size, the orientation and the scans from the headers of a JPEG, without decoding (images.py decodes).

All commands use these functions, so all commands treat a file in the same way. Sources: ITU-T T.81, Annex B, and EXIF
2.3 for the orientation. Files that break these standards are read as Pillow reads them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

#: Largest allowed number of scans. Encoders write 17 at most.
MAX_SCANS = 100
#: Largest product of pixels and scans, so that decoding cannot take minutes. MIN_SCANS scans are always allowed.
MAX_WORK, MIN_SCANS = 640_000_000, 20
#: Largest numbers of segments and padding bytes before the pixels. Cameras and editors write far fewer.
MAX_SEGMENTS, MAX_PADDING = 5_000, 65_536
#: Largest size in bytes of the EXIF of all segments together. Pillow parses the EXIF of every file that it opens.
MAX_EXIF = 256_000

ORIENTATION = 0x0112  # the EXIF tag
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_EXIF = b"Exif\0\0"
_SEGMENT = struct.Struct(">HH").unpack_from  # marker, size
_FRAME = struct.Struct(">BBHBHHB").unpack_from  # 0xFF, kind, size, bits, height, width, components
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
#: Start-of-frame markers. 0xC4 (Huffman tables), 0xC8 (reserved) and 0xCC (arithmetic conditioning) are excluded.
_FRAMES = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}
#: All other markers that a header may have.
_OTHERS = frozenset((0xFFC4, 0xFFC8, 0xFFCC, *range(0xFFDB, 0xFFFF)))


class TooMuchWork(ValueError):
    """Decoding the picture can take minutes."""


class JpegHeader(NamedTuple):
    """Contents of a JPEG's headers, which come before the first scan."""

    frame: int  # offset of the start-of-frame marker
    width: int  # of the stored pixels, before they are turned upright
    height: int
    components: int
    orientation: int  # the EXIF value, 1 to 8; 1 means upright
    scan: int  # offset of the first start-of-scan marker
    one_scan: bool  # whether the first scan has all data, which is usual for baseline JPEGs


def read_jpeg_header(data: bytes | memoryview) -> JpegHeader | None:
    """Return the header, or None if the bytes are not a valid JPEG. Raises TooMuchWork if the header is too long."""
    if data[:2] != b"\xff\xd8":
        return None
    at, end = 2, len(data) - 10
    frame = segments = padding = 0
    exif = xmp = b""
    while at < end:
        marker, size = _SEGMENT(data, at)
        if marker == 0xFFDA:
            break
        if marker in _FRAMES:
            if frame:
                return None
            frame = at
        elif marker == 0xFFE1:
            content = bytes(data[at + 4 : at + 2 + size])
            if content.startswith(_EXIF):
                exif = exif + content[6:] if exif else content
            elif content.startswith(_XMP):
                xmp = content
        elif marker == 0xFFFF:
            at += 1
            padding += 1
            if padding > MAX_PADDING:
                raise TooMuchWork(f"over {MAX_PADDING} bytes of padding between its headers")
            continue
        elif marker not in _OTHERS:
            return None
        if size < 2:
            return None
        at += 2 + size
        segments += 1
        if segments > MAX_SEGMENTS:
            raise TooMuchWork(f"over {MAX_SEGMENTS} segments before its pixels")
    if not frame or at >= end:
        return None
    if len(exif) > MAX_EXIF:
        raise TooMuchWork(f"{len(exif)} bytes of EXIF, over {MAX_EXIF}")
    _, kind, _, _, height, width, components = _FRAME(data, frame)
    one_scan = data[at + 4] == components and kind not in _PROGRESSIVE
    orientation = orientation_of(exif, xmp) if exif or xmp else 1
    return JpegHeader(frame, width, height, components, orientation, at, one_scan)


def without_junk(data: bytes) -> bytes:
    """Return a JPEG without stray bytes between its header segments. Decoders skip such bytes."""
    kept, at = [data[:2]], 2
    while len(kept) < MAX_SEGMENTS and 0 <= (at := data.find(b"\xff", at)) < len(data) - 4:
        marker, size = _SEGMENT(data, at)
        if marker == 0xFFDA:
            break
        if marker in _FRAMES or marker in _OTHERS:
            kept.append(data[at : at + 2 + size])
            at += 2 + size
        else:
            at += 1
    return b"".join(kept) + data[max(at, 2) :]


def orientation_of(exif: bytes, xmp: bytes = b"") -> int:
    """Return the orientation, 1 to 8, from EXIF bytes, or else from XMP bytes. Return 1 if neither contains it."""
    value = _exif_orientation(exif)
    if value is None and (found := _XMP_ORIENTATION.search(xmp)):
        value = int(found[1])
    return value if value is not None and 1 <= value <= 8 else 1


def _exif_orientation(exif: bytes) -> int | None:
    """Return the value of the tag ORIENTATION in the first EXIF directory, or None."""
    at = 0
    while exif.startswith(_EXIF, at):
        at += len(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(exif[at : at + 2])
    if order is None:
        return None
    value = None
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, at + 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, at + start)
        for entry in range(at + start + 2, at + start + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, entry)
            if tag == ORIENTATION:
                form = {3: "H", 4: "I", 8: "h", 9: "i"}.get(kind)  # 16 or 32 bits, unsigned or signed
                if form is None or not count:
                    value = 0
                    continue
                place = entry + 8
                if count * struct.calcsize(form) > 4:  # the entry has an offset, because the values do not fit into it
                    place = at + struct.unpack_from(f"{order}I", exif, place)[0]
                value = struct.unpack_from(f"{order}{form}", exif, place)[0]
    except struct.error:
        pass  # the EXIF is truncated
    return value


def check_scans(data: bytes, header: JpegHeader | None) -> None:
    """Raise TooMuchWork if a JPEG has too many scans for its size."""
    limit = most_scans(header.width * header.height) if header else MAX_SCANS
    # Each scan begins with these two bytes. So this fast count is never smaller than the number of scans.
    if data.count(b"\xff\xda") <= limit:
        return
    found = sum(1 for _ in scans(data))  # this count skips previews, profiles and data after the picture
    if found > limit:
        size = f"{header.width}x{header.height}" if header else "a JPEG"
        raise TooMuchWork(f"{size} in {found} scans, over {limit}")


def most_scans(pixels: int) -> int:
    """Return the largest allowed number of scans in a JPEG with ``pixels`` pixels."""
    return MAX_SCANS if pixels * MAX_SCANS <= MAX_WORK else max(MIN_SCANS, MAX_WORK // pixels)


def scans(data: bytes) -> Iterator[int]:
    """Yield the offsets of the start-of-scan markers before the end-of-image marker."""
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 3:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker == 0 or 0xD0 <= marker <= 0xD8 or marker == 1:  # markers without a segment
            at += 2
        elif marker == 0xD9:
            return
        else:
            if marker == 0xDA:
                yield at
            at += 2 + max(2, data[at + 2] << 8 | data[at + 3])


def missing_scans(data: bytes, header: JpegHeader) -> str:
    """Return a message if coefficients are missing in a JPEG of several scans, else an empty string.

    A JPEG that is cut between two scans and has an end marker is valid, but shows a blurred picture.
    """
    progressive = data[header.frame + 1] in _PROGRESSIVE
    ids = [data[header.frame + 10 + 3 * k] for k in range(header.components)]
    # component -> number of bits that are still missing in each of the 64 coefficients
    missing = {component: [14] * 64 for component in ids}
    for at in scans(data):
        count = data[at + 4]
        named = [data[at + 5 + 2 * k] for k in range(count)] if at + 8 + 2 * count <= len(data) else []
        if not named:
            continue
        first, last, bits = data[at + 5 + 2 * count], data[at + 6 + 2 * count], data[at + 7 + 2 * count] & 15
        for component in named:
            for k in range(first, min(last, 63) + 1) if progressive else range(64):
                if component in missing:
                    missing[component][k] = bits if progressive else 0
    if any(bits[0] == 14 for bits in missing.values()):
        return "a colour component is missing"
    return "its last scans are missing" if any(any(bits) for bits in missing.values()) else ""
