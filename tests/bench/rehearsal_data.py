"""The posters of the rehearsal, and the comparison of the ids and updates in its outputs."""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from shards.dataset.index import read_index
from shards.errors import UserError, some
from shards.storage.csv_text import unescaped
from shards.storage.endings import is_image_name
from shards.storage.files import atomic_write

SPLITS = ("train", "val", "test")
SHARES = (0.8, 0.1, 0.1)


class Failed(Exception):
    """A step failed, or an output is not complete. The text is one line."""


def repeat_posters(metadata: Path, images: Path, posters: int, out: Path) -> None:
    """Write OUT/posters and OUT/posters.csv, with so many posters and a column ``split``. Nothing if they exist.

    The copies of a poster are hard links to one file, and have the ids ID-00, ID-01, and so on. The first column of
    ``metadata`` has the ids. Rows without an image, and later rows of the same id, are left out. Raises UserError if
    no row has an image.
    """
    table = out / "posters.csv"
    if table.exists():  # written last
        return
    if not metadata.is_file() or not images.is_dir():
        raise UserError("path-missing", f"not found: {images if metadata.is_file() else metadata}")
    files = {path.stem: path for path in sorted(images.iterdir()) if is_image_name(path.name)}
    with open(metadata, newline="", encoding="utf-8") as stream:
        header, *lines = csv.reader(stream)
    rows = list({row[0]: row for row in reversed(lines) if row and row[0] in files}.values())[::-1]
    if not rows:
        raise UserError("images-none", f"no id in the first column of {metadata} has an image in {images}")
    shutil.rmtree(out / "posters", ignore_errors=True)
    (out / "posters").mkdir(parents=True)
    splits = np.random.default_rng(0).choice(SPLITS, posters, p=SHARES).tolist()
    with atomic_write(table, "w") as stream:
        writer = csv.writer(stream)
        writer.writerow([*header, "split"])
        for number in range(posters):
            copy, place = divmod(number, len(rows))
            first_id, *cells = rows[place]
            source, sample_id = files[first_id], f"{first_id}-{copy:02d}"
            target = out / "posters" / f"{sample_id}{source.suffix}"
            if copy == 0:
                shutil.copyfile(source, target)  # the user's file gets no links, because it may be changed later
            else:
                os.link(out / "posters" / f"{first_id}-00{source.suffix}", target)
            writer.writerow([sample_id, *cells, splits[number]])


def check_set(table: Path, shards: Path) -> int:
    """Check that each id of the table is in the set once, in its split, or in rejected.csv. Return the rejected."""
    wanted = {(row["split"], next(iter(row.values()))) for row in _rows(table)}
    rejected = {unescaped(row["id"]) for row in _rows(shards / "rejected.csv")}
    samples = {pair for pair in wanted if pair[1] not in rejected}
    found = [(tar.name.partition("-")[0], i) for tar in sorted(shards.glob("*.tar")) for i in _indexed(tar)]
    _compare(found, samples, "the shard set")
    return len(wanted) - len(samples)


def check_predictions(predictions: Path, shards: Path, split: str) -> None:
    """Check that each sample of the split (empty: of the set) has one row of predictions, and that none is an error."""
    wanted = {i for tar in shards.glob(f"{split}*.tar") for i in _indexed(tar)}
    tables = [pq.read_table(path, columns=["id", "error"]) for path in predictions.rglob("*.parquet")]
    _compare([i for table in tables for i in table["id"].to_pylist()], wanted, "the predictions")
    if errors := [error for table in tables for error in table["error"].to_pylist() if error]:
        raise Failed(f"the predictions have {len(errors)} rows with an error: {errors[0]}")


def check_updates(log: Path, updates: int) -> None:
    """Check that log.csv has each update from 1 to ``updates`` once, in order."""
    found = update_numbers(log)
    _compare(found, set(range(1, updates + 1)), log.name)
    if found != sorted(found):
        raise Failed(f"the updates in {log.name} are not in order")


def update_numbers(log: Path) -> list[int]:
    """Return the numbers of the updates in log.csv. Empty if there is no such file. The last row may be incomplete."""
    rows = list(_rows(log)) if log.exists() else []
    return [int(row["update"]) for row in rows if None not in row.values()]


def _compare(found: Iterable[object], wanted: Set[object], what: str) -> None:
    """Raise Failed unless ``found`` has each of ``wanted`` once, and nothing else."""
    counts = Counter(found)
    repeated = [str(key) for key, count in counts.items() if count > 1]
    problems = {
        "missing": sorted(map(str, wanted - counts.keys())),
        "not expected": sorted(map(str, counts.keys() - wanted)),
        "repeated": sorted(repeated),
    }
    texts = [f"{len(keys)} {name} ({some(keys, 3)})" for name, keys in problems.items() if keys]
    if texts:
        raise Failed(f"{what}: {'; '.join(texts)}; {len(wanted)} are expected")


def _indexed(tar: Path) -> list[str]:
    ids: list[str] = read_index(tar)[0]["id"].to_pylist()
    return ids


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        yield from csv.DictReader(stream)
