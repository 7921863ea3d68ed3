"""Posters in pieces that are small enough to be carried, and back into a folder of posters. Standard library only.

    DIR/weights/FILE.safetensors    backbone weights
        posters-1/train-00000.tar   tars of a shard set, in any folder below DIR
        posters-2/train-00005.tar
        wheels-1/*.whl              see wheels.py

Each tar is whole by itself, so any of the pieces will do.
"""

from __future__ import annotations

import csv
import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpu.wheels import Unusable

TABLE = "metadata.csv"


def mebibytes(text: str) -> float:
    """The number of an option for the size of a piece. Raises ValueError, which argparse tells in one line."""
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def deal(files: Sequence[Path], limit_mib: float) -> list[list[Path]]:
    """Files in order into pieces of at most ``limit_mib`` each; a larger file is a piece alone."""
    pieces: list[list[Path]] = []
    left = 0.0
    for path in files:
        size = path.stat().st_size
        if not pieces or size > left:
            pieces.append([])
            left = limit_mib * 2**20
        pieces[-1].append(path)
        left -= size
    return pieces


def weights_in(data: Path | None) -> Path | None:
    """The weights below ``data``, if any."""
    return next(iter(sorted(data.rglob("*.safetensors"))), None) if data else None


def tars_in(data: Path | None) -> list[Path]:
    """The tars below ``data``, by name; a tar in two pieces counts once."""
    found = {path.name: path for path in sorted(data.rglob("*.tar"))} if data else {}
    return [found[name] for name in sorted(found)]


def restore(tars: Sequence[Path], folder: Path, most: int) -> None:
    """Write the posters of shards to ``folder``/images and their genres to a table, but no more than ``most``."""
    (folder / "images").mkdir(parents=True)
    with open(folder / TABLE, "w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["id", "genre"])
        for tar, name, data in itertools.islice(_members(tars), 2 * most):  # an image and its genres
            if name.endswith(".json"):
                try:
                    sample = json.loads(data)
                    rows.writerow([sample["id"], str(sample["genres"])])
                except (ValueError, KeyError, TypeError):
                    raise Unusable(f"{tar} is not a tar of gpu_pieces.py: {name} has no id and genres") from None
            else:
                (folder / "images" / name).write_bytes(data)


def _members(tars: Sequence[Path]) -> Iterator[tuple[Path, str, bytes]]:
    """Yield tar, name and content of each file. Raises Unusable if a file is not a tar."""
    for tar in tars:
        try:
            with tarfile.open(tar) as archive:
                for member in archive:
                    if (file := archive.extractfile(member)) is not None:
                        yield tar, Path(member.name).name, file.read()
        except (tarfile.TarError, OSError, EOFError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Unusable(f"{tar} cannot be read as a tar: {reason}") from None
