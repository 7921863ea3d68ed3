"""The host's part of batch prediction: ``python tests/bench/predict_host.py [--images DIR] [--py-spy PATH]``

`posters predict` on a shard set, with a network that only reads one pixel of each image. All other parts are real, and
the threads decode as they do for a GPU: whole images, which the device crops and resizes. So images/s are what the host
can feed to a GPU that is never the limit. CPU times of threads do not depend on the load of the machine. With py-spy, a
second table shows which parts hold Python's global lock (GIL). The time to start kernels on a GPU is missing.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import torch
from loader import BENCH, SEED
from posterdata import prepare_sets
from predict import default_model

import toolkit.prediction.batch as batch_module
import toolkit.prediction.chunks as chunks_module
from shards.dataset.manifest import Manifest
from shards.dataset.store import LocalShards
from shards.errors import UserError
from shards.executors.local import available_cores
from shards.storage.files import write_json
from shards.storage.lock import folder_lock
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import DeviceTransform, Transforms, eval_transforms
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.distributed.collectives import make_accelerator
from toolkit.inference.forward import Forward
from toolkit.model_folder.folder import load_model_folder
from toolkit.prediction.batch import Job, predict_chunks
from toolkit.prediction.chunks import shard_chunks

#: Part → words of a frame (function, file) that belong to it. The innermost frame of a stack that has a part decides.
PARTS = {
    "write": ("prediction/facts.py", "prediction/formats.py"),
    "calibrate": ("decisions/decisions.py",),
    "rows": ("inference/rows.py", "inference/naming.py", "sample_ids", "_write (toolkit/prediction/batch.py"),
    "read": ("read (",),
    "decode": ("row (toolkit/data/transforms/",),
    "plan": ("transforms (", "_start (", "micro_batches ("),
    "geometry": ("images (", "on_device ("),
    "forward": ("OnePixel", "inference/forward.py"),
    "join": ("joined (", "whole ("),
    "tasks": ("run (toolkit/data/loader/", "_row (", "_worker ("),
    "batches": ("decoded (", "batches (", "score (", "_counted", "prediction/batch.py"),
}


class OnePixel(Forward):
    """A forward pass that takes no time: the logits are one pixel of each image."""

    genres = 0

    def on_device(self, images: torch.Tensor) -> list[torch.Tensor]:
        with self.grad_mode():
            return [images[:, 0, 0, :1].float().expand(-1, self.genres).contiguous()]


def images(transform: DeviceTransform, buffer: torch.Tensor) -> torch.Tensor:
    """The first pixel of each image, in the shape of a batch: without a GPU, the crop would take most of the time."""
    starts = torch.from_numpy(transform.starts)
    return buffer.view(-1, 3)[starts].view(len(starts), 1, 1, 3)


def eval_on_device(reader: ShardReader, ours: Preprocessing, _: str, device: torch.device) -> Transforms:
    return eval_transforms(reader, ours, "device", device)


WRITE, WRITER = batch_module._write, list[float]()


def timed_write(*arguments: Any) -> None:
    """Write a file, and keep the CPU time of it."""
    started = time.thread_time()
    WRITE(*arguments)
    WRITER.append(time.thread_time() - started)


#: Function of this script → name of the function of the toolkit that it replaces.
REPLACES = {eval_on_device: "eval_transforms", images: "images", timed_write: "_write"}


def passes(options: argparse.Namespace) -> dict[str, Any]:
    """Predict the set ``options.rounds`` times. Return the figures."""
    for owner, replacement in ((chunks_module, eval_on_device), (DeviceTransform, images), (batch_module, timed_write)):
        setattr(owner, REPLACES[replacement], replacement)
    accelerator = make_accelerator("no")
    accelerator.end_training = lambda: None
    folder = load_model_folder(options.model)
    forward = OnePixel(folder.model, folder.preprocessing)
    forward.genres = len(folder.labels)
    chunks = shard_chunks(LocalShards(options.shards), Manifest.read(options.shards), None)
    count = sum(chunk.count for chunk in chunks)
    out, speeds = options.work / "out", list[float]()
    figures: list[list[float]] = []
    end = time.perf_counter() + options.seconds
    while len(speeds) < options.rounds or time.perf_counter() < end:
        if len(speeds) == 1:
            print("warm", flush=True)
        shutil.rmtree(out, ignore_errors=True)
        WRITER.clear()
        before, started, main = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), time.thread_time()
        predict_chunks(Job(chunks, folder, forward, out, options.format, options.batch, options.threads), accelerator)
        speeds.append(count / (time.perf_counter() - started))
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds = time.thread_time() - main, sum(WRITER), after.ru_utime - before.ru_utime
        figures.append([*(value * 1e6 / count for value in seconds), (after.ru_nvcsw - before.ru_nvcsw) / count])
    names = "main_thread_us", "writer_us", "all_threads_us", "waits"  # each wait for a lock is a hand-over
    shown = {name: round(median(values), 2) for name, values in zip(names, zip(*figures, strict=True), strict=True)}
    return {"images_per_second": round(median(speeds), 1), **shown}


def lock_times(options: argparse.Namespace, command: list[str]) -> dict[str, float]:
    """Return part → its share of the time for which a thread holds the GIL, from py-spy's samples."""
    raw = options.work / "gil.txt"
    process = subprocess.Popen([*command, "--seconds=20"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    while process.stdout.readline() not in ("warm\n", ""):  # imports and the first pass are not of interest
        pass
    spy = [options.py_spy, "record", "--gil", "-d", "12", "-r", "500", "-f", "raw", "-F", "-o", raw, "-p"]
    subprocess.run([*map(str, spy), str(process.pid)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process.communicate()
    found: Counter[str] = Counter()
    for line in raw.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        found[part_of(stack.split(";"))] += int(samples)
    return {part: round(count / found.total(), 4) for part, count in found.most_common()}


def part_of(stack: list[str]) -> str:
    """Return the part of the innermost frame that belongs to one."""
    for frame in reversed(stack):
        for part, words in PARTS.items():
            if any(word in frame for word in words):
                return part
    return "other"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, metavar="DIR", help="posters (default: drawn)")
    parser.add_argument("--samples", type=int, default=4000, help="at most so many posters")
    parser.add_argument("--threads", default="1,2", help="decoding threads, one run each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="passes over the posters (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images per batch (default: %(default)s)")
    parser.add_argument("--format", default="parquet", help="of the files (default: %(default)s)")
    parser.add_argument("--py-spy", type=Path, metavar="PATH", help="program py-spy, for the table of the GIL")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    parser.add_argument("--work", type=Path, default=BENCH / ".work", metavar="DIR")
    for hidden in ("--shards", "--model", "--seconds"):  # of the processes that this script starts
        parser.add_argument(hidden, type=float if hidden == "--seconds" else Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; exit status 2 and one line for bad input."""
    options = parse(arguments)
    if options.shards is not None:
        options.threads, options.seconds = int(options.threads), options.seconds or 0
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            options.work = Path(folder)
            print(json.dumps(passes(options)))
        return 0
    try:
        work = options.work.resolve()
        with folder_lock(work):
            model = default_model(work, "resnet18", 224)
            (posters,) = prepare_sets(options.images, options.samples, ["stored"], work, SEED)
            numbers = options.threads.split(",")
            rows = {number: of_threads(options, number, model, posters.shards) for number in numbers}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for threads, figures in rows.items():
        told = [f"{key} {value}" for key, value in figures.items() if key != "gil"]
        print(f"{threads} decoding threads, per image: {', '.join(told)}")
        for part, share in figures.get("gil", {}).items():
            print(f"    {part:<10} {share:6.1%} of the time that the GIL is held")
    if options.json is not None:
        write_json(options.json, {"benchmark": "predict_host", "cores": available_cores(), "threads": rows})
    return 0


def of_threads(options: argparse.Namespace, threads: str, model: Path, shards: Path) -> dict[str, Any]:
    """The figures with this number of threads, in processes of their own."""
    told = {"shards": shards, "model": model, "threads": threads, "work": options.work, "rounds": options.rounds}
    told |= {"batch": options.batch, "format": options.format}
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in told.items())]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures | ({"gil": lock_times(options, command)} if options.py_spy else {})


if __name__ == "__main__":
    sys.exit(main())
