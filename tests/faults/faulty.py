"""``posters train`` as one rank of a run, with a fault.

Faults, as "NAME ARGUMENTS", several with ; between them:
    nan ID            the pixels of the sample with this id become NaN before the network sees them; ID may be "all"
    nan-gradient STEP RANK   this rank's gradient of update STEP (from 0) of the first epoch is NaN in one element
    blind             gradients are not looked at, as under a gradient scaler, which needs a GPU
    leave-out ID      updates with this sample are not made: their batches are read, nothing else happens
    kill RANK UPDATE  this rank kills itself (SIGKILL) after that update
    term RANK UPDATE  this rank is told to stop (SIGTERM) there
    hold UPDATE FILE  every rank touches FILE.RANK after that update and waits for ever
    kill-write BYTES UPDATE   the process kills itself when so many bytes of that update's state.pt are written
    kill-rename UPDATE        the process kills itself when that checkpoint's files are whole, before they have its name
    oom WHERE ROWS    passes of over ROWS rows fail as CUDA's allocator does; WHERE: training, validation
    memory MIB        the process gets so much more address space than it has, and the system refuses the rest
    full WHERE FOLDER the disk of FOLDER is full from the call of WHERE (module:function) on
    hub RANK          weights of timm's hub are this machine's own random ones, and this rank's are others
    gate FILE         wait for FILE before anything else, everything loaded
"""

from __future__ import annotations

import os
import pkgutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn


def run_rank(argv: list[str], rank: int, ranks: int, port: int, stderr: str, fault: str) -> None:
    """Be this rank of so many; never returns."""
    sys.stderr = open(stderr, "w", buffering=1)  # noqa: SIM115 (it stays open to the end)
    os.dup2(sys.stderr.fileno(), 2)
    os.environ.update(OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    if ranks > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    torch.set_num_threads(1)
    from toolkit import cli

    cli.HEAD_START = 0.1  # no launcher waits to end the others
    install(fault, rank)
    cli.run(argv)


def install(fault: str, rank: int) -> None:
    """Make this process misbehave."""
    for one in filter(None, fault.split(";")):
        name, *arguments = one.split()
        FAULTS[name](rank, *arguments)


def _nan(rank: int, sample_id: str) -> None:
    from toolkit.update import Updater

    losses = Updater.losses

    def poisoned(self: Any, model: nn.Module, batch: Any, epoch: int) -> Any:
        ids = [self.parts.train.sample_id(i) for i in batch.share.indices]
        rows = [row for row, found in enumerate(ids) if sample_id in (found, "all")]

        def spoil(module: nn.Module, inputs: Any) -> Any:
            pixels = inputs[0].clone()
            pixels[rows] = float("nan")
            return (pixels,)

        handle = self.plain_model.register_forward_pre_hook(spoil)
        try:
            return losses(self, model, batch, epoch)
        finally:
            handle.remove()

    Updater.losses = poisoned  # type: ignore[method-assign]


def _nan_gradient(rank: int, number: str, victim: str) -> None:
    from toolkit.update import Updater

    call = Updater.__call__

    def spoiling(self: Any, batches: Iterator[Any], epoch: int, step: int, updates: int, lr: float) -> Any:
        if (epoch, step, rank) != (0, int(number), int(victim)):
            return call(self, batches, epoch, step, updates, lr)
        weight = next(p for p in self.plain_model.parameters() if p.requires_grad)

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            spoilt = gradient.clone()
            spoilt.view(-1)[0] = float("nan")
            return spoilt

        handle = weight.register_hook(spoil)
        try:
            return call(self, batches, epoch, step, updates, lr)
        finally:
            handle.remove()

    Updater.__call__ = spoiling  # type: ignore[method-assign]


def _blind(rank: int) -> None:
    import toolkit.nonfinite

    toolkit.nonfinite._size = lambda tensors, like: torch.zeros_like(like)


def _leave_out(rank: int, sample_id: str) -> None:
    from toolkit.update import Updater

    call = Updater.__call__

    def without(self: Any, batches: Iterator[Any], epoch: int, step: int, updates: int, lr: float) -> Any:
        ids = [self.parts.train.sample_id(i) for i in self.plan.global_indices(epoch, step)]
        if sample_id not in ids:
            return call(self, batches, epoch, step, updates, lr)
        for _ in range(self.accumulation):
            next(batches)
        return torch.zeros(2), 0

    Updater.__call__ = without  # type: ignore[method-assign]


def _after_update(number: str, do: Callable[[], object]) -> None:
    from toolkit.trainer import Trainer

    update = Trainer._update

    def watched(self: Any, batches: Any) -> Any:
        result = update(self, batches)
        if self.state.updates == int(number):
            do()
        return result

    Trainer._update = watched  # type: ignore[method-assign]


def _kill(rank: int, victim: str, number: str) -> None:
    if rank == int(victim):
        _after_update(number, lambda: os.kill(os.getpid(), signal.SIGKILL))


def _term(rank: int, victim: str, number: str) -> None:
    if rank == int(victim):
        _after_update(number, lambda: os.kill(os.getpid(), signal.SIGTERM))


def _hold(rank: int, number: str, file: str) -> None:
    def wait() -> None:
        Path(f"{file}.{rank}").touch()
        while True:
            time.sleep(60)

    _after_update(number, wait)


def _kill_write(rank: int, size: str, number: str) -> None:
    import toolkit.checkpoint

    save = torch.save

    class Deadly:
        def __init__(self, stream: Any) -> None:
            self.stream, self.left = stream, int(size)

        def write(self, data: Any) -> int:
            part = bytes(data)[: self.left]
            self.left -= len(part)
            written = self.stream.write(part)
            if not self.left:
                self.stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return written

        def flush(self) -> None:
            self.stream.flush()

    def saving(tensors: Any, stream: Any) -> None:
        doomed = f"step-{int(number):08d}" in stream.name
        target: Any = Deadly(stream) if doomed else stream
        save(tensors, target)

    toolkit.checkpoint.torch.save = saving  # type: ignore[assignment]


def _kill_rename(rank: int, number: str) -> None:
    import toolkit.checkpoint

    replace = os.replace

    def renaming(source: Any, target: Any) -> None:
        if Path(target).name == f"step-{int(number):08d}":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    toolkit.checkpoint.os.replace = renaming  # type: ignore[assignment]


def _oom(rank: int, where: str, rows: str) -> None:
    import toolkit.parts

    build = toolkit.parts.build_model

    def limited(*arguments: Any, **options: Any) -> nn.Module:
        model = build(*arguments, **options)

        def check(module: nn.Module, inputs: Any) -> None:
            if model.training == (where == "training") and len(inputs[0]) > int(rows):
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of which "
                    "1.12 GiB is free."
                )

        # The first layer, which is run however the model is called.
        next(m for m in model.modules() if not list(m.children())).register_forward_pre_hook(check)
        return model

    toolkit.parts.build_model = limited


def _memory(rank: int, mebibytes: str) -> None:
    import resource

    import psutil

    limit = psutil.Process().memory_info().vms + int(mebibytes) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _full(rank: int, where: str, folder: str) -> None:
    from fault_tools import Disk

    path, _, name = where.replace(":", ".").rpartition(".")
    owner = pkgutil.resolve_name(path)
    real = getattr(owner, name)

    def in_vain(*arguments: Any, **options: Any) -> Any:
        for log in Path(folder).rglob("*.csv"):  # up to the end of a page, which is what a tmpfs counts
            with open(log, "a") as stream:
                stream.write("\n" * (-log.stat().st_size % 4096))
        Disk(Path(folder)).fill()
        return real(*arguments, **options)

    setattr(owner, name, in_vain)


def _hub(rank: int, other: str) -> None:
    import toolkit.parts

    build = toolkit.parts.build_model

    def from_hub(*arguments: Any, pretrained: bool, **options: Any) -> nn.Module:
        model = build(*arguments, pretrained=False, **options)
        if pretrained and rank == int(other):
            with torch.no_grad():
                next(model.parameters()).add_(1)
        return model

    toolkit.parts.build_model = from_hub  # type: ignore[assignment]


def _gate(rank: int, file: str) -> None:
    import toolkit.train  # noqa: F401 (so that nothing is left to be loaded)

    Path(f"{file}.{os.getpid()}").touch()
    while not Path(file).exists():
        time.sleep(0.001)


FAULTS: dict[str, Callable[..., None]] = {
    "nan": _nan,
    "nan-gradient": _nan_gradient,
    "blind": _blind,
    "leave-out": _leave_out,
    "kill": _kill,
    "term": _term,
    "hold": _hold,
    "kill-write": _kill_write,
    "kill-rename": _kill_rename,
    "oom": _oom,
    "memory": _memory,
    "full": _full,
    "hub": _hub,
    "gate": _gate,
}
