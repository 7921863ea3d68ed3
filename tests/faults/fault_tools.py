"""What the tests of faults share: a command in this process, ranks in processes of their own, a disk to fill."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "toolkit"))  # its tools are of use here

from faulty import run_rank
from forked import forkserver
from toolkit_helpers import TINY, free_port, weights_option

from shards.storage.files import PARTIAL
from toolkit.cli import main as cli

#: Seconds within which any of these runs must end, however slow the machine: they take one or two.
LIMIT = 120

#: The tests' small run; updates of eight samples, seven an epoch. Of two ranks each has four, too few for statistics of
#: BatchNorm: so the weights come with some.
SMALL = [*TINY, "--train.batch_size=8", "--train.log_steps=1", weights_option()]


def train_options(shards: Path, out: Path, *more: str) -> list[str]:
    """``posters train`` of one small epoch, or with other options."""
    return ["train", "--shards", str(shards), "--out", str(out), *SMALL, "--train.epochs=1", *more]


# --- in this process --------------------------------------------------------------------------------------------------


def command(argv: Sequence[object], capture: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(exit status, error line or nothing) of a command as its entry point ends it; a bug keeps its traceback.

    Status 1 is what some commands say of what they were asked to look at: they have other words for it.
    """
    capture.readouterr()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(cli, "set_up_logging", lambda *_: None)  # pytest's own handlers stay
        patch.setattr(threading, "excepthook", threading.excepthook)  # and its hook comes back
        cli.run([str(word) for word in argv])
    said = capture.readouterr().err.replace("\r", "\n")
    assert "Traceback" not in said, said
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(lines) == (ended.value.code not in (0, 1)), said
    return int(ended.value.code or 0), "".join(lines)


# --- in processes of their own ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How the ranks of a run ended."""

    statuses: list[int]
    """Exit status by rank; -9 for one that was killed."""
    said: list[str]
    """What each wrote to stderr."""

    @property
    def errors(self) -> list[str]:
        """Error lines of all ranks. Nobody may have left a traceback."""
        assert not any("Traceback" in said for said in self.said), self.said
        return [line for said in self.said for line in said.splitlines() if line.startswith("error:")]


class Run:
    """The ranks of one run, started as a launcher starts them: real processes that meet over gloo."""

    def __init__(self, argv: Sequence[object], folder: Path, ranks: int = 1, fault: str = "") -> None:
        """``folder`` takes what they say; ``fault`` is one of faulty.py's. {rank} in a word is each rank's own."""
        folder.mkdir(parents=True, exist_ok=True)
        context = forkserver()
        self.files = [folder / f"stderr-{rank}.txt" for rank in range(ranks)]
        words, port = [str(word) for word in argv], free_port()
        self.processes = [
            context.Process(
                target=run_rank,
                args=([w.replace("{rank}", str(rank)) for w in words], rank, ranks, port, str(file), fault),
            )
            for rank, file in enumerate(self.files)
        ]
        for process in self.processes:
            process.start()

    def until(self, happened: Callable[[], object]) -> None:
        """Wait for something that the run will do."""
        deadline = time.monotonic() + LIMIT
        while not happened():
            assert time.monotonic() < deadline, [file.read_text() for file in self.files]
            time.sleep(0.01)

    def ended(self) -> Ended:
        """Wait for all ranks; that they end at all is part of every test."""
        deadline = time.monotonic() + LIMIT
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        self.kill()
        said = [file.read_text() if file.exists() else "" for file in self.files]
        assert not late, f"ranks {late} did not end: {said}"
        return Ended([int(process.exitcode or 0) for process in self.processes], said)

    def kill(self) -> None:
        """kill -9 of whoever is left."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()


def ended(argv: Sequence[object], folder: Path, ranks: int = 1, fault: str = "") -> Ended:
    """A run from its start to its end."""
    return Run(argv, folder, ranks, fault).ended()


# --- what a run leaves ------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_no_half_files(folder: Path) -> None:
    assert not list(folder.rglob(f"*{PARTIAL}*"))


def last_tensors(run: Path) -> dict[str, Any]:
    """Model, optimiser and moving average of a run's newest checkpoint."""
    path = sorted((run / "checkpoints").iterdir())[-1]
    return torch.load(path / "state.pt", weights_only=True)


def assert_same(ours: Any, theirs: Any) -> None:
    """Two nested values are the same to the bit."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_same(value, theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_same(mine, other)
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Two runs came to the same end: model folder, last checkpoint, course (but for what clocks say)."""
    assert (ours / "model/model.safetensors").read_bytes() == (theirs / "model/model.safetensors").read_bytes()
    assert_same(last_tensors(ours), last_tensors(theirs))
    assert course(ours) == course(theirs)


def course(run: Path) -> list[list[str]]:
    """The columns of log.csv and epochs.csv that no clock decides."""
    import csv

    clocks = re.compile("images_per_s|data_wait|decode_cores|copy|seconds")
    rows = []
    for name in ("log.csv", "epochs.csv"):
        with open(run / name) as stream:
            rows += [[f"{k}={v}" for k, v in row.items() if not clocks.fullmatch(k)] for row in csv.DictReader(stream)]
    return rows


# --- disks ------------------------------------------------------------------------------------------------------------


class Disk:
    """A small file system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, leave: int = 0) -> None:
        """Leave no room on it, or ``leave`` bytes; whole pages count."""
        ballast = self.folder / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        os.truncate(ballast, ballast.stat().st_size - leave)

    def free(self) -> None:
        (self.folder / "ballast").unlink(missing_ok=True)

    @contextlib.contextmanager
    def full_during(self, owner: Any, name: str) -> Iterator[None]:
        """Full from the moment that the function ``owner.name`` is called, until the block ends."""
        real = getattr(owner, name)

        def in_vain(*arguments: Any, **options: Any) -> Any:
            self.fill()
            return real(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, in_vain)
            try:
                yield
            finally:
                self.free()
