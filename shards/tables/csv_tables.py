"""Read a CSV: find its text encoding and the separator of its columns, and yield its rows with line numbers."""

from __future__ import annotations

import codecs
import csv
import io
import logging
import re
from collections.abc import Iterator, Sequence

import charset_normalizer
import numpy as np

from shards.errors import UserError, one_line
from shards.storage.paths import StoragePath
from shards.tables.table import Table, TableOptions

log = logging.getLogger(__name__)

#: Separators of columns, in the order of preference.
DELIMITERS = ",;\t|"
NAMES = {",": "',' separated", ";": "';' separated", "\t": "tab separated", "|": "'|' separated"}
#: First line of some CSVs of Excel, which has only the separator.
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
#: Number of lines from which the separator is found.
HEAD = 200
#: Byte order marks. A mark of UTF-32 begins like a mark of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
#: First bytes of files that are not text, and what to do with such a file.
OTHER_FILES = {
    b"PK\x03\x04": "a spreadsheet or ZIP file: save it as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel file: save it as CSV",
    b"SQLite format 3": "an SQLite database: export its table as CSV",
    b"\x1f\x8b": "a gzip file: decompress it",
    b"BZh": "a bzip2 file: decompress it",
    b"\xfd7zXZ": "an xz file: decompress it",
    b"\x28\xb5\x2f\xfd": "a Zstandard file: decompress it",
    b"ARROW1\x00": "a Feather file: write it as Parquet, in pandas with read_feather(FILE).to_parquet(NEW_FILE)",
    b"FEA1\x00": "a Feather file: write it as Parquet, in pandas with read_feather(FILE).to_parquet(NEW_FILE)",
    b"\xff\xff\xff\xff": "an Arrow stream: write its table as Parquet, in datasets with Dataset.to_parquet(NEW_FILE)",
    b"\x89HDF": "an HDF5 file: write its table as Parquet, in pandas with read_hdf(FILE).to_parquet(NEW_FILE)",
    b"\xff\xd8\xff": "a JPEG image: choose the table of genres",
    b"\x89PNG": "a PNG image: choose the table of genres",
    b"%PDF": "a PDF: save the table as CSV",
}
#: Encodings of text in which most letters are not ASCII. In Western languages, most letters are ASCII.
NOT_WESTERN = ["gb18030", "shift_jis", "euc_jp", "euc_kr", "big5", "cp1251", "koi8_r", "cp1253", "cp1255", "cp1256"]


def text_table(path: StoragePath, data: bytes, options: TableOptions) -> Table:
    """Return the table in the bytes of a CSV with a header line. Raises UserError if the bytes are not such a CSV."""
    csv.field_size_limit(1 << 24)
    text, encoding = decoded(path, data, options.encoding)
    lines, first, delimiter = list(io.StringIO(text, newline="")), 0, options.delimiter or ""
    if lines and (separator := SEPARATOR_LINE.fullmatch(lines[0].rstrip("\r\n"))):
        lines, first, delimiter = lines[1:], 1, delimiter or separator[1]
    while lines and not lines[0].strip():
        lines, first = lines[1:], first + 1
    if len(delimiter) > 1 or delimiter in ('"', "\r", "\n"):
        raise UserError("option-value", f"--delimiter takes one character such as ';', not {options.delimiter!r}")
    delimiter = delimiter or _found_delimiter(lines[:HEAD])
    rows = _rows(path, lines, delimiter)
    header = next((row for _, row in rows if any(cell.strip() for cell in row)), [])
    if not header:
        what = "has only empty lines" if text else "is empty"
        raise UserError("table-unreadable", f"{path} {what}: a CSV with a header line is needed")
    form = f"CSV, {NAMES.get(delimiter, f'{delimiter!r} separated')}, {encoding}"
    return Table(path, header, ((line + first, row) for line, row in rows if row), form, options, delimiter)


def _rows(path: StoragePath, lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each record. Raises UserError for a quote that is not closed in its row."""
    if delimiter == "\t" and _one_line_each(lines):
        # Some programs write tabs without quotes around texts, so that a quote in a text has no partner.
        for number, line in enumerate(lines, 1):
            try:
                yield number, next(csv.reader([line], delimiter="\t", strict=True), [])
            except csv.Error:
                yield number, line.rstrip("\r\n").split("\t")
        return
    reader, first = csv.reader(lines, delimiter=delimiter, strict=True), None
    while True:
        start = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num - start > 1 or "end of data" in str(error):
                raise _open_quote(path, start) from None
            try:
                row = next(csv.reader([lines[start]], delimiter=delimiter))
            except csv.Error:
                raise UserError("table-unreadable", f"{path}, line {start + 1}: {one_line(error)}") from None
        if first is not None and row and reader.line_num - start > 2:
            # A cell of several lines. If a line in it looks like a row of its own, a quote is missing.
            for line in lines[start + 1 : reader.line_num - 1]:
                cells = line.rstrip("\r\n").split(delimiter)
                if len(cells) >= len(first) > 1 and _shape(cells[0]) == _shape(row[0]) != "":
                    raise _open_quote(path, start)
        first = row if first is None else first
        yield reader.line_num, row


def _open_quote(path: StoragePath, start: int) -> UserError:
    what = f"line {start + 1} has a quote that is not closed before the next rows"
    return UserError("table-unreadable", f"{path}: {what}; close it, or write two quotes for a quote in a text")


def _shape(cell: str) -> str:
    """Return a text with 0 for each digit and a for each letter. Ids of one table often have the same shape."""
    return re.sub(r"[A-Za-z]", "a", re.sub(r"\d", "0", cell.strip()))


def _one_line_each(lines: Sequence[str]) -> bool:
    """Return whether each line has as many tabs as the header, so that no cell has several lines."""
    return all(line.count("\t") == lines[0].count("\t") for line in lines if line.strip())


def decoded(path: StoragePath, data: bytes, encoding: str | None = None) -> tuple[str, str]:
    """Return the text in the bytes of a file, and the name of its encoding.

    encoding: the encoding that the user chose. If it is None, a byte order mark decides. Without a mark,
    UTF-8 is used if the bytes are valid UTF-8. Otherwise charset-normalizer finds the encoding. Raises UserError if no
    encoding is found.
    """
    if other := next((what for begin, what in OTHER_FILES.items() if data.startswith(begin)), ""):
        raise UserError("table-unreadable", f"{path} is not a table: it is {other}")
    found = None
    if not encoding:
        found = encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "") or _found(
            path, data
        )
    try:
        name = codecs.lookup(encoding).name
        text = data.decode("utf-8-sig" if name == "utf-8" else encoding)
    except LookupError:
        raise UserError("option-value", f"unknown text encoding {encoding!r}; try utf-8 or latin-1") from None
    except UnicodeError as error:  # UTF-16 without a byte order mark raises this base class of UnicodeDecodeError
        remedy = "pass the encoding of the file with --encoding, or leave --encoding out"
        raise UserError("table-unreadable", f"{path} is not {encoding} text ({one_line(error)}); {remedy}") from None
    name = {"utf-8-sig": "utf-8", "iso8859-1": "latin-1"}.get(name, name)
    if found and not name.startswith("utf"):
        shown = next((word for word in re.findall(r"\w+", text) if not word.isascii()), "")
        log.warning(
            "%s is not UTF-8; it is read as %s (for example %r). If that is wrong, pass --encoding", path, name, shown
        )
    return text, name


def _found(path: StoragePath, data: bytes) -> str:
    """Return the encoding of text without a byte order mark."""
    try:
        data.decode("utf-8")
        if 4 * data.count(b"\x00") <= len(data):
            return "utf-8"
    except UnicodeDecodeError as error:
        escaped = data.decode("utf-8", "surrogateescape")
        bad = sum("\udc80" <= character <= "\udcff" for character in escaped)
        if sum(character > "\x7f" for character in escaped) >= 2 * bad and b"\x00" not in data:
            line = data[: error.start].count(b"\n") + 1
            what = f"is UTF-8 text except for {bad} bytes, of which the first is in line {line}"
            remedy = "correct them, or choose the encoding with --encoding, such as latin-1"
            raise UserError("table-unreadable", f"{path} {what}; {remedy}") from None
    if 4 * data.count(b"\x00") > len(data):  # text in UTF-16 with mostly ASCII letters
        return "utf-16-be" if data[::2].count(0) > data[1::2].count(0) else "utf-16-le"
    high = np.frombuffer(data, dtype=np.uint8) >= 0x80
    alone = (high[:-1] & ~high[1:]).sum() + high[-1] > 0.7 * high.sum()
    if alone and b"\x00" not in data:  # single accented letters: the two encodings differ only in the bytes below 0xA0
        return "cp1252" if any(0x80 <= byte < 0xA0 for byte in data) else "latin-1"
    telling = b"".join(line for line in data.splitlines(keepends=True) if not line.isascii())[: 1 << 16]
    best = None if b"\x00" in data else charset_normalizer.from_bytes(telling, cp_isolation=NOT_WESTERN).best()
    if best is None:
        remedy = "choose the encoding with --encoding, such as latin-1, or save the file as UTF-8"
        raise UserError("table-unreadable", f"{path} is not text in a known encoding; {remedy}")
    return str(best.encoding)


def _found_delimiter(lines: Sequence[str]) -> str:
    """Return the separator of the columns, from the first lines of a CSV."""
    in_header = [delimiter for delimiter in DELIMITERS if lines and delimiter in lines[0]]
    best, most = (in_header[0] if in_header else ","), -1.0
    for delimiter in in_header:
        try:
            rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
        except csv.Error:
            continue
        same = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        if (score := (len(rows[0]) > 1) + same) > most:
            best, most = delimiter, score
    return best
