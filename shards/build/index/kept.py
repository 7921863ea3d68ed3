"""Read each tar once, and keep what was found in it until the set is complete. So a killed run can be continued.

    FOLDER/.indexing/KEY.contents          what a tar contains (read.Contents), in MessagePack
    FOLDER/.indexing/download-*/NAME.tar   local copy of a remote tar, while the tar is read

A later run uses a file of contents only if the tar has the same size and version, and if the options and library
versions that can change the contents are the same. Other options of the command are used after the reading.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from shards.build.index.read import Contents, ReadTask, read_contents
from shards.build.index.tar_places import TarFile
from shards.errors import UserError, one_line
from shards.executors.chunks import results_in_order
from shards.executors.local import LocalExecutor
from shards.storage.files import atomic_write, fingerprint, remove_tree
from shards.storage.paths import is_remote
from shards.storage.retrying_read import RetryBudget, read_blocks, read_facts
from shards.versions import library_versions

log = logging.getLogger(__name__)

WORK = ".indexing"
"""Folder with the kept contents, in the folder of the manifest. It is removed when the set is complete."""
FORMAT = 1
"""Format of a file of contents. It must change when ``read_contents`` gives other contents for the same tar."""
REMOTE_SECONDS = 300.0
"""Seconds of retries if a remote store sends no data."""


@dataclass(frozen=True)
class IndexTask:
    """A tar to read, and where its contents are kept."""

    read: ReadTask
    file: TarFile
    work: Path
    state: str
    """Fingerprint of everything that determines the contents. Empty if the version of the tar is unknown."""

    def __len__(self) -> int:
        return 1

    def __str__(self) -> str:
        return f"reading {self.file.name}"

    @property
    def kept(self) -> Path:
        return self.work / f"{fingerprint(self.file.name)[:32]}.contents"


def read_tars(tasks: Sequence[ReadTask], files: Sequence[TarFile], folder: Path, workers: int) -> list[Contents]:
    """Return the contents of the tars ``files``, in this order. Tars that an earlier run has read are not read again.

    tasks: how to read each tar. folder: the folder of the manifest, which the caller has locked.
    """
    work = folder / WORK
    for left in work.glob("download-*"):  # by a killed run
        shutil.rmtree(left)
    versions = library_versions()
    todo = [IndexTask(task, file, work, _state(task, file, versions)) for task, file in zip(tasks, files, strict=True)]
    found = {task.file.name: contents for task in todo if (contents := _kept(task)) is not None}
    if found:
        log.info("%d of %d tars were read by an earlier run and are not read again", len(found), len(todo))
    todo = [task for task in todo if task.file.name not in found]
    done = results_in_order(LocalExecutor(workers), read_and_keep, todo, "reading tars", "tar")
    found |= {task.file.name: contents for task, contents in zip(todo, done, strict=True)}
    for file in files:
        found[file.name].tar = file.place
    return [found[file.name] for file in files]


def forget(folder: Path) -> None:
    """Remove the kept contents, because the set in the folder is complete."""
    remove_tree(folder / WORK)


def read_and_keep(task: IndexTask) -> Contents:
    """Read a tar and keep its contents. Raises UserError if the tar is damaged or changes while it is read."""
    if is_remote(task.file.place):
        with _downloaded(task.file, task.work) as local:
            try:
                contents = read_contents(replace(task.read, tar=local))
            except UserError as error:
                raise UserError(error.code, str(error).replace(str(local), str(task.file.place))) from None
    else:
        contents = read_contents(task.read)
    if task.state:
        with contextlib.suppress(UnicodeEncodeError):  # a name has half a character: the tar is read again next time
            data = msgspec.msgpack.encode((task.state, contents), enc_hook=_plain)
            with atomic_write(task.kept) as stream:
                stream.write(data)
    return contents


def _state(task: ReadTask, file: TarFile, versions: dict[str, str]) -> str:
    if not file.version:
        return ""
    place = str(file.place if is_remote(file.place) else file.place.absolute())
    options = asdict(replace(task, tar=Path()))
    return fingerprint([FORMAT, versions, place, file.size, file.version, options | {"tar": ""}])


def _kept(task: IndexTask) -> Contents | None:
    """Return the contents of a tar that an earlier run has kept. None if they are of another tar or other options."""
    try:
        state, contents = msgspec.msgpack.decode(task.kept.read_bytes(), type=tuple[str, Contents], dec_hook=_restored)
    except (OSError, ValueError, msgspec.MsgspecError):  # there is none, or it is damaged or of another version
        return None
    return contents if task.state and state == task.state else None


def _plain(value: Any) -> Any:
    """Return a value of Contents in a type of MessagePack."""
    if not isinstance(value, pa.Table):
        return str(value)  # the path of the tar
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, value.schema) as writer:
        writer.write_table(value)
    return stream.getvalue().to_pybytes()


def _restored(kind: Any, value: Any) -> Any:
    return pa.ipc.open_stream(value).read_all() if kind is pa.Table else kind(value)


@contextlib.contextmanager
def _downloaded(file: TarFile, work: Path) -> Iterator[Path]:
    """Yield a local copy of a remote tar, which is deleted when the block ends.

    Raises UserError if the tar cannot be read, has changed, or does not fit on the disk.
    """
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="download-", dir=work, ignore_cleanup_errors=True) as folder:
        local = Path(folder) / file.place.name
        try:
            with open(local, "wb") as stream:
                _reserve(stream.fileno(), local.parent, file.size)
                for block in _blocks(file):
                    stream.write(block)
        except OSError as error:
            what = f"no room for {file.place} ({file.size / 2**20:.0f} MiB) in {work.parent}"
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UserError("disk-full", f"{what}: {one_line(error)}; name a larger disk with --out") from None
        yield local


def _reserve(descriptor: int, folder: Path, size: int) -> None:
    """Reserve disk space for an open file. Raises OSError if the disk is full, before the download and not after it."""
    if size > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(descriptor, 0, size)


def _blocks(file: TarFile) -> Iterator[bytes]:
    """Yield the bytes of a remote tar in blocks. Raises UserError if the tar changes meanwhile."""
    budget = RetryBudget(REMOTE_SECONDS, size=file.size)
    changed = UserError("file-changed", f"{file.place} changed while it was read; run the same command again")
    # The version of a listing can differ in form from the version of a file, so two versions of the file are compared.
    before = read_facts(file.place, budget)
    try:
        yield from read_blocks(file.place, file.size, budget)
    except UserError as error:
        raise (changed if error.code == "set-damaged" else error) from None  # it has another size now
    after = read_facts(file.place, budget)
    if before is None or before[0] != file.size or after != before:
        raise changed
