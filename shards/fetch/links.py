"""Read the links of a table. Each row becomes a link to download, or a rejection with its reason."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from shards.errors import one_line, without_secrets
from shards.inputs.rejections import Rejection, id_problem
from shards.storage.paths import StoragePath
from shards.tables.readers import open_table
from shards.tables.sample_ids import sample_ids
from shards.tables.table import TableOptions

log = logging.getLogger(__name__)

#: Longest accepted link, in characters.
MAX_LINK_TEXT = 8000
#: Control characters and lone surrogates.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class BadLink(ValueError):
    """A text that is not an accepted link. The message is the reason."""


@dataclass(frozen=True, slots=True)
class Link:
    """Link of a poster. ``line`` is its line in the table, ``host`` is the host of ``url``.

    written: the text of the id in the table, which earlier versions used as the id. Empty if it is not a valid id.
    """

    line: int
    id: str
    url: str
    host: str
    written: str = ""


def read_links(
    path: Path, url_column: str, options: TableOptions = TableOptions(), images: StoragePath | None = None
) -> tuple[list[Link], dict[int, Rejection]]:
    """Return the links of a table, in file order, and the rejected rows by their number.

    A column is given by its header or by its number from 0. The ids are those of a build with the same table and with
    ``images``, the folder of the posters (see sample_ids).

    Raises UserError if the file or a column is missing, or if the column of ids has row numbers. A bad row does not
    raise an error, but becomes a Rejection.
    """
    links: list[Link] = []
    rejected: dict[int, Rejection] = {}
    seen: set[str] = set()
    with open_table(path, options) as table:
        id_at, url_at = table.id_column(), table.column(url_column, "--url-column")
        rows = [(line, _cell(row, id_at), _cell(row, url_at)) for line, row in table.rows]
        written = [text for _, text, _ in rows]
        if options.id_column is None:
            table.refuse_row_numbers(id_at, list(filter(None, written)))
        found = sample_ids(written, images, by_file=table.by_file)
    for change in found.changes:
        log.info("%s", change)
    for (line, text, url), sample_id in zip(rows, found.ids, strict=True):
        if problem := id_problem(sample_id):
            rejected[line] = Rejection(sample_id, "bad id", f"line {line}: {problem}")
        elif sample_id in seen:
            rejected[line] = Rejection(sample_id, "repeated id", f"line {line}: the first row with this id is used")
        else:
            seen.add(sample_id)
            try:
                host = sys.intern(parse_link(url).raw_host or "")  # one string in memory for all links of a host
                links.append(Link(line, sample_id, url, host, "" if id_problem(text) else text))
            except BadLink as bad:
                rejected[line] = Rejection(sample_id, "bad link", f"line {line}: {bad}")
    return links, rejected


def _cell(row: Sequence[str], at: int) -> str:
    return row[at].strip() if at < len(row) else ""


def parse_link(text: str) -> URL:
    """Parse a link. Raises BadLink if it is empty, too long, malformed or not http(s), or if it has a password.

    The HTTP client's own parser is used, because a different parser could read a different host from a hostile link.
    """
    if not text:
        raise BadLink("empty")
    if len(text) > MAX_LINK_TEXT:
        raise BadLink(f"{len(text)} characters, over the limit of {MAX_LINK_TEXT}")
    if CONTROL.search(text):
        raise BadLink("control characters in the link")
    try:
        url = URL(text)
        host, port = url.raw_host, url.port
    except ValueError as error:
        raise BadLink(one_line(error)) from None
    if url.scheme not in ("http", "https"):
        raise BadLink(f"{without_secrets(text)[:60]!r} does not begin with http:// or https://")
    if not host or not port or any(character.isspace() for character in host):
        raise BadLink(f"{without_secrets(text)[:60]!r} has no host")
    if url.raw_user is not None or url.raw_password is not None:
        raise BadLink("a user name or password in the link")
    return url
