"""Tasks for the workers of a cluster, which import this module by its name."""

from __future__ import annotations

import os
import signal
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cluster_tools import until
from text_tools import Bright

from shards.errors import UserError
from shards.text.detector import Region


@dataclass(frozen=True)
class Note:
    """A task that leaves a file for each time that it is run."""

    folder: Path
    number: int

    def __str__(self) -> str:
        return f"note {self.number}"

    def tries(self) -> list[str]:
        """Processes that ran it."""
        return [path.name.split("-")[1] for path in self.folder.glob(f"{self.number:03d}-*")]


def write_note(task: Note) -> int:
    (task.folder / f"{task.number:03d}-{os.getpid()}-{uuid.uuid4().hex}").touch()
    return task.number * task.number


def fail_at_seven(task: Note) -> int:
    write_note(task)
    if task.number == 7:
        raise ValueError("seven is\npoison")
    return task.number


def fail_once(task: Note) -> int:
    write_note(task)
    if task.number % 5 == 0 and len(task.tries()) == 1:
        raise TimeoutError("the store was busy")
    return task.number


def refuse_three(task: Note) -> int:
    refused = task.folder / "refused"
    if task.number == 3:
        refused.touch()
        raise UserError("device", "task 3: 'what' and where")
    if task.number > 20:
        until(refused.exists, "the refusal")
        time.sleep(0.05)
    return task.number


def kill_at_three(task: Note) -> int:
    write_note(task)
    if task.number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)
    return task.number


def write_slowly(task: Note) -> int:
    time.sleep(0.02)
    return write_note(task)


def write_at_length(task: Note) -> int:
    (task.folder / f"begun-{task.number}").touch()
    time.sleep(0.5 if task.number else 0)
    (task.folder / f"ended-{task.number}").touch()
    return task.number


BROKEN = "POSTERS_TEST_BROKEN"
"""Names a file; while it is there, the detector fails on posters that are 164 pixels wide."""


class Fragile(Bright):
    """A detector with a bug."""

    name = "fragile"

    def detect(self, image: np.ndarray, index: int = 0) -> list[Region]:
        if image.shape[1] == 164 and Path(os.environ[BROKEN]).exists():
            raise ZeroDivisionError("a bug in the detector")
        return super().detect(image, index)
