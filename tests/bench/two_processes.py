"""Do two processes train and predict what one does? Over gloo on one GPU (or on the CPU), or over NCCL on two GPUs.

    python tests/bench/two_processes.py --shards SHARDS [--backend gloo|nccl] [--model NAME] [--json FILE]

`posters train` with the samples of each update written down (tests/toolkit/probe_train.py), and `posters predict`,
each in one process and in two. The samples of each update must be the same. Weights after training and predictions of
the same model may differ by rounding, so their differences are measured. The model must have no BatchNorm, because
its statistics are of one process's samples. Two processes on one GPU are refused in `posters train`; this program
leaves that check out, and lets accelerate use gloo, so that what surrounds NCCL runs where there is one GPU.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from accelerate import PartialState
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shards.errors import UserError  # noqa: E402
from shards.storage.files import write_json  # noqa: E402

PROBE = ROOT / "tests" / "toolkit" / "probe_train.py"
#: Largest difference of two probabilities, and of two losses, that rounding explains, also with TF32.
TOLERANCE = 0.02


def worker(script: str, arguments: list[str]) -> None:
    """Run a script of ours as a rank, over the backend in POSTERS_BENCH_BACKEND."""
    import toolkit.distributed.collectives
    import toolkit.distributed.launch

    if os.environ["POSTERS_BENCH_BACKEND"] == "gloo" and torch.cuda.is_available():
        toolkit.distributed.launch.PartialState = functools.partial(PartialState, backend="gloo")
        toolkit.distributed.collectives._gpu = lambda: f"GPU of rank {os.environ['RANK']}"
        barrier = dist.barrier
        dist.barrier = lambda *args, device_ids=None, **more: barrier(*args, **more)  # gloo takes no devices
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def launched(processes: int, backend: str, arguments: list[str]) -> None:
    """Run a script in so many ranks. Raises UserError with the last line of a rank that failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    shared |= {
        "POSTERS_BENCH_BACKEND": backend,
        "OMP_NUM_THREADS": "1",
    }  # the same arithmetic in any number of processes
    if processes > 1:
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if not torch.cuda.is_available():
            shared |= {"ACCELERATE_USE_CPU": "true"}
    ranks: list[subprocess.Popen[str]] = []
    try:
        for number in range(processes):
            own = {"RANK": str(number), "LOCAL_RANK": str(number)} if processes > 1 else {}
            command = [sys.executable, __file__, "worker", *arguments]
            ranks.append(subprocess.Popen(
                command, env=shared | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ))  # fmt: skip
        said = [rank.communicate()[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number, done in enumerate(ranks):
        if done.returncode:
            last = [line for line in said[number].splitlines() if line.strip()][-1:]
            raise UserError(
                "environment", f"rank {number} of {processes} ended with {done.returncode}: {''.join(last)}"
            )


def train(options: argparse.Namespace, processes: int, folder: Path) -> None:
    """A training of two epochs."""
    arguments = [
        str(PROBE), str(folder / "spy"), "", f"--shards={options.shards}", f"--out={folder / 'run'}",
        f"--model.name={options.model}", "--model.pretrained=false", "--model.freeze=[]", "--model.head=linear",
        f"--data.image_size={options.size}", f"--train.batch_size={options.batch}", "--train.epochs=2",
        "--train.trackers={}", "--train.precision=no", "--train.log_steps=1",
        "--decide.thresholds=global", "--decide.calibration=none",
    ]  # fmt: skip
    launched(processes, options.backend, arguments)


def predict(options: argparse.Namespace, processes: int, model: Path, out: Path) -> None:
    """A prediction of the whole set."""
    script = str(ROOT / "launch" / "predict.py")
    arguments = [f"--shards={options.shards}", f"--model={model}", f"--out={out}", "--precision=no"]
    launched(processes, options.backend, [script, *arguments])


def updates_of(folder: Path) -> dict[str, list[str]]:
    """Epoch and step → sorted keys of the samples of all ranks in that update."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("rank*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            found.setdefault(f"{record['epoch']} {record['step']}", []).extend(record["keys"])
    return {update: sorted(keys) for update, keys in found.items()}


def first_loss(run: Path) -> float:
    """The loss of the first update, before rounding has moved any weight."""
    with open(run / "log.csv") as stream:
        return float(next(csv.DictReader(stream))["loss"])


def table_of(folder: Path) -> tuple[list[str], np.ndarray]:
    """(ids, probabilities (n, G)) of the prediction files of a folder."""
    tables = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    ids = [value for table in tables for value in table["id"].to_pylist()]
    genres = [field.name for field in tables[0].schema if pa.types.is_floating(field.type)]
    return ids, np.concatenate([np.column_stack([table[genre].to_numpy() for genre in genres]) for table in tables])


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train and predict in one process and in two, and compare."""
    with ThreadPoolExecutor(2) as both:  # most of the time of each is that of loading torch
        for done in [both.submit(train, options, processes, work / str(processes)) for processes in (1, 2)]:
            done.result()
        model = work / "1" / "run" / "model"
        outs = {processes: work / str(processes) / "predicted" for processes in (1, 2)}
        for done in [both.submit(predict, options, processes, model, out) for processes, out in outs.items()]:
            done.result()
    updates = [updates_of(work / folder / "spy") for folder in ("1", "2")]
    one, two = (load_file(work / folder / "run" / "model" / "model.safetensors") for folder in ("1", "2"))
    (ids, first), (others, second) = (table_of(work / folder / "predicted") for folder in ("1", "2"))
    difference = float(np.abs(first - second).max()) if ids == others else None
    losses = [first_loss(work / folder / "run") for folder in ("1", "2")]
    weights = max(float((one[name].double() - two[name].double()).abs().max()) for name in one)
    return {
        "processes": 2,
        "backend": options.backend,
        "gpus": torch.cuda.device_count(),
        "updates": len(updates[0]),
        "same_samples_in_each_update": updates[0] == updates[1] and len(updates[0]) > 1,
        "first_losses": losses,
        "largest_difference_of_a_weight": weights,
        "predicted": len(ids),
        "same_rows": ids == others and len(ids) > 0,
        "largest_difference_of_a_probability": difference,
        "tolerance": TOLERANCE,
    }


def main() -> int:
    """Parse, measure, print. Exit status 1 if two processes do something else than one."""
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo")
    parser.add_argument("--model", default="test_convnext", help="of timm, without BatchNorm (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        if options.backend == "nccl" and torch.cuda.device_count() < 2:
            raise UserError("device", f"--backend nccl needs two GPUs, and torch finds {torch.cuda.device_count()}")
        with tempfile.TemporaryDirectory() as work:
            found = measure(options, Path(work))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in found.items():
        print(f"{name:38} {value}")
    if options.json is not None:
        write_json(options.json, found)
    close = found["largest_difference_of_a_probability"]
    same = found["same_samples_in_each_update"] and found["same_rows"]
    same = same and math.isclose(*found["first_losses"], rel_tol=TOLERANCE)
    return 0 if same and close is not None and close <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
