"""Write and read clean_report.parquet, which has a row for each cleaned poster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import UserError, one_line
from shards.schema import parse_as
from shards.storage.files import atomic_write
from shards.storage.paths import StoragePath, as_user_error
from shards.text.pipeline import REPORT as NAME

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("width", pa.int32()),  # pixels of the upright poster
        ("height", pa.int32()),
        ("fill", pa.string()),
        ("passes", pa.int32()),  # number of times that the poster was painted over
        ("boxes_before", pa.int32()),  # number of regions found before the first painting
        ("boxes_after", pa.int32()),  # number of regions found by the last searches
        ("text_before", pa.float64()),  # shares of the picture inside these regions
        ("text_after", pa.float64()),
        ("altered", pa.float64()),  # share of the pixels painted over
        ("seconds", pa.float64()),
        ("polygons", pa.list_(pa.list_(pa.int32()))),  # polygons x0, y0, x1, y1, ... of all painted areas
        ("skipped", pa.list_(pa.string())),  # reasons of the regions that were not painted over
        ("skipped_polygons", pa.list_(pa.list_(pa.int32()))),
    ]
)


def write_report(path: StoragePath, rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write the report. ``facts`` are the settings of text removal, which go into the metadata of the file."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    table = table.replace_schema_metadata({b"text_removal": json.dumps(facts, sort_keys=True).encode()})
    with atomic_write(path) as stream:
        pq.write_table(table, stream)


def read_report(folder: StoragePath) -> pd.DataFrame:
    """Return the report of a folder, with settings in ``attrs["text_removal"]``. Raises UserError for a bad report."""
    path, again = folder / NAME, "run `posters clean` again"
    try:
        with as_user_error("read the report", path):
            table = pq.read_table(pa.BufferReader(path.read_bytes()))
    except FileNotFoundError:
        message = f"{path} not found: {folder} was not made by `posters clean`, or the command has not finished"
        raise UserError("path-missing", message) from None
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError("table-unreadable", f"{path} cannot be read: {one_line(error)}; {again}") from None
    if missing := [name for name in SCHEMA.names if name not in table.column_names]:
        raise UserError("table-unreadable", f"{path} has no column {missing[0]!r}; {again}")
    facts = (table.schema.metadata or {}).get(b"text_removal", b"{}")
    try:
        table = table.select(SCHEMA.names).cast(SCHEMA)
        table.validate(full=True)
    except (pa.ArrowException, ValueError) as error:
        raise UserError("table-unreadable", f"{path} is not a valid report: {one_line(error)}; {again}") from None
    if empty := [name for name in SCHEMA.names if table[name].null_count]:
        raise UserError("table-unreadable", f"{path} has empty values in column {empty[0]!r}; {again}")
    frame = table.to_pandas()
    frame.attrs["text_removal"] = parse_as(facts, dict[str, Any], path, "report", again)
    return frame


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarize the report. ``altered_median`` and ``passes_mean`` ignore posters without text."""
    frame = pd.DataFrame(rows, columns=SCHEMA.names)
    text = frame[frame["text_before"] > 0]
    before, after = float(text["text_before"].sum()), float(text["text_after"].sum())
    return {
        "posters": len(frame),
        "with_text": len(text),
        "text_before_mean": float(frame["text_before"].mean()) if len(frame) else 0.0,
        "text_after_of_before": after / before if before else 0.0,
        "posters_with_text_after": int((frame["text_after"] > 0).sum()),
        "altered_median": float(text["altered"].median()) if len(text) else 0.0,
        "passes_mean": float(text["passes"].mean()) if len(text) else 0.0,
        "posters_with_skipped": int(frame["skipped"].map(len).gt(0).sum()) if len(frame) else 0,
        "seconds_mean": float(frame["seconds"].mean()) if len(frame) else 0.0,
    }
