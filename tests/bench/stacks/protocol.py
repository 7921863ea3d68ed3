"""What a stack of a benchmark says to ``loader.py`` or ``predict.py``: one JSON line in, one out, on stdin and stdout.

    in   {"variant", "cores", "batch", "size", "seed", "scale", "ratio", "flip",      what to do (see Task)
          "set", "samples", "files", "shards", "tars", "cache", "model", "precision",
          "compile"}
    out  {"ready": true, "work": "uint8, antialiased", "versions": {...}}             or {"error": "one line"}
    in   "go"
    out  {"images", "batches", "seconds", "first_batch", "cpu_seconds", "shape", "dtype"}   or {"error": ...}
    in   "quit", or the end of the stream

A stack is a file that calls ``serve(prepare)``. ``prepare(task)`` makes what it needs and returns a ``Stack``;
``Stack.epoch(number)`` is a generator whose first step makes the iterator and which yields every batch: anything with a
length in images, or that number itself. Between two epochs a stack must not use the CPU.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """One data set and how to load it."""

    variant: str
    cores: int
    batch: int
    size: int
    seed: int
    scale: tuple[float, float]
    """Share of the area that RandomResizedCrop cuts out, from and to."""
    ratio: tuple[float, float]
    flip: float
    set: str
    samples: int
    files: str
    """Folder of the JPEG files, without sub-folders."""
    shards: str
    """Folder of the toolkit's shard set; every sample is in split "train"."""
    tars: list[str]
    """The tars of that set."""
    cache: str
    """Folder of this stack's own, for the data in its own format. Kept between runs."""
    model: str = ""
    """Model folder, of the prediction benchmark."""
    precision: str = "no"
    """no, bf16 or fp16, likewise."""
    compile: bool = False
    """Whether torch.compile is used, likewise."""


@dataclass(frozen=True)
class Stack:
    """A stack that is ready to run epochs."""

    epoch: Callable[[int], Iterator[Any]]
    work: str
    """What a batch is, in a few words: type of the pixels, filter of the resize, whatever differs from others."""
    libraries: tuple[str, ...] = field(default=())
    """Distributions whose versions matter."""
    told: dict[str, Any] = field(default_factory=dict)
    """What the answer about an epoch has besides the numbers."""


def serve(prepare: Callable[[Task], Stack]) -> None:
    """Answer the parent until it says "quit"."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints, from C as well, must not get between the answers

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")

    def fail(error: BaseException | None) -> None:
        traceback.print_exception(error)
        answer({"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]})

    def fail_in_thread(caught: threading.ExceptHookArgs) -> None:
        # A library whose thread has died would be waited for in vain.
        fail(caught.exc_value)
        os._exit(1)

    threading.excepthook = fail_in_thread
    lines = iter(sys.stdin.readline, "")  # not the file's own iterator, which reads ahead
    try:
        told: Any = json.loads(next(lines))
        told.update(scale=tuple(told["scale"]), ratio=tuple(told["ratio"]))  # libraries mind the difference
        task = Task(**told)
        stack = prepare(task)
        answer({"ready": True, "work": stack.work, "versions": _versions(stack.libraries)})
        for number, line in enumerate(lines):
            if line.strip() != "go":
                break
            answer(_run_epoch(stack, number))
    except Exception as error:  # whatever goes wrong in a library becomes the stack's answer
        fail(error)


def _run_epoch(stack: Stack, number: int) -> dict[str, Any]:
    images = batches = 0
    first, layout = 0.0, {}
    cpu = tree_cpu_seconds()
    started = last = time.perf_counter()
    for batch in stack.epoch(number):
        last = time.perf_counter()
        if batches == 0:
            first = last - started
            layout = {"shape": list(getattr(batch, "shape", ())), "dtype": str(getattr(batch, "dtype", ""))}
        images += batch if isinstance(batch, int) else len(batch)
        batches += 1
    used = tree_cpu_seconds() - cpu
    numbers = {"images": images, "batches": batches, "seconds": last - started, "first_batch": first}
    return {**numbers, "cpu_seconds": used, **layout, **stack.told}


def tree_cpu_seconds() -> float:
    """CPU time so far of this process, its descendants, and the children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for pid in process_tree(os.getpid()):
        try:
            # clock_getcpuclockid(3): nanoseconds, where /proc/PID/stat would count in hundredths
            total += time.clock_gettime((~pid << 3) | 2)
        except OSError:
            continue  # it has ended meanwhile
    return total


def process_tree(root: int) -> list[int]:
    """A process and its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue  # it has ended meanwhile
            children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(entry))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _versions(libraries: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "?"
    return found


def own_format(task: Task, write: Callable[[Path], None]) -> Path:
    """The folder with the data in the stack's own format, written once."""
    folder = Path(task.cache)
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(folder)
        (folder / "whole").touch()
    return folder


def jpeg_files(task: Task) -> list[Path]:
    """The posters of the set, by name."""
    return sorted(Path(task.files).glob("*.jpg"))
