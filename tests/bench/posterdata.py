"""The data sets of the loader benchmark: the same posters stored, shrunk and enlarged, as files and as shards.

    WORK/data-KEY/SET/files/000000.jpg ...   the posters, all JPEG
                      shards/                the toolkit's own shard set, everything in split "train"
                      formats/STACK/         what a stack made of them for itself

KEY is a fingerprint of the sources and the sampling, so that a second run finds the data ready.
"""

from __future__ import annotations

import csv
import io
import os
import random
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from shards.build.run import BuildOptions, build_shards
from shards.dataset.index import list_tars, read_index
from shards.errors import UserError
from shards.executors.local import available_cores
from shards.inputs.images import BadImage, ImageOptions, decode, pack_image
from shards.storage.endings import ENDINGS_TEXT, is_image_name
from shards.storage.files import atomic_write, fingerprint, read_json, write_json

#: Large enough that nothing is shrunk on its way into a shard: the sets below say how large posters are.
AS_IS = ImageOptions(short_side=100_000, long_side=100_000)
#: Changes when the data would be made in another way.
FORMAT = 2


def stored(data: bytes) -> bytes:
    """The file as it is (pictures that are no upright RGB JPEG become one)."""
    decode(data, AS_IS)  # all of it: a truncated file must not get into a set
    return pack_image(data, AS_IS).data


def short256(data: bytes) -> bytes:
    """Short side 256 at quality 90; smaller posters are enlarged, so that any folder gives comparable figures."""
    image = decode(data, AS_IS)
    scale = 256 / min(image.size)
    return resized(image, scale, 90)


def large500(data: bytes) -> bytes:
    """500 wide at quality 87, smaller posters enlarged: as posters come from film databases."""
    image = decode(data, AS_IS)
    return resized(image, 500 / image.width, 87)


def resized(image: Image.Image, scale: float, quality: int) -> bytes:
    """A JPEG of a decoded image, enlarged or shrunk by ``scale``. Raises BadImage if shards would not take it."""
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if min(size) < AS_IS.min_side or size[0] * size[1] > AS_IS.max_pixels:
        raise BadImage("too narrow", f"{size[0]}x{size[1]} pixels")  # the shard builder would leave it out
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


SETS: dict[str, Callable[[bytes], bytes]] = {"stored": stored, "short256": short256, "large500": large500}


@dataclass(frozen=True)
class PosterSet:
    """One prepared data set."""

    name: str
    folder: Path
    samples: int
    mean_bytes: int
    median_width: int
    median_height: int

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def tars(self) -> list[Path]:
        return list_tars(self.shards)

    def cache(self, stack: str) -> Path:
        """Where a stack keeps the posters in its own format."""
        return self.folder / "formats" / stack


def prepare_sets(
    images: Path | None, samples: int, names: list[str], work: Path, seed: int, repeat: int = 1
) -> list[PosterSet]:
    """The data sets, made or found. Each has every poster ``repeat`` times, under other names.

    Raises UserError if there is nothing to make them from.
    """
    candidates = _drawn(samples, work, seed) if images is None else _found(images)
    random.Random(seed).shuffle(candidates)
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in candidates]
    key = fingerprint([FORMAT, samples, seed, facts, *([repeat] if repeat > 1 else [])])[:16]
    for old in work.glob("data-*"):
        if old.name != f"data-{key}":
            shutil.rmtree(old)  # raw pixels of one set of posters are gigabytes
    return [_prepared(name, work / f"data-{key}" / name, candidates, samples, seed, repeat) for name in names]


def _found(images: Path) -> list[Path]:
    if not images.is_dir():
        raise UserError("path-missing", f"image folder not found: {images}")
    found = [
        Path(folder, name)
        for folder, _, names in os.walk(images)
        for name in names
        if is_image_name(name) and Path(folder, name).is_file()
    ]
    if not found:
        raise UserError("images-none", f"no {ENDINGS_TEXT} file in {images}")
    return sorted(found)


def _drawn(samples: int, work: Path, seed: int) -> list[Path]:
    from shards.inputs.synthetic import GENRES, draw_poster_set

    count = max(samples, len(GENRES))
    folder = work / f"drawn-{count}"
    if not (folder / "metadata.csv").exists():  # written last
        print(f"drawing {count} posters (once)", file=sys.stderr)
        draw_poster_set(folder, count, seed)
    return sorted((folder / "images").glob("p*"))  # the others are spoilt on purpose


def _prepared(name: str, folder: Path, candidates: list[Path], samples: int, seed: int, repeat: int) -> PosterSet:
    done = folder / "set.json"
    if not done.exists():
        print(f"preparing {name}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "files").mkdir(parents=True)
        skipped = _write_files(SETS[name], folder / "files", candidates, samples)
        for path in sorted((folder / "files").glob("*.jpg")):
            for turn in range(1, repeat):
                os.link(path, path.with_stem(f"{path.stem}-{turn:03d}"))
        ids = sorted(path.stem for path in (folder / "files").glob("*.jpg"))
        if not ids:
            raise UserError("images-none", f"no readable image: {skipped[0] if skipped else 'none was asked for'}")
        _build(folder, ids, seed)
        write_json(done, _describe(folder / "shards", skipped))
    facts = read_json(done, "data set")
    skipped = facts.pop("skipped")
    if skipped:
        print(f"warning: {name}: {len(skipped)} unreadable images were skipped, e.g. {skipped[0]}", file=sys.stderr)
    return PosterSet(name, folder, **facts)


def _write_files(convert: Callable[[bytes], bytes], files: Path, candidates: list[Path], samples: int) -> list[str]:
    """Write the first ``samples`` candidates that can be read; return what was wrong with the others."""

    def write(place: int) -> str:
        path = candidates[place]
        try:
            data = convert(path.read_bytes())
        except BadImage as bad:
            return f"{path.name}: {bad.reason}"
        except (OSError, ValueError) as error:  # the file cannot be read, or the picture not be encoded as JPEG
            return f"{path.name}: {type(error).__name__}"
        (files / f"{place:06d}.jpg").write_bytes(data)
        return ""

    problems: list[str] = []
    tried = good = 0
    with ThreadPoolExecutor(available_cores()) as pool:  # Pillow releases the GIL
        while good < samples and tried < len(candidates):
            places = range(tried, min(tried + samples - good, len(candidates)))
            answers = list(pool.map(write, places))
            tried = places.stop
            good += answers.count("")
            problems += [answer for answer in answers if answer]
    return problems


def _build(folder: Path, ids: list[str], seed: int) -> None:
    """Pack the files with the toolkit's shard builder, into as many equal shards as all workers can share."""
    metadata = folder / "metadata.csv"
    with atomic_write(metadata, "w") as stream:
        csv.writer(stream).writerows([("id", "genre"), *((sample, "Poster") for sample in ids)])
    shards = 4 * available_cores()
    build_shards(
        BuildOptions(
            metadata=metadata,
            out=folder / "shards",
            images=folder / "files",
            genre_column="1",
            fractions=(1.0, 0.0, 0.0),
            seed=seed,
            samples_per_shard=-(-len(ids) // shards),
            near_duplicates=0,
            image=AS_IS,
        )
    )


def _describe(shards: Path, skipped: list[str]) -> dict[str, object]:
    tables = [read_index(tar)[0] for tar in list_tars(shards)]
    sizes, widths, heights = (
        sorted(value for table in tables for value in table[column].to_pylist())
        for column in ("image_size", "width", "height")
    )
    middle = len(sizes) // 2
    return {
        "samples": len(sizes),
        "mean_bytes": round(sum(sizes) / len(sizes)),
        "median_width": widths[middle],
        "median_height": heights[middle],
        "skipped": skipped,
    }
