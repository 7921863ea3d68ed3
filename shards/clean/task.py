"""The unit of work of cleaning: some posters, each cleaned and written, and a file that says so."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from shards.errors import UserError
from shards.files import atomic_write, fingerprint, one_line, write_json
from shards.images import BadImage, ImageOptions, decode, plain_jpeg_size, read_image_file
from shards.text.stage import TextRemoval, clean_image

CHUNK = 16  # posters a task: some seconds of work, so that little is lost when the run is killed


@dataclass(frozen=True)
class CleanTask:
    """A chunk of checked posters."""

    folder: Path
    out: Path
    samples: tuple[tuple[str, str], ...]
    """(id, SHA-256 of the source file) of each."""
    image: ImageOptions
    text: TextRemoval
    facts: str
    """Fingerprint of ``text``."""
    quality: int
    answer: Path
    """Written last: its presence means that the chunk's posters are there."""

    def state(self) -> str:
        """Fingerprint of everything that decides the posters; places play no part."""
        return fingerprint([list(map(list, self.samples)), self.facts, self.quality])


def cleaned_path(out: Path, sample_id: str) -> Path:
    """Where a cleaned poster lies: where `posters shards build --images OUT` looks first."""
    return out / f"{sample_id}.jpg"


def finished(task: CleanTask) -> list[dict[str, Any]] | None:
    """The report rows of a chunk that an earlier run finished; None if there is work left."""
    try:
        kept = json.loads(task.answer.read_text())
        rows, sizes = kept["rows"], kept["bytes"]
        whole = all(
            cleaned_path(task.out, sample).stat().st_size == size
            for (sample, _), size in zip(task.samples, sizes, strict=True)
        )
        return rows if kept["state"] == task.state() and whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no usable answer from an earlier run


def clean_chunk(task: CleanTask) -> list[dict[str, Any]]:
    """Clean the posters of a chunk; returns their rows. Raises UserError if one changed since it was checked."""
    rows, sizes = [], []
    for sample_id, digest in task.samples:
        data = _checked(task, sample_id, digest)
        cleaned = clean_image(sample_id, decode(data, task.image), task.text)
        # What was not painted keeps its bytes, if they are what readers expect: no second JPEG generation.
        packed = (
            data if not cleaned.painted and plain_jpeg_size(data) else encode(cleaned.image, task.quality)
        )
        with atomic_write(cleaned_path(task.out, sample_id)) as stream:
            stream.write(packed)
        rows.append(cleaned.row)
        sizes.append(len(packed))
    write_json(task.answer, {"state": task.state(), "bytes": sizes, "rows": rows})
    return rows


def encode(image: Image.Image, quality: int) -> bytes:
    """JPEG bytes with colour at full resolution: painted edges keep their place."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling=0, optimize=True)
    return out.getvalue()


def _checked(task: CleanTask, sample_id: str, digest: str) -> bytes:
    try:
        data = read_image_file(task.folder, sample_id)
        problem = "" if hashlib.sha256(data).hexdigest() == digest else "its bytes differ"
    except BadImage as error:
        problem = one_line(f"{error.reason} {error.detail}")
    if problem:
        raise UserError(
            f"poster {sample_id} in {task.folder} changed while posters were cleaned ({problem}); run it again"
        )
    return data
