"""What the stacks of exactness.py have in common: what they are asked, and what they answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

SEED = 42
#: Unequal, as shards packed by size or merged from several sources are. The sum leaves one sample after eight batches,
#: and divides by no world size: what a loader does with a remainder shows.
SHARD_SIZES = (31, 17, 22, 18, 9)
WORLDS = (1, 2, 3)
#: Divisible by every world size that is compared, so that a stack with a batch per rank can keep the global batch.
GLOBAL_BATCH = 12
#: The update after which a run is stopped.
RESUME_STEP = 3
IMAGE_SIZE = 16

Ids = list[int]


class NotOffered(Exception):
    """The stack has no documented way to do this."""


@dataclass(frozen=True)
class Setup:
    """What a stack is asked to load, and as whom."""

    shards: Path
    """Folder of the tars and of ``_info.json``, the file that timm's reader asks for."""
    home: Path
    """Folder of this stack's own, for the samples in its own format."""
    split: str
    """Name of a split of ``_info.json``."""
    rank: int
    world: int

    @cached_property
    def info(self) -> dict[str, Any]:
        return json.loads((self.shards / "_info.json").read_text())["splits"][self.split]

    @property
    def urls(self) -> list[str]:
        return [str(self.shards / name) for name in self.info["filenames"]]

    @property
    def num_samples(self) -> int:
        return int(self.info["num_samples"])

    @property
    def rank_batch(self) -> int:
        return GLOBAL_BATCH // self.world

    @property
    def own_format(self) -> Path:
        """The split in the stack's own format, which ``Stack.prepare`` writes."""
        return self.home / self.split


@dataclass(frozen=True)
class Saved:
    """The states that the ranks of a stopped run saved."""

    states: Sequence[Any]

    def of(self, rank: int) -> Any:
        """The state of this rank; that of rank 0 if the stopped run had no such rank."""
        return self.states[rank if rank < len(self.states) else 0]


@dataclass(frozen=True)
class Epoch:
    """One epoch of training, or the rest of one."""

    steps: Iterator[Ids]
    """The sample ids of every step of this rank."""
    state: Callable[[], Any] | None = None
    """What the stack saves after the last step that it gave; None if it saves nothing."""


@dataclass(frozen=True)
class Stack:
    """A loader, set up as its documentation recommends."""

    train: Callable[[Setup, Saved | None], Epoch]
    """Epoch 0, from its start or from the states of a stopped run."""
    evaluate: Callable[[Setup], Iterator[Ids]]
    libraries: tuple[str, ...] = ()
    """Distributions whose versions matter."""
    peer: str = ""
    """Its venv of peers.py; none means this interpreter."""
    prepare: Callable[[Setup], None] | None = None
    """Write a split in the stack's own format."""
    resumes: bool = True
    """Whether it documents a way to go on in the middle of an epoch."""
