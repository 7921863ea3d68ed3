"""Loaders that are used where they cannot work, or interrupted: one line, no wait without end, nothing left behind."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from failing import fails
from number_source import Numbers, decoders, pixels, start

from shards.errors import UserError
from toolkit.data.loader.processes import PER_CORE, ProcessCrew
from toolkit.data.sampling.plan import EvalPlan
from toolkit.data.shard_loader import ShardLoader
from toolkit.data.transforms.batch_transform import file_transforms

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="decoding processes need Linux")
ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize("processes", [0, 1])
def test_a_fork_is_refused_and_takes_no_batches_from_its_parent(processes: int):
    loader, batches = start(Numbers(), processes=processes)
    with loader:
        next(batches)
        child = os.fork()
        if child == 0:
            try:
                next(batches)
            except UserError as error:
                os._exit(40 + ("fork" in str(error)))
            finally:
                os._exit(1)
        deadline = time.monotonic() + 30
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        if ended[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(ended[1]) == 41
        assert len(list(batches)) == 4


def test_too_many_or_both_kinds_are_refused(shard_set: Path):
    with fails("option-conflict", "threads and processes"):
        ShardLoader(shard_set, split="train", batch_size=4, threads=2, processes=2)
    with fails("option-value", "10000", f"{PER_CORE} for each core", "250 MB"):
        ShardLoader(shard_set, split="train", batch_size=4, processes=10000)


def test_a_daemon_process_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    with fails("environment", "daemon", "threads"):
        start(Numbers())


def test_a_low_limit_of_open_files_is_told():
    loader, _ = start(Numbers())  # starts the resource tracker of Python, which keeps a file open
    loader.close()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    for more in (1, 4):
        os.close(free := os.dup(0))  # the lowest number of a file that is not open
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, before[1]))
        try:
            with fails("environment", "Too many open files", "ulimit -n"):
                start(Numbers(), processes=2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert decoders() == []


@pytest.mark.parametrize("place", ["_take", "_start"])
def test_ctrl_c_between_a_message_and_its_result_does_not_hang(place: str, monkeypatch: pytest.MonkeyPatch):
    loader, batches = start(Numbers())
    whole, calls = getattr(ProcessCrew, place), iter(range(100))

    def interrupted(*arguments: object) -> None:
        if place == "_start":
            whole(*arguments)
        if next(calls) == 1:
            raise KeyboardInterrupt
        if place == "_take":
            whole(*arguments)

    monkeypatch.setattr(ProcessCrew, place, interrupted)
    with loader:
        with pytest.raises(KeyboardInterrupt):
            list(batches)
        monkeypatch.undo()
        assert decoders() == []  # they may still write to memory that the next pass uses
        with fails("worker-lost", "Ctrl-C", "new loader"):
            list(loader.batches(EvalPlan(60, 12).micro_batches(0, 1), file_transforms(2, pixels)))
    gc.collect()


def test_the_level_of_a_logger_counts_as_with_threads(caplog: pytest.LogCaptureFixture):
    logging.getLogger("numbers").setLevel(logging.ERROR)
    try:
        for processes in (0, 1):
            loader, batches = start(Numbers(), processes=processes)
            with loader:
                list(batches)
    finally:
        logging.getLogger("numbers").setLevel(logging.NOTSET)
    assert not [message for message in caplog.messages if "round" in message]


PROGRAM = """
from number_source import Numbers, start
loader, batches = start(Numbers(count=10**7), processes=2)
print("started", flush=True)
for batch in batches:
    pass
"""


def test_ctrl_c_while_the_processes_start_shows_one_traceback(tmp_path: Path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "toolkit"), os.environ.get("PYTHONPATH", "")])
    program = subprocess.Popen(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert program.stdout is not None and program.stdout.readline() == b"started\n"
    time.sleep(0.2)  # the processes load torch now
    os.killpg(program.pid, signal.SIGINT)
    _, errors = program.communicate(timeout=60)
    assert errors.count(b"Traceback") == 1, errors.decode()
