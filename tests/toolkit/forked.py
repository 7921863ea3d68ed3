"""Scripts and commands in processes of their own, forked from one that has loaded torch: that takes seconds each time.

They are what ``python SCRIPT`` is in all else: environment, folder, arguments, import path, exit status, what they say.
"""

from __future__ import annotations

import atexit
import faulthandler
import io
import multiprocessing
import os
import re
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from subprocess import CompletedProcess

ROOT = Path(__file__).resolve().parents[2]

#: What most of them import first.
LOADED = ("toolkit.training.run", "toolkit.evaluation.evaluate", "toolkit.prediction.batch")

#: Seconds that processes have to end after SIGTERM, and to say where they are.
GRACE = 30.0


class Late(AssertionError):
    """Processes were still there after their time. The message has where each of them was."""


def forkserver() -> multiprocessing.context.ForkServerContext:
    """Starts processes that have loaded torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    return context


def run_forked(
    command: Sequence[object], environments: Sequence[Mapping[str, str]], timeout: float, folder: Path = ROOT
) -> CompletedProcess[str]:
    """Run ``command`` (a script or -m MODULE, and arguments) in a process for each environment, as a launcher does.

    folder: where they run.
    Once one of several fails, the others are told to end. The exit status is the first failure's, and so is what they
    said, in one text. Raises Late.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as outputs:
        said = Path(outputs) / "stdout", Path(outputs) / "stderr"
        command_of = (words, str(folder), *map(str, said))
        processes = [forkserver().Process(target=_be, args=(dict(env), *command_of)) for env in environments]
        for process in processes:
            process.start()
        try:
            status = _status(processes, time.monotonic() + timeout)
        except TimeoutError:
            for process in processes:
                _signal(process, signal.SIGABRT)  # faulthandler makes a traceback of it
            _end(processes)
            raise Late(f"{words} took over {timeout:.0f} s\n{said[1].read_text(errors='replace')}") from None
        finally:
            _end(processes)
        out, err = (path.read_text(errors="replace") if path.exists() else "" for path in said)
        err = re.sub(r"^Extension modules: .*$", "", err, flags=re.M)  # faulthandler's longest line hides the others
    return CompletedProcess(words, status, out, err)


def _status(processes: Sequence[ForkServerProcess], deadline: float) -> int:
    """Wait for the end of all, or of the first that fails."""
    while True:
        codes = [process.exitcode for process in processes]
        if failed := [code for code in codes if code]:
            for process in processes:
                _signal(process, signal.SIGTERM)
            return failed[0]
        if None not in codes:
            return 0
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def _end(processes: Sequence[ForkServerProcess]) -> None:
    """Wait a little for each process, then kill it."""
    deadline = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        _signal(process, signal.SIGKILL)
        process.join()


def _signal(process: ForkServerProcess, number: int) -> None:
    if process.pid is not None and process.is_alive():
        os.kill(process.pid, number)


def _be(environment: dict[str, str], words: list[str], folder: str, stdout: str, stderr: str) -> None:
    """Be a fresh interpreter that runs ``words``."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # several processes share it
        os.dup2(file, number)
        os.close(file)
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.FileIO(1, "wb"))  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(  # type: ignore[misc]
        io.FileIO(2, "wb"), errors="backslashreplace", line_buffering=True
    )
    faulthandler.enable()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    tests = str(ROOT / "tests")
    sys.path[:] = [str(ROOT), *(path for path in sys.path if not path.startswith(tests))]
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()
