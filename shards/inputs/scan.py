"""Check every poster: does it decode, what is its content hash, what does it look like? In resumable chunks."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from shards.executors.local import Executor
from shards.inputs.duplicates import SIGNATURE_BYTES, group_duplicates, perceptual_hashes, poster_signature
from shards.inputs.image_files import find_image, missing_file, read_image_file
from shards.inputs.image_structure import more_frames
from shards.inputs.images import BadImage, ImageOptions, decode
from shards.inputs.listing import Listed, list_posters
from shards.inputs.metadata import Rejection
from shards.inputs.table_checks import some
from shards.progress import progress
from shards.storage.files import fingerprint, write_json
from shards.storage.paths import Place, is_remote

log = logging.getLogger(__name__)

CHUNK = 256  # posters a task: some seconds of work, so that little is lost when the run is killed

RULES = 3
"""Of what is taken for a good poster and kept of its looks. Answers of earlier versions, with others, are not used."""


@dataclass(frozen=True)
class ScanTask:
    """A chunk of posters to check; ``cache`` keeps the answer for a restarted build."""

    folder: Place
    ids: tuple[str, ...]
    options: ImageOptions
    cache: Place
    listed: tuple[Listed | None, ...] | None = None
    """The posters' files; None: they are looked for when the chunk is checked."""

    def __str__(self) -> str:
        return f"checking posters {self.ids[0]} to {self.ids[-1]}"

    def state(self) -> str:
        """Fingerprint of the chunk's files (size and time of change) and options: stale answers are not used."""
        files: list[list[Any]] = []
        for number, sample_id in enumerate(self.ids):
            file = None if self.listed is None else self.listed[number]
            if is_remote(self.folder):
                files.append([sample_id, file.name, file.state] if file else [sample_id])
                continue
            path = self.folder / file.name if file else find_image(self.folder, sample_id)
            try:
                stat = path.stat() if path else None
            except OSError:  # gone since it was listed
                stat = None
            files.append(
                [sample_id, stat.st_size, stat.st_mtime_ns, path.name] if stat and path else [sample_id]
            )
        return fingerprint([files, asdict(self.options), RULES])


@dataclass
class Scan:
    """What the check found: SHA-256, perceptual hash and signature of each good poster; reasons of the others."""

    digests: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, int] = field(default_factory=dict)
    mirrored: dict[str, int] = field(default_factory=dict)
    """Perceptual hashes of their mirror images."""
    signatures: dict[str, bytes] = field(default_factory=dict)
    rejected: list[Rejection] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    """Where the good posters lie below the folder (see image_files.read_image_file)."""

    def duplicate_groups(self, ids: Sequence[str], max_distance: int, mirrored: bool = True) -> np.ndarray:
        """(n,) int64: equal numbers for good posters that are taken for one (see duplicates.group_duplicates).

        mirrored: mirrored copies, too.
        """
        hashes, turned = (
            np.array([found[sample_id] for sample_id in ids], dtype=np.uint64)
            for found in (self.hashes, self.mirrored)
        )
        signatures = np.frombuffer(b"".join(self.signatures[sample_id] for sample_id in ids), dtype=np.uint8)
        return group_duplicates(
            [self.digests[sample_id] for sample_id in ids],
            hashes,
            signatures.reshape(len(ids), SIGNATURE_BYTES),
            mirrored=turned if mirrored else None,
            max_distance=max_distance,
        )


def scan_images(
    folder: Place,
    ids: Sequence[str],
    options: ImageOptions,
    work: Place,
    executor: Executor,
    *,
    chunk: int = CHUNK,
) -> Scan:
    """Check all posters. ``work`` is a folder for answers that a restart may reuse."""
    log.info("looking for %d posters in %s", len(ids), folder)
    listed = list_posters(folder, ids)
    tasks = []
    for start in range(0, len(ids), chunk):
        part = tuple(ids[start : start + chunk])
        files = tuple(listed.get(sample_id) for sample_id in part)
        tasks.append(ScanTask(folder, part, options, work / f"scan-{start // chunk:06d}.json", files))
    answers: dict[int, list[list[Any]]] = {}
    position = {task.cache: number for number, task in enumerate(tasks)}
    with progress(len(ids), "checking posters") as bar:
        for task, answer in executor.run(scan_chunk, tasks):
            answers[position[task.cache]] = answer
            bar.update(len(task.ids))
    scan, films = Scan(), []
    for number in range(len(tasks)):
        for sample_id, digest, looks, signature, reason, detail, more in answers[number]:
            if reason:
                scan.rejected.append(Rejection(sample_id, reason, detail))
            else:
                scan.digests[sample_id] = digest
                scan.hashes[sample_id], scan.mirrored[sample_id] = int(looks[:16], 16), int(looks[16:], 16)
                scan.signatures[sample_id] = bytes.fromhex(signature)
                scan.names[sample_id] = listed[sample_id].name
                films += [sample_id] if more else []
    tell_of_films(films)
    return scan


def tell_of_films(names: Sequence[str]) -> None:
    """Say which posters have several frames."""
    if names:
        shown = some(names)
        log.warning("%d posters have several frames or pages; the first is taken: %s", len(names), shown)


def scan_chunk(task: ScanTask) -> list[list[Any]]:
    """[id, sha256, perceptual hashes and signature in hex, reason, detail, more frames?] for each poster, in order."""
    state = task.state()
    try:
        cached = json.loads(task.cache.read_bytes())
        if cached["state"] == state:
            return cached["answer"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no usable answer from an earlier run: check the posters now
    answer = []
    for number, sample_id in enumerate(task.ids):
        try:
            data = _read(task, number)
            image = decode(data, task.options)
            looks = "".join(f"{found:016x}" for found in perceptual_hashes(image))
            signature = poster_signature(image).hex()
            digest = hashlib.sha256(data).hexdigest()
            answer.append([sample_id, digest, looks, signature, "", "", more_frames(data)])
        except BadImage as bad:
            answer.append([sample_id, "", "", "", bad.reason, bad.detail, False])
    write_json(task.cache, {"state": state, "answer": answer})
    return answer


def _read(task: ScanTask, number: int) -> bytes:
    if task.listed is None:
        return read_image_file(task.folder, task.ids[number])
    file = task.listed[number]
    if file is None:
        raise missing_file(task.ids[number])
    return read_image_file(task.folder, task.ids[number], file.name)
