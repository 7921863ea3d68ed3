"""Training programs with a ShardLoader, run by several processes each, killed and resumed.

    python probe_loops.py PLAN.json

PLAN.json: a list of runs, made one after the other. A run is {"program", "folder", "world_size", "start": folder whose
files it starts with, or "", "kill": [epoch, step] of the batch at which all its processes are killed, or null}.

Processes are forked from this one, which has imported the frameworks once. Each run leaves in its folder rank<R>.jsonl,
with a line for each batch that a ShardLoader handed out. Prints the exit codes of each run as a line of JSON, and ends
after a run that fails.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from toolkit_helpers import clean_env, free_port

from toolkit.data.shard_loader import ShardLoader

#: What the programs import.
LOADED = ("accelerate", "lightning", "timm.task", "timm.optim", "toolkit.cli.functions")
#: Seconds that a run may take.
LIMIT = 120.0


def recorded(folder: Path, rank: int, kill: list[int] | None) -> None:
    """Let every ShardLoader of this process write a line for each batch, and end the process at the batch ``kill``."""
    batches = ShardLoader.__iter__

    def watched(self: ShardLoader) -> Iterator[Any]:
        for batch in batches(self):
            if kill == [batch.epoch, batch.step]:
                os.kill(os.getpid(), signal.SIGKILL)
            saw = {
                "split": self.reader.shards[0].split, "epoch": batch.epoch, "step": batch.step,
                "keys": [key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if valid],
            }  # fmt: skip
            with (folder / f"rank{rank}.jsonl").open("a") as stream:
                stream.write(json.dumps(saw) + "\n")
            yield batch

    ShardLoader.__iter__ = watched  # type: ignore[method-assign]


def be(run: dict[str, Any], rank: int, port: int) -> NoReturn:
    """Run the program as one process of a launch by torchrun."""
    folder, size = Path(run["folder"]), run["world_size"]
    status = 1
    try:
        said = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ.clear()
        os.environ.update(
            clean_env() | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "tests",
            }
        )  # fmt: skip
        os.chdir(folder)
        torch.set_num_threads(1)
        recorded(folder, rank, run["kill"])
        runpy.run_path(run["program"], run_name="__main__")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ended(children: list[int]) -> list[int]:
    """Wait for the processes. Once one fails, the others are killed. Return exit codes, -9 for a killed process."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + LIMIT
    while len(codes) < len(children):
        for child in children:
            if child in codes:
                continue
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) or time.monotonic() > deadline:
            for child in set(children) - set(codes):
                os.kill(child, signal.SIGKILL)
                codes[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.01)
    return [codes[child] for child in children]


def main() -> None:
    for module in LOADED:
        importlib.import_module(module)
    for run in json.loads(Path(sys.argv[1]).read_text()):
        began, port, folder = time.monotonic(), free_port(), Path(run["folder"])
        if run["start"]:
            shutil.copytree(run["start"], folder, symlinks=True, ignore=shutil.ignore_patterns("rank*.*"))
        children = []
        for rank in range(run["world_size"]):
            if not (child := os.fork()):
                be(run, rank, port)
            children.append(child)
        codes = ended(children)
        print(json.dumps({"codes": codes, "seconds": round(time.monotonic() - began, 2)}), flush=True)
        if any(codes) and not run["kill"]:
            break


if __name__ == "__main__":
    main()
