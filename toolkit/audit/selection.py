"""Which posters are audited: those with text, of a CSV's if one is given, or a sample of them."""

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
from shards.inputs.metadata import GenreOptions, Rejection, first_reasons, read_metadata
from toolkit.audit.images import Poster
from toolkit.audit.options import AuditOptions

log = logging.getLogger(__name__)


@dataclass
class Chosen:
    """The posters to audit, and what became of the others."""

    posters: list[Poster]
    left_out: list[Rejection]
    counts: dict[str, int]


def read_posters(cleaned: Path) -> list[Poster]:
    """The rows of the cleaning's report. Raises UserError if there is none."""
    from shards.text.report import read_report

    return [
        Poster(str(r["id"]), int(r["width"]), int(r["height"]), float(r["altered"]), str(r["fill"]), r["polygons"])
        for r in read_report(cleaned).to_dict("records")
    ]


def read_targets(path: Path, labels: LabelSet, columns: GenreOptions) -> dict[str, np.ndarray]:
    """Id → (G,) bool of the CSV's posters; genres that the model does not know are left out, with a warning.

    A poster with none but unknown genres is all False: its effect counts, and the metrics leave it out.
    """
    metadata = read_metadata(path, columns, known=labels.genres)
    if metadata.rejected:
        log.warning("%d rows of %s are not audited: %s", len(metadata.rejected), path, first_reasons(metadata.rejected))
    unknown = Counter(genre for row in metadata.rows for genre in row.genres if genre not in labels.index)
    if unknown:
        shown = some([repr(one_line(genre)) for genre, _ in unknown.most_common()])
        log.warning("%s has genres that the model does not know; they are ignored: %s", path, shown)
    if unknown and not any(labels.columns(row.genres) for row in metadata.rows):
        raise UserError(
            "table-column",
            f"{path} has no genre that the model knows in column {metadata.genre_column!r}; "
            f"choose another with --genre-column",
        )
    return {row.id: np.array(labels.multi_hot(labels.columns(row.genres)), dtype=bool) for row in metadata.rows}


def choose_posters(
    posters: Sequence[Poster], options: AuditOptions, targets: dict[str, np.ndarray] | None = None
) -> Chosen:
    """The posters with text, those of the CSV if there is one, a sample of them if there is a limit.

    Raises UserError if none is left.
    """
    listed, left_out = posters, []
    if targets is not None:
        listed = [poster for poster in posters if poster.id in targets]
        known = {poster.id for poster in posters}
        left_out = [Rejection(i, "not cleaned", "in the CSV, not in the report") for i in targets if i not in known]
        if not listed:
            raise UserError(
                "table-column",
                f"no id of the CSV is in the report of {options.cleaned}; is --id-column the right column?",
            )
    with_text = [poster for poster in listed if poster.altered > 0]
    if not with_text:
        raise UserError(
            "images-none",
            f"no poster in {options.cleaned} had text painted over: there is nothing to audit; "
            "did `posters clean` find any text?",
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
