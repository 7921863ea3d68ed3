"""A stack as the parent sees it: a process that answers, and how much memory its processes take."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

STACKS = Path(__file__).resolve().parent / "stacks"
sys.path.append(str(STACKS))  # stacks are scripts, so their modules lie on the path under plain names

from protocol import process_tree  # noqa: E402

PREPARE_SECONDS = 600.0
EPOCH_SECONDS = 600.0
#: An epoch of a few hundred posters is over in the time of one hiccup; it is repeated.
ROUND_SECONDS = 1.0
QUIT_SECONDS = 5.0
SAMPLE_SECONDS = 0.1


class StackFailed(Exception):
    """A stack cannot go on; the text is the reason."""


class StackProcess:
    """One stack on one data set, in a process of its own (and of this process group)."""

    def __init__(self, python: str, script: Path, task: dict[str, Any], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with open(log, "w") as stream:
            self._process = subprocess.Popen(
                [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True
            )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        with contextlib.ExitStack() as otherwise:
            otherwise.callback(self.close)
            self.ready = self._ask(json.dumps(task), PREPARE_SECONDS)
            otherwise.pop_all()  # it is ready: it stays

    def epoch(self) -> dict[str, Any]:
        """Run one epoch. Raises StackFailed."""
        return self._ask("go", EPOCH_SECONDS)

    def round(self) -> dict[str, Any]:
        """Epochs for ROUND_SECONDS, at least one, as if they were one. Raises StackFailed."""
        total = self.epoch()
        total["epochs"] = 1
        first = [total["first_batch"]]
        while total["seconds"] < ROUND_SECONDS:
            more = self.epoch()
            first.append(more["first_batch"])
            total["epochs"] += 1
            for name in ("images", "batches", "seconds", "cpu_seconds"):
                total[name] += more[name]
        total["first_batch"] = median(first)
        return total

    def epoch_memory(self) -> dict[str, float]:
        """Peak memory in MB during one more epoch, sampled ten times a second.

        Not during the timed ones: the kernel takes milliseconds to add up a large process, which would be
        charged to the stacks with many processes.
        """
        peak: dict[str, float] = {}
        stop = threading.Event()

        def sample() -> None:
            while not stop.is_set():
                for name, value in memory(self._process.pid).items():
                    peak[name] = max(peak.get(name, 0.0), value)
                stop.wait(SAMPLE_SECONDS)

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            self.epoch()
        finally:
            stop.set()
            sampler.join()
        return peak

    def quit(self) -> None:
        """Ask the process to end, without waiting."""
        with contextlib.suppress(OSError, ValueError):  # it is gone, or was asked before
            assert self._process.stdin is not None
            self._process.stdin.write("quit\n")
            self._process.stdin.close()

    def close(self) -> None:
        """End the process and whatever it started."""
        family = process_tree(self._process.pid)
        self.quit()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(QUIT_SECONDS)
        if self._process.poll() is None:
            for pid in reversed(family):
                with contextlib.suppress(OSError):
                    os.kill(pid, 9)
            self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _ask(self, line: str, seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            text = self._answers.get(timeout=seconds)
        except OSError:
            text = ""
        except queue.Empty:
            raise StackFailed(f"no answer in {seconds:.0f} seconds") from None
        if not text:
            raise StackFailed(f"ended with status {self._process.wait()}: {self._last_words()}")
        answer = json.loads(text)
        if "error" in answer:
            raise StackFailed(answer["error"])
        return answer

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else "it said nothing"


class Contest:
    """Stacks that take turns. Whoever fails is left out, and says why; the end of the context ends them all."""

    def __init__(self, names: Iterable[str], title: str, clean: Callable[[str], str]) -> None:
        """``clean`` takes the folders of this machine out of a reason."""
        self.title, self._clean = title, clean
        self.running: dict[str, StackProcess] = {}
        self.rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        self.left_out: dict[str, str] = {}

    def begin(self, name: str, start: Callable[[], StackProcess], least: int) -> dict[str, Any] | None:
        """Start a stack and throw its first epoch away, which must give ``least`` images; None if it is left out."""
        try:
            self.running[name] = start()
            cold = self.running[name].epoch()
        except StackFailed as failure:
            self.leave_out(name, str(failure))
            return None
        if cold["images"] < least:
            self.leave_out(name, f"an epoch gave {cold['images']} images, not {least}")
            return None
        return cold

    def leave_out(self, name: str, reason: str) -> None:
        """End a stack for good."""
        self.left_out[name] = self._clean(reason)
        self.rounds[name] = []
        print(f"{self.title}: {name} is left out: {self.left_out[name]}", file=sys.stderr)
        if name in self.running:
            self.running.pop(name).close()

    def run(self, rounds: int) -> None:
        """So many rounds over all that are left, every other one backwards."""
        for turn in range(rounds):
            print(f"{self.title}: round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
            order = list(self.running)
            for name in order if turn % 2 == 0 else reversed(order):
                try:
                    self.rounds[name].append(self.running[name].round())
                except StackFailed as failure:
                    self.leave_out(name, str(failure))

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            process.quit()  # all at once: some take seconds
        for process in self.running.values():
            process.close()


def memory(pid: int) -> dict[str, float]:
    """Memory of a process and its descendants in MB, shared pages counted once in all (PSS).

    ``own`` leaves out pages of files: libraries, which all stacks share in turns, and mapped data, which is page
    cache that the kernel takes back when it needs it. ``pss`` has them.
    """
    found = {"own": 0.0, "pss": 0.0}
    for process in process_tree(pid):
        try:
            text = Path("/proc", str(process), "smaps_rollup").read_text()
        except OSError:
            continue  # it has ended meanwhile
        fields = dict(line.split(":") for line in text.splitlines()[1:])
        kilobytes = {name: float(value.split()[0]) for name, value in fields.items()}
        found["pss"] += kilobytes["Pss"] / 1000
        found["own"] += (kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"]) / 1000
    return found
