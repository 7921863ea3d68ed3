"""Processes that decode for one loader, so that decoding does not need the global interpreter lock of this process.

    this process ── task: rows of a micro-batch ──→ decoding process: read, decode ─→ memory of the batch (SharedBuffer)
                 ←── sizes, times, damaged images ──

The lock is needed for some 100 µs per task of up to 32 images. No thread of this process is involved: results are read
when the loader is asked for a batch. Each process has its own copy of the source, which is pickled once, and its own
transforms, which are pickled once per pass. A process ends if the other end of its connection is closed, so it ends
with the loader and with this process, even if this process is killed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.reduction
import os
import pickle
import select
import signal
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np
import torch

from shards.errors import UserError, one_line
from shards.executors.local import available_cores, no_main_module
from shards.values import whole_number
from toolkit.data.loader.buffers import PinnedBuffer, SharedBuffer
from toolkit.data.loader.decoding_process import Result, Setup, serve
from toolkit.data.loader.timing import LoaderTimer
from toolkit.data.loader.work import Decoder, Work
from toolkit.data.transforms.batch_transform import Transforms

#: Seconds after which processes that do not end are killed.
PATIENCE = 5.0
#: Largest number of processes per core. More are not faster, and can fill the memory.
PER_CORE = 8
REMEDY = "leave processes out, and threads decode"


def usable_processes(processes: int, threads: int, own_transform: bool) -> int:
    """Return ``processes``, the argument of a loader. Raises UserError if it does not fit the other arguments."""
    processes, most = whole_number("processes", processes, 0), PER_CORE * available_cores()
    if processes and threads:
        raise UserError("option-conflict", "threads and processes are both given: leave one of them out")
    if processes and own_transform:
        raise UserError("option-conflict", "processes cannot call a function as transform: use threads")
    if processes > most:
        what = f"processes={processes} is more than {PER_CORE} for each core of this machine"
        raise UserError("option-value", f"{what}: use at most {most}, because each process needs about 250 MB")
    return processes


@dataclass
class Member:
    """A decoding process."""

    process: SpawnProcess
    connection: multiprocessing.connection.Connection
    room: select.poll
    """Tells whether a message of a task fits into the connection at once."""
    tasks: int = 0
    """Number of tasks that were sent and whose results were not read yet."""

    def send(self, message: Any) -> None:
        self.connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


class ProcessCrew:
    """The decoding processes of one loader."""

    def __init__(self, processes: int, decoder: Decoder, timer: LoaderTimer, device: torch.device, stream: Any) -> None:
        """Start the processes. Raises UserError if they cannot start, or if the source or fields cannot be pickled."""
        if not hasattr(os, "memfd_create"):
            raise UserError("environment", f"decoding processes need Linux; {REMEDY}")
        if multiprocessing.current_process().daemon:
            what = "a daemon process, such as a worker of a DataLoader, cannot start decoding processes"
            raise UserError("environment", f"{what}; {REMEDY}")
        self._decoder, self._timer, self._device, self._stream = decoder, timer, device, stream
        policy, count = decoder.faults.policy, len(decoder.source)
        level = logging.getLogger().getEffectiveLevel()
        setup = self._pickled(Setup(decoder.source, decoder.fields, policy, count, level), "its source or its fields")
        self._works: dict[int, Work] = {}
        self._pass: tuple[Transforms, int] | None = None
        self._begun = self._memories = 0
        self._failure: UserError | None = None
        self._members: dict[int, Member] = {}
        self._ready = select.poll()
        self._ended = weakref.finalize(self, _end, self._members, os.getpid())
        with self._unbroken():
            for _ in range(processes):
                try:
                    member = _started()
                except OSError as error:
                    raise self._failed(_refused(error)) from None
                self._members[member.connection.fileno()] = member
                self._ready.register(member.connection.fileno(), select.POLLIN)
            self._tell(("setup", setup))

    def buffer(self) -> PinnedBuffer:
        self._memories += 1
        return SharedBuffer(self._device, self._memories, self._share)

    def _share(self, number: int, file: int, size: int) -> None:
        for member in self._members.values():
            with self._sending(member):
                member.send(("memory", number, size))
                multiprocessing.reduction.send_handle(member.connection, file, member.process.pid)

    def start(self, work: Work, memory: np.ndarray, transforms: Transforms, epoch: int) -> None:
        with self._unbroken():
            self._start(work, transforms, epoch)

    def _start(self, work: Work, transforms: Transforms, epoch: int) -> None:
        self._receive(0)
        if self._pass is None or self._pass[0] is not transforms or self._pass[1] != epoch:
            self._tell(("transforms", self._pickled(transforms, "its transform"), epoch))
            self._pass = transforms, epoch
        number, self._begun = self._begun, self._begun + 1
        tasks = work.tasks(len(self._members))
        self._works[number], work.unfinished = work, len(tasks)
        micro_batch, buffer = work.micro_batch, work.buffer
        assert isinstance(buffer, SharedBuffer)
        columns = micro_batch.indices, micro_batch.valid, micro_batch.repeat
        for rows in tasks:
            member = min(self._members.values(), key=lambda member: member.tasks)
            parts = [column[rows.start : rows.stop].tobytes() for column in columns]
            with self._sending(member):
                member.send(("task", number, rows.start, buffer.number, work.transform.start(rows.start), *parts))
            member.tasks += 1

    def finish(self, work: Work) -> None:
        self._receive(0)
        while work.unfinished and work.failure is None:
            self._receive(None)
        if work.failure is not None:
            raise work.failure

    def drop(self, works: list[Work]) -> None:
        with contextlib.suppress(UserError), self._unbroken():  # UserError: all processes have been ended
            while self._members and any(work.unfinished for work in works):
                self._receive(None)

    def close(self) -> None:
        self._ended()

    def _tell(self, message: Any) -> None:
        for member in self._members.values():
            with self._sending(member):
                member.send(message)

    @contextlib.contextmanager
    def _sending(self, member: Member) -> Iterator[None]:
        """Wait until ``member`` takes messages. Read results meanwhile, because a process may wait to send them."""
        while not member.room.poll(0):
            self._receive(50)
        try:
            yield
        except ConnectionError:
            raise self._lost(member) from None
        except OSError as error:
            raise self._failed(_refused(error)) from None

    @contextlib.contextmanager
    def _unbroken(self) -> Iterator[None]:
        """End the processes if Ctrl-C or a bug ends the block, because a result may be lost that others wait for."""
        try:
            yield
        except UserError:
            raise
        except BaseException:
            what = "Ctrl-C or an error ended the decoding processes of this loader"
            self._failed(UserError("worker-lost", f"{what}: make a new loader"))
            raise

    def _receive(self, milliseconds: float | None) -> None:
        """Read the results that have arrived. Wait for one up to ``milliseconds``, or without limit if it is None."""
        if self._failure is not None:
            raise self._failure
        if not self._members:
            raise RuntimeError("this loader is closed")
        for descriptor, _ in self._ready.poll(milliseconds):
            with self._unbroken():
                self._read(self._members[descriptor])

    def _read(self, member: Member) -> None:
        try:
            message = pickle.loads(member.connection.recv_bytes())
        except (EOFError, OSError):
            raise self._lost(member) from None
        if isinstance(message, UserError):  # the process cannot decode anything
            raise self._failed(message)
        member.tasks -= 1
        self._take(message)

    def _take(self, result: Result) -> None:
        for record in result.records:
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):  # its level may be higher than that of the process
                logger.handle(record)
        for sample, message in result.reports:
            self._decoder.faults.report(sample, message)
        work = self._works[result.work]
        if result.failure is not None:
            work.failure = work.failure or result.failure
        if result.changes is not None:
            for row, sample in result.changes.indices.items():
                work.indices[row] = sample
            work.valid[result.changes.invalid] = False
            work.errors.update(result.changes.errors)
            work.squares.update(result.changes.squares)
            work.fields.update(result.changes.fields)
        self._timer.add(**result.times)
        work.unfinished -= 1
        if work.unfinished == 0:
            del self._works[result.work]
            if work.failure is None:
                work.buffer.start_copy(work.transform.size, self._stream)

    def _lost(self, member: Member) -> UserError:
        member.process.join(PATIENCE)
        what = f"a decoding process ended unexpectedly (exit status {member.process.exitcode})"
        remedy = "if memory was full, use fewer processes; without processes, threads decode"
        return self._failed(UserError("worker-lost", f"{what}: {remedy}"))

    def _failed(self, error: UserError) -> UserError:
        self._failure = error
        self.close()
        return error

    def _pickled(self, value: Any, name: str) -> bytes:
        """Pickle ``value``. In it, the loader's source is a reference to the copy that a process already has."""
        out = io.BytesIO()
        try:
            _Pickler(out, None if isinstance(value, Setup) else self._decoder.source).dump(value)
        except UserError:
            raise
        except Exception as error:  # any class can fail in its own way
            what = f"processes cannot decode for this loader, because {name} cannot be pickled ({one_line(error)})"
            raise UserError("option-conflict", f"{what}; {REMEDY}") from None
        return out.getvalue()


class _Pickler(pickle.Pickler):
    def __init__(self, out: io.BytesIO, source: Any) -> None:
        super().__init__(out, pickle.HIGHEST_PROTOCOL)
        self._source = source

    def persistent_id(self, value: Any) -> Any:
        return "source" if value is self._source and value is not None else None


def _started() -> Member:
    """Start a process. It is spawned, not forked, because a fork of a process that uses a GPU cannot use it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, os.getpid()), daemon=True, name="decode")
    try:
        resource_tracker.ensure_running()  # now, because it changes the signals that are blocked
        # The process inherits this. Ctrl-C during its start would print its traceback.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            with no_main_module():
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    room = select.poll()
    room.register(ours.fileno(), select.POLLOUT)
    return Member(process, ours, room)


def _refused(error: OSError) -> UserError:
    what = f"the system refuses what decoding processes need ({one_line(error)})"
    return UserError("environment", f"{what}; use fewer processes, raise the limit (ulimit -n), or {REMEDY}")


def _end(members: dict[int, Member], owner: int) -> None:
    """Close the connections, so that the processes end, and wait for their end."""
    for member in members.values():
        member.connection.close()
    if os.getpid() == owner:  # else this is a fork, which has no processes
        end = time.monotonic() + PATIENCE  # of all together: a process that still loads torch notices nothing
        for member in members.values():
            member.process.join(max(0.0, end - time.monotonic()))
            if member.process.exitcode is None:
                member.process.kill()
                member.process.join()
            member.process.close()
    members.clear()
