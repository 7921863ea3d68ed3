"""Votes of all processes, each a word over gloo: is one of them to stop, or has one lost its samples?

A vote is asked, and its answer is read some work later: it has come in by then, and no process waits for another.
"""

from __future__ import annotations

import contextlib
import signal
from datetime import timedelta
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator

from toolkit.distributed.launch import wait_seconds

#: How long a process that ends waits for a vote that others have yet to give: they were hardly behind.
LAST_VOTE = timedelta(seconds=10)

#: Exit status of a run that was told to stop and saved first (sysexits.h's EX_TEMPFAIL: "try again").
STOPPED = 75


class Stopped(Exception):
    """The run was told to stop. Every rank raises it at the same place; the message says what became of the work."""


class Vote:
    """Whether any rank says yes. Each asks, works on, and then waits for the answer, which has mostly come by then."""

    def __init__(self, accelerator: Accelerator) -> None:
        """A collective call, as ``ask`` and ``answer`` are."""
        # A CPU group of its own: asking over NCCL would wait for the GPU.
        self.several = accelerator.num_processes > 1
        self._group: Any = dist.new_group(backend="gloo", timeout=wait_seconds()) if self.several else None
        self._flag = np.zeros(1, dtype=np.int64)
        self._work: Any = None

    def ask(self, yes: bool) -> None:
        self._flag = np.array([yes], dtype=np.int64)
        if self.several:
            flag = torch.from_numpy(self._flag)
            self._work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def answer(self, limit: timedelta | None = None) -> bool:
        """Whether any rank said yes when it was last asked; False before that. Waits for so long at most."""
        work, self._work = self._work, None
        if work is not None:
            work.wait() if limit is None else work.wait(limit)
        return bool(self._flag[0])


class StopSignal:
    """SIGTERM or SIGINT, noticed by any rank, honoured by all after the same step.

    The first signal asks for a stop; a second SIGINT interrupts at once. Alone, a process stops after the current step.
    Several vote after each step, and read a vote after the next one: it had that long to come in without a wait.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.received = 0
        self.vote = Vote(accelerator)
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, now: bool = False) -> bool:
        """Whether any rank had been told to stop by the call before; with ``now`` by this call, which then waits.

        A collective call: every rank makes it at the same step.
        """
        told = self.vote.answer()
        if not told:
            self.vote.ask(bool(self.received))
            told = (now or not self.vote.several) and self.vote.answer()
        return told

    def check(self, outcome: str = "", now: bool = False) -> None:
        """Raise Stopped with ``outcome`` on every rank if any was told to stop. A collective call, as ``agreed``."""
        if self.agreed(now):
            raise Stopped(outcome)

    def restore(self) -> None:
        """Give the signals back to whoever had them, and leave no vote under way."""
        # Its answer is of no use any more. It fails where another rank was lost, which is said elsewhere.
        with contextlib.suppress(RuntimeError):
            self.vote.answer(LAST_VOTE)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
