"""Votes over gloo: the result is whether any process must stop or cannot read its samples.

A vote starts early, and its result is read after some other work. The result has usually arrived by then, so no process
waits.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from datetime import timedelta
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator

from toolkit.distributed.launch import wait_seconds

#: Longest time that a process waits for its last vote when it ends. Other processes are a few updates behind at most.
LAST_VOTE = timedelta(seconds=10)
#: Exit status of a run that saved its work after a stop signal (EX_TEMPFAIL, "try again", in sysexits.h).
STOPPED = 75


class Stopped(Exception):
    """A signal stopped the run. Every rank raises this error at the same step. Its message says what was saved."""


class Vote:
    """A vote of all ranks. ``ask`` starts it, and ``answer`` returns whether any rank called ``ask(True)``."""

    def __init__(self, accelerator: Accelerator) -> None:
        """Create the process group for votes. This is a collective call, and so are ``ask`` and ``answer``."""
        # A separate gloo group, because a vote over NCCL waits for the GPU.
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
        """Return the result of the last vote, or False before the first vote. Wait at most ``limit``."""
        work, self._work = self._work, None
        if work is not None:
            work.wait() if limit is None else work.wait(limit)
        return bool(self._flag[0])


class StopSignal:
    """Stop all ranks after the same step if any rank receives SIGTERM or SIGINT.

    The first signal requests a stop. If the second signal is SIGINT, it interrupts at once. A single process stops
    after its current step. Several processes vote after each step and read the result one step later, without a wait.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.received = 0
        self.vote = Vote(accelerator)
        # Python allows handlers in the main thread only. A training in another thread cannot be stopped by a signal.
        handled = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        self._previous = {s: signal.signal(s, self._note) for s in handled}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, now: bool = False) -> bool:
        """Return whether any rank had received a stop signal before the previous call. A collective call.

        If ``now`` is true, or if the run has one process, signals since the previous call also count.
        """
        stop = self.vote.answer()
        if not stop:
            self.vote.ask(bool(self.received))
            stop = (now or not self.vote.several) and self.vote.answer()
        return stop

    def check(self, outcome: str = "", now: bool = False) -> None:
        """Raise Stopped with the message ``outcome``, on every rank, if `agreed` returns True. A collective call."""
        if self.agreed(now):
            raise Stopped(outcome)

    def restore(self) -> None:
        """Restore the previous signal handlers, and finish a vote that is still running."""
        # The result is not needed. If a rank is lost, this call fails, but another call already reports that error.
        with contextlib.suppress(RuntimeError):
            self.vote.answer(LAST_VOTE)
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set by C code
