"""Decode uploaded files in processes that can be killed, so that a slow file delays only the visitor who uploaded it.

    Decoder(preprocessing).open(paths)      → for each file an Opened, or a Refused with the reason
    Decoder(preprocessing).pixels(path, n)  → the picture, with at most n pixels

Each call has its own child process, forked from a process that has already loaded the libraries (the forkserver of
multiprocessing). So a child starts in a few hundredths of a second. A child that exceeds its time limit is killed.
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

#: Maximum size of a file in MB.
MAX_MB = 20
#: Maximum length of the long side of displayed copies, in pixels.
SHOWN_SIDE = 720
#: Time limits in seconds for one file, and for all files of one upload.
FILE_SECONDS, UPLOAD_SECONDS = 10.0, 60.0


@dataclass(kw_only=True)
class Opened:
    """The data of an uploaded file that are kept in memory: tens of kilobytes, even for a large file."""

    jpeg: bytes
    """An upright copy for the page, at most SHOWN_SIDE pixels on its long side."""
    size: tuple[int, int]
    """Width and height of the upright original picture in pixels."""
    square: np.ndarray
    """(S, S, 3) uint8: the input of the model, before normalisation."""


@dataclass(frozen=True)
class Refused:
    """A file that cannot be used, with the reason for the visitor."""

    name: str
    message: str


class Decoder:
    """Decodes files with the preprocessing of a model, in a new process per call. Thread-safe."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self._context.set_forkserver_preload([__name__])
            forkserver.ensure_running()  # loads the libraries before the first visitor comes

    def open(self, paths: Sequence[Path]) -> list[Opened | Refused]:
        """Return one result per file, in the same order."""
        return list(self._results([(_open, path, self.preprocessing) for path in paths]))

    def pixels(self, path: Path, most: int) -> Image.Image:
        """Return an upright RGB picture, reduced if it has more than ``most`` pixels. Bad files raise UserError."""
        (found,) = self._results([(_pixels, path, most)])
        if isinstance(found, Refused):
            raise UserError("image-unreadable", found.message)
        return Image.fromarray(found)

    def _results(self, jobs: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Run jobs (function, path, argument) in a child process. Yield each result, or a Refused if the job fails."""
        end = time.monotonic() + UPLOAD_SECONDS
        child: _Child | None = None
        try:
            for job in jobs:
                left = min(FILE_SECONDS, end - time.monotonic())
                if left <= 0:
                    yield Refused(job[1].name, "not decoded: earlier files of the upload took too long")
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
        """Return the result of a job, or None if the time limit is exceeded or the child ends early."""
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process too, but the parent ends it
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
    except BadImage as bad:  # Pillow rejects some files that the fast decoder accepts
        return Refused(path.name, f"{bad.reason} ({bad.detail})" if bad.detail else bad.reason)
    except OSError as error:  # its text has a path of this machine
        return Refused(path.name, f"the file cannot be read ({error.strerror}); upload it again")
    except ValueError as error:
        return Refused(path.name, one_line(error))
    except MemoryError:
        return Refused(path.name, "the picture needs more memory than is available")
    return Opened(jpeg=jpeg_of(image), size=image.size, square=square)


def _pixels(path: Path, most: int) -> np.ndarray | Refused:
    try:
        image = decode(_read(path), ANY)
    except (OSError, ValueError, BadImage, MemoryError) as error:
        why = error.strerror if isinstance(error, OSError) else one_line(error)
        return Refused(path.name, f"{path.name} cannot be read any more ({why}); upload it again")
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
    """Return a copy of an RGB picture as JPEG, at most SHOWN_SIDE pixels on its long side."""
    copy = image.copy()
    copy.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    return jpeg(copy, 88)
