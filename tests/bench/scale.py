"""How do start-up, memory, steps and builds grow with the set? Prints two Markdown tables.

    python tests/bench/scale.py [--samples 10000,...,100000000] [--posters 1000,10000,100000] [--json FILE]

Loading: sets of made-up indexes in shards of 1,000 samples and 28 genres, on this machine's disk. Their tables and
manifests are real; their tars have the right length and no content (sparse), for nothing is decoded here. Each set is
opened by processes of their own, as a rank does, in turn: one that compares no digest, a node's first one, which does,
and a later one, which believes it; the table is in the system's cache, as it was just written. The update plan is
walked: 256 samples an update, with sizes and targets of each. Memory is what the process cannot give back (RssAnon),
less what it had before; mapped pages of the table belong to the system's cache, which all ranks share. Medians.

Building: drawn posters of 182x268 pixels, no two alike, packed by `posters shards build`; memory is the largest sum
over all its processes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from PIL import Image

from shards.dataset.manifest import NAME, Manifest, Shard
from shards.dataset.sample_table import SampleTable, record_type, table_name
from shards.storage.files import write_json
from shards.versions import library_versions

PER_SHARD = 1000
Row = TypeVar("Row")
GENRES = [f"Genre {number:02d}" for number in range(28)]
BATCH = 256
STEPS = 400
TRIALS = 3


@dataclass
class Loading:
    """One rank that opens a set of so many samples."""

    samples: int
    shards: int
    manifest_bytes: int
    table_bytes: int
    manifest_seconds: float
    open_seconds: float
    """Checking the tars, mapping the table, until the first update's samples are known; later processes of a node."""
    memory_bytes: int
    global_step_us: float
    """Microseconds an update, order: global; the median."""
    window_step_us: float
    first_open_seconds: float = 0.0
    """Of a node's first process, which compares the table with its digest."""
    unchecked_open_seconds: float = 0.0
    """Without digests."""


@dataclass
class Building:
    """One build of so many posters."""

    posters: int
    seconds: float
    images_per_second: float
    memory_bytes: int
    bytes: int
    """Of the tars."""
    index_bytes: int
    """Of all that says what is in them: Parquet indexes, tables, manifest."""


def make_set(folder: Path, samples: int) -> None:
    """A set whose table and manifest are real and whose tars are sparse."""
    count = -(-samples // PER_SHARD)
    rng = np.random.default_rng(0)
    sha256s = [hashlib.sha256(f"{samples}/{number}".encode()).hexdigest() for number in range(count)]
    name, digest = table_name("train", sha256s, GENRES), hashlib.sha256()
    kind, shards = record_type(len(GENRES)), []
    with open(folder / name, "wb") as stream:
        header: Any = {"descr": kind.descr, "fortran_order": False, "shape": (samples,)}
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, header)
        stream.write(head.getvalue())
        digest.update(head.getvalue())
        for number in range(count):
            size = min(PER_SHARD, samples - number * PER_SHARD)
            records = np.zeros(size, dtype=kind)
            records["size"] = rng.integers(8_000, 40_000, size)
            records["offset"] = np.cumsum(records["size"]) - records["size"] + 512
            records["height"], records["width"] = rng.integers(200, 400, size), rng.integers(150, 300, size)
            records["genres"] = rng.integers(0, 256, records["genres"].shape)
            stream.write(records.tobytes())
            digest.update(records.tobytes())
            length = int(records["offset"][-1] + records["size"][-1]) + 1024
            counts = np.unpackbits(records["genres"], axis=1, count=len(GENRES)).sum(axis=0).tolist()
            tar = f"train-{number:05d}.tar"
            with open(folder / tar, "wb") as empty:
                empty.truncate(length)
            (folder / tar.replace(".tar", ".index.parquet")).touch()
            index = 40_000, hashlib.sha256(tar.encode()).hexdigest()
            shards.append(Shard(tar, "train", size, length, sha256s[number], 400, 300, counts, *index))
    table = SampleTable(name, (folder / name).stat().st_size, digest.hexdigest())
    Manifest(GENRES, shards, versions=library_versions(), tables={"train": table}).write(folder)


def open_set(folder: Path) -> Loading:
    """What a rank does before its first update, and what an update costs it besides reading and decoding."""
    from toolkit.data.sampling.plan import TrainPlan
    from toolkit.data.sampling.shuffle import GlobalOrder, WindowOrder
    from toolkit.data.sources.shard_reader import ShardReader

    before = resident()
    started = time.perf_counter()
    manifest = Manifest.read(folder)
    read = time.perf_counter()
    reader = ShardReader.of_split(folder, "train", manifest)
    plans = [TrainPlan(order, BATCH) for order in (GlobalOrder(len(reader), 0), WindowOrder(reader.shard_sizes, 16, 0))]
    next(plans[0].rest_of_epoch(0, 0, 8))
    opened = time.perf_counter()
    steps = [walk(reader, plan) for plan in plans]
    table = manifest.tables["train"]
    return Loading(
        len(reader),
        len(manifest.shards),
        (folder / NAME).stat().st_size,
        table.bytes,
        read - started,
        opened - read,
        resident() - before,
        *steps,
    )


def walk(reader: Any, plan: Any) -> float:
    """Microseconds an update of one rank of one, the median."""
    took = []
    micro_batches = plan.rest_of_epoch(0, 0, 1)
    for _ in range(min(STEPS, plan.steps_per_epoch)):
        started = time.perf_counter()
        micro_batch = next(micro_batches)
        reader.sizes(micro_batch.indices)
        reader.targets_of(micro_batch.indices)
        for index in micro_batch.indices.tolist():
            reader.shard_of(index)
        took.append(time.perf_counter() - started)
    return 1e6 * float(np.median(took))


def resident() -> int:
    """Bytes of this process's own memory: not of mapped files, which are the system's to drop."""
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith("RssAnon"))


def draw(folder: Path, count: int) -> None:
    """``count`` posters and a CSV; colours that no two posters share."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(1)
    lines = ["id,genres"]
    for number in range(count):
        patches = Image.fromarray(rng.integers(0, 256, (9, 6, 3), dtype=np.uint8))
        data = io.BytesIO()
        patches.resize((182, 268), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
        (folder / "images" / f"{number:07d}.jpg").write_bytes(data.getvalue())
        genres = np.flatnonzero(rng.random(len(GENRES)) < 0.08).tolist() or [0]
        lines.append(f"{number:07d}," + "|".join(GENRES[genre] for genre in genres))
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def build(folder: Path, count: int) -> Building:
    """Build shards of drawn posters with the command, watching all its processes."""
    draw(folder, count)
    out = folder / "shards"
    command = [sys.executable, "-m", "toolkit", "shards", "build", "--images", folder / "images"]
    command += ["--metadata", folder / "metadata.csv", "--genre-column", "genres", "--out", out]
    started = time.perf_counter()
    process = psutil.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    largest = 0
    while process.poll() is None:
        largest = max(largest, tree_memory(process))
        time.sleep(0.2)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"the build of {count} posters failed")
    size = sum(path.stat().st_size for path in out.glob("*.tar"))
    index = [*out.glob("*.parquet"), *out.glob("*.npy"), out / NAME]
    return Building(count, seconds, count / seconds, largest, size, sum(path.stat().st_size for path in index))


def tree_memory(process: psutil.Process) -> int:
    """Bytes of a process and all below it, shared pages counted once (proportional set size)."""
    total = 0
    try:
        for member in [process, *process.children(recursive=True)]:
            total += member.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0  # one of them ended while it was looked at
    return total


def loading_table(rows: Sequence[Loading]) -> str:
    """Markdown."""
    lines = [
        "| samples | shards | manifest | table | bytes/sample on disk | reading the manifest | opening, no digests | "
        "a node's first | later ones | own memory | update, global | update, window |",
        "| ---: " * 12 + "|",
    ]
    for row in rows:
        lines.append(
            f"| {row.samples:,} | {row.shards:,} | {row.manifest_bytes / 2**20:.2f} MiB | "
            f"{row.table_bytes / 2**20:.1f} MiB | {(row.manifest_bytes + row.table_bytes) / row.samples:.1f} | "
            f"{row.manifest_seconds:.3f} s | {row.unchecked_open_seconds:.3f} s | {row.first_open_seconds:.3f} s | "
            f"{row.open_seconds:.3f} s | {row.memory_bytes / 2**20:.1f} MiB | "
            f"{row.global_step_us:.0f} µs | {row.window_step_us:.0f} µs |"
        )
    return "\n".join(lines)


def building_table(rows: Sequence[Building]) -> str:
    """Markdown."""
    lines = ["| posters | seconds | images/s | memory | shards | indexes, bytes/poster |", "| ---: " * 6 + "|"]
    for row in rows:
        lines.append(
            f"| {row.posters:,} | {row.seconds:.1f} | {row.images_per_second:.0f} | "
            f"{row.memory_bytes / 2**20:.0f} MiB | {row.bytes / 2**20:.0f} MiB | "
            f"{row.index_bytes / row.posters:.0f} |"
        )
    return "\n".join(lines)


def in_folder(work: Path | None, task: Callable[[Path, int], Row], count: int) -> Row:
    """The task's result; it gets an empty folder."""
    with tempfile.TemporaryDirectory(prefix="scale-", dir=work) as name:
        return task(Path(name), count)


def measure_loading(folder: Path, samples: int) -> Loading:
    """Make a set and open it in fresh processes."""
    make_set(folder, samples)
    unchecked: list[Loading] = []
    first: list[Loading] = []
    later: list[Loading] = []
    for trial in range(TRIALS):
        node = folder / f"node-{trial}"  # what a node's first process leaves for the others
        node.mkdir()
        for rows, options in ((unchecked, ["--unchecked"]), (first, []), (later, [])):
            rows.append(opened(folder, node, options))
    row = {name: statistics.median(getattr(row, name) for row in later) for name in asdict(later[0])}
    row["first_open_seconds"] = statistics.median(row.open_seconds for row in first)
    row["unchecked_open_seconds"] = statistics.median(row.open_seconds for row in unchecked)
    return Loading(**row)


def opened(folder: Path, node: Path, options: Sequence[str]) -> Loading:
    """What a process of a node measures."""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, __file__, "--open", folder, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root, "TMPDIR": str(node)},
        check=True,
    )
    return Loading(**json.loads(done.stdout))


def numbers(text: str) -> list[int]:
    """``1000,1e6`` → [1000, 1000000]; empty for none."""
    return [int(float(part)) for part in text.split(",") if part]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--samples", type=numbers, default=[10**k for k in range(4, 9)])
    parser.add_argument("--posters", type=numbers, default=[10**k for k in range(3, 6)])
    parser.add_argument("--work", type=Path, help="folder for what is made; 10^8 samples take 3 GB")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--unchecked", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.unchecked:
        import shards.dataset.set_files

        shards.dataset.set_files.once_per_node = lambda *_: None
    if options.open is not None:
        print(json.dumps(asdict(open_set(options.open))))
        return 0
    if options.work is not None and not options.work.is_dir():
        print(f"error: --work {options.work} is no folder", file=sys.stderr)
        return 2
    if shutil.disk_usage(options.work or tempfile.gettempdir()).free < 40 * max([*options.samples, 0]):
        print("error: not enough room: see --work, or give fewer --samples", file=sys.stderr)
        return 2
    loading = [in_folder(options.work, measure_loading, count) for count in options.samples]
    print(loading_table(loading), flush=True)
    building = [in_folder(options.work, build, count) for count in options.posters]
    print("\n" + building_table(building))
    if options.json:
        rows = {"loading": [asdict(row) for row in loading], "building": [asdict(row) for row in building]}
        write_json(options.json, {"cores": len(os.sched_getaffinity(0)), **rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
