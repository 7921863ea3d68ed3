"""The program of a decoding process (processes.py). It does tasks until its connection is closed."""

from __future__ import annotations

import contextlib
import io
import logging
import mmap
import multiprocessing.connection
import multiprocessing.reduction
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from shards.errors import UserError, one_line
from toolkit.data.loader.faults import FaultPolicy, Faults
from toolkit.data.loader.work import Decoder, Rows, Source
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.transforms.batch_transform import Transforms

#: Seconds between two checks of whether the process that started this one still exists. Usually the connection tells
#: it. But a process that was forked from the other end can keep the connection open.
CHECK = 5.0


@dataclass(frozen=True)
class Setup:
    """What a process needs for all passes."""

    source: Source
    fields: Callable[[int], Any] | None
    policy: FaultPolicy
    num_samples: int
    log_level: int


@dataclass(frozen=True)
class Changes:
    """Results of rows that are not in the buffer. Rows are numbered as in the micro-batch."""

    indices: dict[int, int]
    """Row → substitute of its sample."""
    invalid: list[int]
    """Rows without an image."""
    errors: dict[int, str]
    squares: dict[int, np.ndarray | None]
    fields: dict[int, Any]


@dataclass(frozen=True)
class Result:
    """The result of one task."""

    work: int
    """Number of the task's micro-batch."""
    times: dict[str, float]
    reports: list[tuple[int, str]]
    """Samples that cannot be decoded, with the reason."""
    records: list[logging.LogRecord]
    changes: Changes | None = None
    """None if all rows are in the buffer."""
    failure: BaseException | None = None
    """The error that ended the task."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, source: Source | None) -> None:
        super().__init__(io.BytesIO(data))
        self._source = source

    def persistent_load(self, name: Any) -> Any:
        return self._source


class _Records(logging.Handler):
    """Collect log records. The process with the loader writes them, in its own format."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None  # these may not be picklable
        self.records.append(record)

    def taken(self) -> list[logging.LogRecord]:
        records, self.records = self.records, []
        return records


class Server:
    """The state of a decoding process."""

    def __init__(self, connection: multiprocessing.connection.Connection) -> None:
        self._connection = connection
        self._memory: dict[int, np.ndarray] = {}
        self._log = _Records()
        logging.getLogger().addHandler(self._log)

    def setup(self, data: bytes) -> None:
        setup: Setup = _Unpickler(data, None).load()
        logging.getLogger().setLevel(setup.log_level)
        self._faults = Faults(replace(setup.policy, log_each=False), setup.num_samples)
        self._decoder = Decoder(setup.source, self._faults, setup.fields)

    def memory(self, number: int, size: int) -> None:
        try:
            file = multiprocessing.reduction.recv_handle(self._connection)
        except RuntimeError:  # it was not delivered
            what = "a decoding process cannot open the memory of a batch, because it has too many open files"
            raise UserError("environment", f"{what}; raise the limit (ulimit -n)") from None
        try:
            self._memory[number] = np.frombuffer(mmap.mmap(file, size), dtype=np.uint8)
        finally:
            os.close(file)

    def transforms(self, data: bytes, epoch: int) -> None:
        self._transforms: Transforms = _Unpickler(data, self._decoder.source).load()
        self._epoch = epoch

    def task(self, work: int, first: int, memory: int, position: int, *columns: bytes) -> Result:
        """Decode some rows into a memory, from the byte ``position`` on. ``first``: number of the first row."""
        kinds = (np.int64, np.bool_, np.int64)
        micro_batch = MicroBatch(*(np.frombuffer(c, dtype=kind) for c, kind in zip(columns, kinds, strict=True)))
        began, began_cpu, size = time.perf_counter(), time.thread_time(), 0
        rows = range(len(micro_batch.indices))
        changes, failure = None, None
        try:
            transform = self._transforms(micro_batch)
            found = Rows(
                micro_batch=micro_batch,
                transform=transform,
                indices=micro_batch.indices.copy(),
                valid=micro_batch.valid.copy(),
            )
            part = self._memory[memory][position : position + transform.size]
            size = self._decoder.decode(found, rows, part, self._transforms, self._epoch)
            if found.squares or found.fields:
                changes = _changes(found, first)
        except Exception as error:  # the loader raises it
            failure = _portable(error)
        times = {
            "decode": time.perf_counter() - began,
            "decode_cpu": time.thread_time() - began_cpu,
            "samples": len(rows),
            "bytes_read": size,
        }
        reports = list(self._faults.found.items())
        self._faults.forget()
        return Result(work, times, reports, self._log.taken(), changes, failure)

    def answer(self, result: Any) -> None:
        self._connection.send_bytes(pickle.dumps(result, pickle.HIGHEST_PROTOCOL))


def _changes(found: Rows, first: int) -> Changes:
    """Return what is not in the buffer. Every replaced or invalid row is in ``squares``."""

    def moved(values: dict[int, Any]) -> dict[int, Any]:
        return {first + row: value for row, value in values.items()}

    replaced = {row: int(found.indices[row]) for row in found.squares}
    invalid = [first + row for row in found.squares if not found.valid[row]]
    return Changes(moved(replaced), invalid, moved(found.errors), moved(found.squares), moved(found.fields))


def _portable(error: Exception) -> Exception:
    """Return the error, or its text if it cannot be pickled. The cause has the traceback of this process."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # any class can fail in its own way
        return RuntimeError(text)
    return error


def serve(connection: multiprocessing.connection.Connection, parent: int) -> None:
    """Answer the messages of the process ``parent`` until it closes the connection or ends. Then end this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and closes the connection
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has closed the connection or has ended
        server = Server(connection)
        try:
            while True:
                while not connection.poll(CHECK):
                    if os.getppid() != parent:
                        os._exit(1)
                kind, *values = pickle.loads(connection.recv_bytes())
                if kind == "task":
                    server.answer(server.task(*values))
                else:
                    getattr(server, kind)(*values)
        except (EOFError, ConnectionError):
            raise
        except UserError as error:
            server.answer(error)
        except Exception as error:  # a class of the user cannot be unpickled, for example
            what = f"a decoding process cannot use its source, fields or transform ({one_line(error)})"
            remedy = "functions must be in a module that can be imported; without processes, threads decode"
            server.answer(UserError("option-conflict", f"{what}; {remedy}"))
    os._exit(0)  # at once: an interpreter with torch needs some 0.1 s to end
