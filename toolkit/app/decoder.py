"""Decoding of uploaded files in processes that can be killed: a file that takes long holds up its own visitor only.

    Decoder(preprocessing).open(paths)      → for each file what the page needs of it, or why there is nothing
    Decoder(preprocessing).pixels(path, n)  → the picture, at most n pixels large

A child process serves one call. It is forked from a server that has loaded the libraries (multiprocessing's
forkserver), so that it starts in some hundredths of a second. A child that passes its deadline is killed.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.errors import UserError, one_line
from shards.inputs.images import ANY, BadImage, decode, jpeg
from toolkit.data.transforms.batch_transform import RawTransform
from toolkit.data.transforms.preprocessing import Preprocessing

#: The largest file that is taken (MB).
MAX_MB = 20
#: Long side in pixels of the copies that are shown.
SHOWN_SIDE = 720
#: Seconds that one file may take, and all files of one upload.
FILE_SECONDS, UPLOAD_SECONDS = 10.0, 60.0


@dataclass(kw_only=True)
class Opened:
    """What the page keeps of a file: some tens of kilobytes, whatever its size."""

    jpeg: bytes
    """A copy for the page, upright, at most SHOWN pixels long."""
    size: tuple[int, int]
    """Width and height in pixels of the file's own picture, upright."""
    square: np.ndarray
    """(S, S, 3) uint8: what the model sees."""


@dataclass(frozen=True)
class Refused:
    """A file that is no poster, and why, in words for people."""

    name: str
    message: str


class Decoder:
    """Decodes files with a model's preprocessing, each call in a process of its own. Thread-safe."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self._context.set_forkserver_preload([__name__])
            forkserver.ensure_running()  # loads the libraries meanwhile, before the first visitor comes

    def open(self, paths: Sequence[Path]) -> list[Opened | Refused]:
        """One answer per file, in their order."""
        return list(self._ask([(_open, path, self.preprocessing) for path in paths]))

    def pixels(self, path: Path, most: int) -> Image.Image:
        """The picture of a file, RGB and upright, shrunk to at most ``most`` pixels. Raises UserError."""
        (found,) = self._ask([(_pixels, path, most)])
        if isinstance(found, Refused):
            raise UserError("image-unreadable", found.message)
        return Image.fromarray(found)

    def _ask(self, jobs: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Answers of a child to jobs (function, path, argument); Refused where it takes too long or dies."""
        end = time.monotonic() + UPLOAD_SECONDS
        child: _Child | None = None
        try:
            for job in jobs:
                left = min(FILE_SECONDS, end - time.monotonic())
                if left <= 0:
                    yield Refused(job[1].name, "not looked at: the files before it took too long")
                    continue
                child = child or _Child(self._context)
                answer = child.answer(job, left)
                if answer is None:
                    child.close()
                    child = None
                    answer = Refused(job[1].name, f"decoding took more than {FILE_SECONDS:.0f} s, or too much memory")
                yield answer
        finally:
            if child is not None:
                child.close()


class _Child:
    def __init__(self, context: Any) -> None:
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def answer(self, job: tuple[Any, ...], seconds: float) -> Any:
        """None: it took longer, or the child died."""
        try:
            self._pipe.send(job)
            return self._pipe.recv() if self._pipe.poll(seconds) else None
        except (EOFError, OSError):
            return None

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()


def _work(pipe: Connection) -> None:
    """The child: answers jobs until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent ends its children
    while True:
        try:
            do, path, argument = pipe.recv()
        except EOFError:
            return
        pipe.send(do(path, argument))


def _open(path: Path, preprocessing: Preprocessing) -> Opened | Refused:
    try:
        data = _read(path)
        square = RawTransform(preprocessing)(data)
        image = decode(data, ANY)
    except BadImage as bad:  # what the fast decoder forgives, and Pillow does not
        return Refused(path.name, f"{bad.reason} ({bad.detail})" if bad.detail else bad.reason)
    except (OSError, ValueError) as error:
        return Refused(path.name, one_line(error))
    except MemoryError:
        return Refused(path.name, "it needs more memory than there is")
    return Opened(jpeg=jpeg_of(image), size=image.size, square=square)


def _pixels(path: Path, most: int) -> np.ndarray | Refused:
    try:
        image = decode(_read(path), ANY)
    except (OSError, ValueError, BadImage, MemoryError) as error:
        return Refused(path.name, f"{path.name} is no longer here ({one_line(error)}); upload it again")
    scale = (most / (image.width * image.height)) ** 0.5
    if scale < 1.0:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image)


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_MB * 2**20:
        raise ValueError(f"larger than {MAX_MB} MB")
    return path.read_bytes()


def jpeg_of(image: Image.Image) -> bytes:
    """A copy of an RGB picture, at most SHOWN pixels on its long side, as JPEG."""
    copy = image.copy()
    copy.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    return jpeg(copy, 88)
