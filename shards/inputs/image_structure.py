"""Reject pictures whose decoding can take minutes, and find pictures with several frames. images.py decodes pictures.

Pillow limits the number of pixels, but not the metadata. For example, these files can occupy a core for minutes: a JPEG
of 500 scans, a GIF with 80,000 comment blocks, a TIFF with 65,535 directory entries that each point at the whole file.
Sources: T.81 (JPEG), PNG 3rd edition, GIF 89a, TIFF 6.0, RFC 9649 (WebP), ISO/IEC 23008-12 (AVIF).
"""

from __future__ import annotations

import struct

from shards.inputs.jpeg_header import JpegHeader, TooMuchWork, check_scans, read_jpeg_header

#: Largest numbers of PNG chunks, GIF extension blocks and TIFF directory entries. Programs write far fewer.
MAX_CHUNKS, MAX_BLOCKS, MAX_ENTRIES = 100_000, 4_000, 4_000

PNG, GIF = b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
AVIF = (b"ftypavif", b"ftypavis")
#: Number of a TIFF type -> size of one value in bytes.
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
#: TIFF tags of the nested directories (EXIF, GPS, interoperability). Pillow reads these directories.
_DIRECTORIES = (34665, 34853, 40965)


def check_structure(data: bytes) -> JpegHeader | None:
    """Return the header of a valid JPEG, else None. Raises TooMuchWork if decoding can take minutes."""
    if data.startswith(b"\xff\xd8"):
        header = read_jpeg_header(data)
        check_scans(data, header)
        return header
    if data.startswith(PNG):
        _check_png(data)
    elif data.startswith(GIF):
        _gif_image(data)
    elif data.startswith(TIFF):
        _check_directory(data, 0)
    elif data[4:8] == b"ftyp":  # Pillow reads the EXIF of an AVIF when it opens the file
        for start in TIFF[:2]:
            at = data.find(start)
            while at >= 0:
                _check_directory(data[at:], 0, certain=False)
                at = data.find(start, at + 4)
    return None


def more_frames(data: bytes) -> bool:
    """Return whether a picture has more than one frame or page."""
    if data.startswith(b"\xff\xd8"):
        return False
    if data.startswith(PNG):
        at = data.find(b"acTL", 0, 4096)  # this chunk of an animated PNG comes before the pixels
        return 0 <= at < data.find(b"IDAT") and _number(data, at + 4, ">I") > 1
    if data.startswith(GIF):
        try:
            at = _gif_image(data)
            flags = data[at + 9] if at else 0
            at = _blocks_end(data, at + 11 + (3 << (flags & 7) + 1 if flags & 128 else 0)) if at else 0
            return bool(at) and _gif_image(data, at) > 0
        except (IndexError, TooMuchWork):
            return False
    if data.startswith(TIFF[:2]):
        order = "<" if data[:1] == b"I" else ">"
        start = _number(data, 4, f"{order}I")
        return _number(data, start + 2 + 12 * _number(data, start, f"{order}H"), f"{order}I") > 0
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X":
        return len(data) > 20 and bool(data[20] & 2)
    return data[4:12] == b"ftypavis"


def cut_off(data: bytes) -> bool:
    """Return whether the headers show that a JPEG, WebP, TIFF or AVIF is cut off. False for other formats."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _number(data, 4, "<I") + 8 > len(data)
    if data.startswith(TIFF[:2]):
        return _number(data, 4, f"{'<' if data[:1] == b'I' else '>'}I") + 2 > len(data)
    at = 0
    if data.startswith(b"\xff\xd8"):  # check_structure limits the number of segments, so this loop is short
        at = 2
        while data[at : at + 1] == b"\xff":
            at += 2 + _number(data, at + 2, ">H")
        return at >= len(data)
    while data[4:12] in AVIF and at + 8 <= len(data):
        at += max(8, _number(data, at, ">I"))
    return at > len(data)


def _number(data: bytes, at: int, form: str) -> int:
    try:
        return int(struct.unpack_from(form, data, at)[0])
    except struct.error:
        return 0


def _check_png(data: bytes) -> None:
    at = len(PNG)
    for _ in range(min(MAX_CHUNKS, len(data) // 12 + 1)):
        if at + 12 > len(data):
            return
        at += 12 + _number(data, at, ">I")
    if at + 12 <= len(data):
        raise TooMuchWork(f"over {MAX_CHUNKS} chunks")


def _gif_image(data: bytes, at: int = 0) -> int:
    """Search from offset ``at``. Return the offset of the first image descriptor, or 0 if there is none."""
    if not at:
        flags = data[10] if len(data) > 10 else 0
        at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    blocks = 0
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x2C:
            return at
        if data[at] == 0x21:
            at += 2
            while at < len(data) and data[at]:
                at += 1 + data[at]
                blocks += 1
                if blocks > MAX_BLOCKS:
                    raise TooMuchWork(f"over {MAX_BLOCKS} blocks of comments")
        at += 1  # skip the end of an extension, or a byte that Pillow skips
    return 0


def _blocks_end(data: bytes, at: int) -> int:
    while data[at]:
        at += 1 + data[at]
    return at + 1


def _check_directory(data: bytes, depth: int, start: int | None = None, certain: bool = True) -> None:
    """Raise TooMuchWork if a TIFF directory has too many entries, or if its values exceed twice the file's size.

    certain: whether the file is certainly a TIFF. If false, only the number of entries is checked.
    """
    if data[2:4] in (b"+\0", b"\0+"):
        raise TooMuchWork("BigTIFF, the format for files over 4 GB, is not supported")
    order = "<" if data[:1] == b"I" else ">"
    start = _number(data, 4, f"{order}I") if start is None else start
    entries, total = _number(data, start, f"{order}H"), 0
    if entries > MAX_ENTRIES and start + 12 * entries <= len(data):
        raise TooMuchWork(f"{entries} entries in a directory, over {MAX_ENTRIES}")
    for number in range(entries if certain else 0):
        try:
            tag, kind, count, value = struct.unpack_from(f"{order}HHII", data, start + 2 + 12 * number)
        except struct.error:
            return
        total += _TYPE_SIZES.get(kind, 1) * count
        if total > 2 * len(data):
            raise TooMuchWork("its tags refer to more bytes than the file has")
        if tag in _DIRECTORIES and depth < 2:
            _check_directory(data, depth + 1, value, certain)
