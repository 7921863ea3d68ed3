"""Files of cached features: one per split and view. A view is one augmentation of all images.

    SPLIT-KEY.npy   (n, F + 1) float32: per sample its features and a 1, or only zeros if it could not be decoded
    SPLIT-KEY.npz   written by earlier versions: "values" (n, F) float16 and "decoded" (n,) bool, not compressed

All processes of a node map one file, so memory contains the file once. The numbers are float32, because float16 loses
values over 65504 or near 0. A file is complete or absent. It is never changed in place, so mapped pages stay valid.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from shards.errors import UserError, one_line
from shards.storage.files import PARTIAL, atomic_write
from shards.storage.remote_files import unique_name
from toolkit.distributed.collectives import by_main, require_read
from toolkit.training.run_log import naming

#: Rows that are read at a time, because a whole file may not fit in memory.
ROWS = 4096
#: Number of bytes of a file that are sent to other nodes at a time.
BLOCK = 64 << 20
#: Longest time until a network file system shows a file that another node has written.
VISIBLE_SECONDS = 1.0


@dataclass(frozen=True)
class Features:
    """Features of all samples of a split, computed with one augmentation of the images."""

    values: np.ndarray
    """(n, F) float32 (float16 in earlier versions), mapped from a file. Zeros for samples that were not decoded."""
    decoded: np.ndarray
    """(n,) bool: whether each sample could be decoded."""

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the features of decoded samples in blocks (k, F)."""
        for start in range(0, len(self.values), ROWS):
            part = slice(start, start + ROWS)
            yield self.values[part][self.decoded[part]]


class FeatureWriter:
    """Writes a file of features row by row. The file gets its final name when the context ends without an error."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count, self.done = path, count, 0
        self._file = atomic_write(path)

    def __enter__(self) -> None:
        self._stream = self._file.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def add(self, rows: np.ndarray) -> None:
        """Write the next rows (k, F + 1)."""
        with naming(self.path):
            if not self.done:
                shape = (self.count, rows.shape[1])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(self._stream, header)
            self.done += len(rows)
            self._stream.write(np.ascontiguousarray(rows, dtype="<f4").data)
            self._stream.flush()  # raises the error of a full disk here


def file_of(path: Path) -> str | None:
    """Return the file name of ``path`` (.npy), or of an earlier version's .npz file. None if both are missing."""
    return next((file.name for file in (path, path.with_suffix(".npz")) if file.is_file()), None)


def read_features(path: Path, count: int) -> Features:
    """Map the features of ``count`` samples from a file. Raises UserError if the file does not contain them."""
    problem = "its arrays have other types or shapes"
    try:
        if path.suffix == ".npz":
            values, decoded = _read_npz(path)
        else:
            whole = np.load(path, mmap_mode="r", allow_pickle=False)
            if whole.dtype != np.float32 or whole.ndim != 2:
                raise ValueError(problem)
            values, decoded = whole[:, :-1], np.asarray(whole[:, -1] > 0)
        values = values.view(np.ndarray)  # an array of the same memory, because indexing a memmap is slow
        if (
            values.dtype in (np.float16, np.float32)
            and (values.ndim, decoded.dtype) == (2, np.bool_)
            and (len(values), decoded.shape) == (count, (count,))
            and all(np.isfinite(values[start : start + ROWS]).all() for start in range(0, count, ROWS))
        ):
            return Features(values, decoded)
    except (OSError, ValueError, KeyError, EOFError, struct.error, zipfile.BadZipFile) as error:
        problem = one_line(error)[:200]
    raise UserError(
        "path-unreadable",
        f"{path} does not contain the features of {count} samples ({problem}): remove the file to compute them again",
    )


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a file of an earlier version. Its arrays are stored without compression, so "values" can be mapped."""
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
            raise ValueError("its parts are larger than the file")
        stored = archive.getinfo("values.npy")
        if stored.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its values are compressed")
    with np.load(path, allow_pickle=False) as arrays:
        decoded = arrays["decoded"]
    with open(path, "rb") as stream:
        stream.seek(stored.header_offset + 26)
        name, extra = struct.unpack("<HH", stream.read(4))
        stream.seek(stored.header_offset + 30 + name + extra)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if dtype.hasobject or fortran:
            raise ValueError("its values need pickle (allow_pickle) or are in column order")
        return np.memmap(stream, dtype, "r", stream.tell(), shape), decoded


def share_file(accelerator: Accelerator, path: Path) -> None:
    """Copy the main process's file ``path`` to all nodes that do not have it. A collective call.

    Raises LostData, on every rank, if one rank cannot write its copy.
    """
    for wait in (VISIBLE_SECONDS, 0.0):  # one process per node writes first, then each process without the file
        lacking = not _visible(path, wait)
        if not any(gather_object([lacking]) if accelerator.num_processes > 1 else [lacking]):
            return
        writes = lacking and (accelerator.is_local_main_process or not wait)
        blocks, failure = _blocks(accelerator, path), None
        try:
            with _new_file(path) if writes else contextlib.nullcontext() as copy:
                for block in blocks:
                    if copy is not None:
                        copy.write(block)
        except OSError as error:
            failure = UserError(
                "path-unwritable", f"{path} cannot be written on {socket.gethostname()}: {one_line(error)}"
            )
            for _ in blocks:  # continue the collective calls until the other ranks have their copies
                pass
        require_read(accelerator, failure)


def _blocks(accelerator: Accelerator, path: Path) -> Iterator[bytes]:
    """Read the main process's file ``path``, and yield its blocks on every rank."""
    with contextlib.ExitStack() as held:
        stream: Any = None
        if accelerator.is_main_process:
            stream = held.enter_context(open(path, "rb"))
        while block := by_main(accelerator, lambda: stream.read(BLOCK)):
            yield block


def _visible(path: Path, wait: float) -> bool:
    """Return whether ``path`` exists within ``wait`` seconds. A network file system can show new files late."""
    end = time.monotonic() + wait
    while not path.is_file():
        if time.monotonic() > end:
            return False
        with contextlib.suppress(OSError):
            os.listdir(path.parent)
        time.sleep(0.1)
    return True


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file, which is renamed to ``path`` on exit. If ``path`` exists, it stays, because it may be mapped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(unique_name(path.name, PARTIAL))
    try:
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
