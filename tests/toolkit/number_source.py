"""A source of numbers for tests of decoding processes, which import this module: it imports no more than they need."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np

from toolkit.data.loader.faults import KEEP_ERRORS
from toolkit.data.loader.loader import Batch, Loader
from toolkit.data.sampling.plan import EvalPlan
from toolkit.data.sources.errors import Undecodable
from toolkit.data.transforms.batch_transform import file_transforms


def decoders() -> list[int]:
    """Decoding processes of this process."""
    return [child.pid for child in multiprocessing.active_children() if child.name == "decode" and child.pid]


class Numbers:
    """A source whose sample k is the number k, and whose damage is a bug, a dead process or a log line."""

    def __init__(self, bug: int = -1, death: int = -1, count: int = 60) -> None:
        self.bug, self.death, self.count = bug, death, count

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> memoryview:
        if index == self.bug:
            raise Unpicklable(lambda: 0)
        if index == self.death:
            os.kill(os.getpid(), signal.SIGKILL)
        if index % 20 == 0:
            logging.getLogger("numbers").warning("%s is round", index)
        if index % 7 == 3:
            raise Undecodable("damaged on purpose")
        return memoryview(bytearray(index.to_bytes(4, "big")))

    def where(self, index: int) -> str:
        return f"number {index}"


class Unpicklable(Exception):
    """An error that cannot be sent to another process."""


def pixels(data: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(data * 3), dtype=np.uint8).reshape(2, 2, 3)


def start(source: Any, *, processes: int = 1, transform: Any = pixels) -> tuple[Loader, Iterator[Batch]]:
    loader = Loader(source, 2, 2, policy=KEEP_ERRORS, processes=processes)
    return loader, loader.batches(EvalPlan(len(source), 12).micro_batches(0, 1), file_transforms(2, transform))
