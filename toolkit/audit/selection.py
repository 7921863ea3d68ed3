"""Choose the posters to audit: posters whose text was painted over. A CSV file or --limit can reduce this choice."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.dataset.labels import LabelSet
from shards.errors import UserError, one_line, some
from shards.inputs.rejections import Rejection, first_reasons
from shards.tables.metadata import GenreOptions, read_metadata
from toolkit.audit.images import Poster
from toolkit.audit.options import AuditOptions

log = logging.getLogger(__name__)


@dataclass
class Chosen:
    """The posters to audit, the posters of the CSV that were not cleaned, and counts of posters."""

    posters: list[Poster]
    left_out: list[Rejection]
    counts: dict[str, int]


def read_posters(cleaned: Path) -> list[Poster]:
    """Return the rows of the report of `posters clean`. Raises UserError if there is no report."""
    from shards.text.report import read_report

    return [
        Poster(str(r["id"]), int(r["width"]), int(r["height"]), float(r["altered"]), str(r["fill"]), r["polygons"])
        for r in read_report(cleaned).to_dict("records")
    ]


def read_targets(path: Path, labels: LabelSet, columns: GenreOptions) -> dict[str, np.ndarray]:
    """Return the labels in the CSV: id of the poster → (G,) bool.

    Genres that the model does not have are ignored with a warning. Raises UserError if no poster has a known genre.
    """
    metadata = read_metadata(path, columns, known=labels.genres)
    if metadata.rejected:
        log.warning("%d rows of %s are not audited: %s", len(metadata.rejected), path, first_reasons(metadata.rejected))
    unknown = Counter(genre for row in metadata.rows for genre in row.genres if genre not in labels.index)
    if unknown:
        shown = some([repr(one_line(genre)) for genre, _ in unknown.most_common()])
        log.warning("%s has genres that the model does not have; these genres are ignored: %s", path, shown)
    if unknown and not any(labels.columns(row.genres) for row in metadata.rows):
        raise UserError(
            "table-column",
            f"{path} has no genre of the model in column {metadata.genre_column!r}; choose another --genre-column",
        )
    return {row.id: np.array(labels.multi_hot(labels.columns(row.genres)), dtype=bool) for row in metadata.rows}


def choose_posters(
    posters: Sequence[Poster], options: AuditOptions, targets: dict[str, np.ndarray] | None = None
) -> Chosen:
    """Choose posters whose text was painted over.

    If ``targets`` is given, choose only posters with an id in ``targets``. With --limit, choose a random sample of
    these posters. Raises UserError if no poster remains.
    """
    listed, left_out = posters, []
    if targets is not None:
        listed = [poster for poster in posters if poster.id in targets]
        known = {poster.id for poster in posters}
        left_out = [Rejection(i, "not cleaned", "in the CSV, but not in the report") for i in targets if i not in known]
        if not listed:
            raise UserError(
                "table-column", f"no id of the CSV is in the report of {options.cleaned}; check --id-column"
            )
    with_text = [poster for poster in listed if poster.altered > 0]
    if not with_text:
        raise UserError(
            "images-none",
            f"no poster in {options.cleaned} has text that was painted over, so there is nothing to audit; "
            "check that `posters clean` found text",
        )

    def key(poster: Poster) -> bytes:
        return hashlib.blake2b(f"{options.seed}/sample/{poster.id}".encode(), digest_size=16).digest()

    sample = {poster.id for poster in sorted(with_text, key=key)[: options.limit]}
    chosen = [poster for poster in with_text if poster.id in sample]
    counts = {
        "in_report": len(posters),
        "not_in_metadata": len(posters) - len(listed),
        "without_text": len(listed) - len(with_text),
        "not_in_sample": len(with_text) - len(chosen),
    }
    return Chosen(chosen, left_out, counts)
