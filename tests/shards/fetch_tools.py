"""What the tests of whole downloads share: a CSV of links, a quick run, what lies in the folder afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shard_tools import draw, encoded, rows_of, write_csv

from shards.fetch.run import Fetched, FetchOptions, fetch_posters

JPEG = encoded(draw("jpeg"))
PNG = encoded(draw("png"), "PNG")


def table(folder: Path, links: dict[str, str] | list[tuple[str, str]]) -> Path:
    rows = links.items() if isinstance(links, dict) else links
    return write_csv(folder / "meta.csv", rows, ("id", "link"))


def fetch(folder: Path, links: dict[str, str] | list[tuple[str, str]] | None = None, **changed: Any) -> Fetched:
    """Fetch these links (None: as before) into folder/images."""
    if links is not None:
        table(folder, links)
    quick = {"backoff": 0.01, "retries": 1, "timeout": 5, "max_bytes": 200_000, "allow_private": True}
    return fetch_posters(FetchOptions(folder / "meta.csv", folder / "images", "link", **{**quick, **changed}))


def posters(folder: Path) -> dict[str, bytes]:
    """Every file of the folder that is no account of ours."""
    images = folder / "images"
    own = {"rejected.csv", ".fetch.jsonl", ".lock"}
    return {
        path.relative_to(images).as_posix(): path.read_bytes()
        for path in sorted(images.rglob("*"))
        if path.is_file() and path.name not in own
    }


def reasons(folder: Path) -> dict[str, str]:
    return {row[0]: row[1] for row in rows_of(folder / "images" / "rejected.csv")}
