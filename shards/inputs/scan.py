"""Check all posters: decode each, and compute its SHA-256, perceptual hashes and signature. Results are cached."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from shards.errors import some
from shards.executors.chunks import read_result, results_in_order, split_into_chunks, write_result
from shards.executors.local import Executor
from shards.inputs.duplicates import SIGNATURE_BYTES, group_duplicates, perceptual_hashes, poster_signature
from shards.inputs.image_files import missing_file, read_image_file
from shards.inputs.image_structure import more_frames
from shards.inputs.images import BadImage, ImageOptions, decode
from shards.inputs.listing import Listed, find_posters
from shards.inputs.rejections import Rejection
from shards.storage.files import fingerprint
from shards.storage.paths import StoragePath, is_remote

log = logging.getLogger(__name__)

CHUNK = 256  # posters per task; a task takes some seconds, so a killed run loses little work

RULES = 3
"""Version of the checks and hashes. Cached results of other versions are not used."""


@dataclass(frozen=True)
class ScanTask:
    """Some posters to check. ``cache`` is the file of the result, which a restarted build reads."""

    folder: StoragePath
    ids: tuple[str, ...]
    options: ImageOptions
    cache: StoragePath
    listed: tuple[Listed | None, ...]  # the file of each poster, None if the poster has no file

    def __len__(self) -> int:
        return len(self.ids)

    def __str__(self) -> str:
        return f"checking posters {self.ids[0]} to {self.ids[-1]}"

    def state(self) -> str:
        """Return a fingerprint of files (name, size, time of change) and options. A change causes a new check."""
        files: list[list[Any]] = []
        for sample_id, file in zip(self.ids, self.listed, strict=True):
            files.append([sample_id])
            if file is not None and is_remote(self.folder):
                files[-1] += [file.name, file.state]
            elif file is not None:
                path = self.folder / file.name
                with contextlib.suppress(OSError):  # the file was deleted after the listing
                    stat = path.stat()
                    files[-1] += [stat.st_size, stat.st_mtime_ns, path.name]
        return fingerprint([files, asdict(self.options), RULES])


@dataclass
class Scan:
    """Result of the checks. Every dict maps the id of each good poster to a value."""

    digests: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, int] = field(default_factory=dict)
    mirrored: dict[str, int] = field(default_factory=dict)  # hashes of the mirror images
    signatures: dict[str, bytes] = field(default_factory=dict)
    rejected: list[Rejection] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # paths of the files relative to the image folder

    def duplicate_groups(self, ids: Sequence[str], max_distance: int, mirrored: bool = True) -> np.ndarray:
        """Return the group number of each id, (n,) int64. Duplicates have the same number (see group_duplicates).

        mirrored: whether mirrored copies count as duplicates.
        """
        digests = [self.digests[sample_id] for sample_id in ids]
        hashes, mirrors = (
            np.array([found[sample_id] for sample_id in ids], dtype=np.uint64) for found in (self.hashes, self.mirrored)
        )
        signatures = np.frombuffer(b"".join(self.signatures[sample_id] for sample_id in ids), dtype=np.uint8)
        signatures = signatures.reshape(len(ids), SIGNATURE_BYTES)
        return group_duplicates(digests, hashes, signatures, mirrors if mirrored else None, max_distance)


def scan_images(
    folder: StoragePath,
    ids: Sequence[str],
    options: ImageOptions,
    work: StoragePath,
    executor: Executor,
    *,
    paths: Mapping[str, str] = MappingProxyType({}),
    chunk: int = CHUNK,
) -> Scan:
    """Check the posters of ``ids`` in tasks of ``chunk`` posters. A restarted build reads old results from ``work``.

    paths: id → path of its image in the table. Ids that are equal to their path are left out.
    """
    log.info("looking for %d posters in %s", len(ids), folder)
    listed = find_posters(folder, ids, paths)
    tasks = [
        ScanTask(folder, part, options, work / f"scan-{number:06d}.json", tuple(map(listed.get, part)))
        for number, part in enumerate(split_into_chunks(ids, chunk))
    ]
    scan, with_frames = Scan(), []
    for answer in results_in_order(executor, scan_chunk, tasks, "checking posters"):
        for sample_id, digest, hashes, signature, reason, detail, more in answer:
            if reason:
                scan.rejected.append(Rejection(sample_id, reason, detail))
            else:
                scan.digests[sample_id] = digest
                scan.hashes[sample_id], scan.mirrored[sample_id] = int(hashes[:16], 16), int(hashes[16:], 16)
                scan.signatures[sample_id] = bytes.fromhex(signature)
                scan.names[sample_id] = listed[sample_id].name
                with_frames += [sample_id] if more else []
    warn_of_frames(with_frames)
    return scan


def warn_of_frames(names: Sequence[str]) -> None:
    """Log the names of posters that have several frames. Log nothing if the list is empty."""
    if names:
        log.warning("%d posters have several frames or pages; the first of each is used: %s", len(names), some(names))


def scan_chunk(task: ScanTask) -> list[list[Any]]:
    """Return [id, SHA-256, hex hashes, hex signature, rejection reason, detail, has several frames] of each poster."""
    state = task.state()
    if "answer" in (done := read_result(task.cache, state)):
        return done["answer"]
    answer: list[list[Any]] = []
    for sample_id, file in zip(task.ids, task.listed, strict=True):
        try:
            if file is None:
                raise missing_file(sample_id)
            data = read_image_file(task.folder, sample_id, file.name)
            image = decode(data, task.options)
            hashes = "".join(f"{found:016x}" for found in perceptual_hashes(image))
            signature, digest = poster_signature(image).hex(), hashlib.sha256(data).hexdigest()
            answer.append([sample_id, digest, hashes, signature, "", "", more_frames(data)])
        except BadImage as bad:
            answer.append([sample_id, "", "", "", bad.reason, bad.detail, False])
    write_result(task.cache, state, answer=answer)
    return answer
