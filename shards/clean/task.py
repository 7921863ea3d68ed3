"""One task of cleaning: clean and write a chunk of posters, then write a result file for the chunk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from PIL import Image

from shards.executors.chunks import read_result, write_result
from shards.inputs.image_files import read_checked
from shards.inputs.images import BadImage, blamed_on_the_picture, decode, jpeg, plain_jpeg_size
from shards.inputs.rejections import Rejection
from shards.storage.files import atomic_write, fingerprint, place_key, remove_file
from shards.storage.paths import StoragePath
from shards.text.pipeline import NOT_CLEANED, clean_image, require_same_removal

if TYPE_CHECKING:
    from shards.clean.run import CleanOptions

JPEG_SIDE = 65_500  # longest side that libjpeg writes, in pixels
CHUNK = 16  # posters per task: some seconds of work, so that little is lost if the run is killed


@dataclass(frozen=True)
class CleanTask:
    """A chunk of checked posters."""

    options: CleanOptions
    samples: tuple[tuple[str, str, str], ...]  # (id, SHA-256 of the source file, its path in the folder)
    facts: str  # fingerprint of ``options.text``
    answer: StoragePath  # result file, written last; it marks the chunk as finished

    def __len__(self) -> int:
        return len(self.samples)

    def __str__(self) -> str:
        return f"cleaning posters {self.samples[0][0]} to {self.samples[-1][0]}"

    def state(self) -> str:
        """Return a fingerprint of everything that determines the cleaned posters. Paths are not included."""
        contents = [[sample_id, digest] for sample_id, digest, _ in self.samples]
        return fingerprint([contents, self.facts, self.options.quality])


def cleaned_path(out: StoragePath, sample_id: str) -> StoragePath:
    return out / f"{sample_id}.jpg"


def finished(task: CleanTask, answer: bytes, sizes: Mapping[str, int]) -> list[dict[str, Any]] | None:
    """Return the report rows of a chunk that an earlier run finished. None if the chunk must be cleaned again.

    ``answer`` is the content of the result file. ``sizes`` has the size in bytes of each cleaned poster by id.
    """
    found = read_result(answer, task.state())
    try:
        rows, expected = found["rows"], found["bytes"]
        if any(map(rejection_of, rows)):
            return None  # clean the chunk again, because the failed posters may succeed now
        whole = all(sizes.get(i) == size for (i, *_), size in zip(task.samples, expected, strict=True))
        return rows if whole else None
    except (ValueError, KeyError, TypeError):
        return None  # the file has no usable result


def rejection_of(row: dict[str, Any]) -> Rejection | None:
    """Return the rejection in the row of a failed poster. None for the row of a cleaned poster."""
    return Rejection(row["id"], *row["rejected"]) if "rejected" in row else None


def clean_chunk(task: CleanTask) -> list[dict[str, Any]]:
    """Clean the posters of a chunk and return their rows. Raises UserError if a poster changed since it was checked.

    A poster that cannot be cleaned gets no file. Its row has only the id and the reason (see ``rejection_of``).
    """
    options = task.options
    require_same_removal(options.text, task.facts)
    rows: list[dict[str, Any]] = []
    sizes: list[int | None] = []
    for sample_id, digest, name in task.samples:
        data = read_checked(options.images, sample_id, name, digest, "posters were cleaned", "run it again")
        place = cleaned_path(options.out, sample_id)
        try:
            cleaned = clean_image(sample_id, decode(data, options.image), options.text)
            # Keep the bytes of an unchanged poster if it is an upright RGB JPEG, to avoid a second JPEG compression.
            packed = data if not cleaned.painted and plain_jpeg_size(data) else encode(cleaned.image, options.quality)
        except BadImage as bad:
            remove_file(place)  # an earlier run may have written this poster
            rows.append({"id": sample_id, "rejected": [bad.reason, bad.detail]})
            sizes.append(None)
            continue
        with atomic_write(place) as stream:
            stream.write(packed)
        rows.append(cleaned.row)
        sizes.append(len(packed))
    write_result(task.answer, task.state(), bytes=sizes, rows=rows)
    return rows


def encode(image: Image.Image, quality: int) -> bytes:
    """Return JPEG bytes without chroma subsampling, for sharp edges. Raises BadImage if the image is too large."""
    if max(image.size) > JPEG_SIDE:
        raise BadImage(NOT_CLEANED, f"{image.width}x{image.height} pixels, but a JPEG has at most {JPEG_SIDE} per side")
    with blamed_on_the_picture(NOT_CLEANED):
        return jpeg(image, quality, subsampling=0, optimize=True)


def of_own_places(ids: Sequence[str], out: StoragePath, ours: Iterable[str]) -> tuple[list[str], list[Rejection]]:
    """Return ids with unique poster paths in ``out``, and reject other ids. ``ours``: names of this command's files."""
    key = place_key(out)
    taken = {key(name) for name in ours}
    places: dict[str, str] = {}
    for sample_id in ids:
        places.setdefault(key(f"{sample_id}.jpg"), sample_id)
    kept, others = [], []
    for sample_id in ids:
        other = places[key(f"{sample_id}.jpg")]
        folders = [key(str(folder)) for folder in PurePosixPath(sample_id).parents]
        if other != sample_id:
            problem = f"its poster would have the same path as the poster of {other!r}"
        elif taken.intersection(folders):
            problem = "its path is used by files of `posters clean`"
        elif above := [places[folder] for folder in folders if folder in places]:
            problem = f"its folder would have the same path as the poster of {above[0]!r}"
        else:
            kept.append(sample_id)
            continue
        others.append(Rejection(sample_id, "bad id", problem))
    return kept, others
