"""``posters train`` as one rank of a run, with a fault.

Faults, as "NAME ARGUMENTS", several with ; between them:
    nan ID            the pixels of the sample with this id become NaN before the network sees them; ID may be "all"
    nan-gradient STEP RANK   this rank's gradient of update STEP (from 0; or "all") of the first epoch is NaN in one
                      element
    fp16 SCALE        half precision with a gradient scaler from that scale on, as on a GPU
    blind             gradients are not looked at, as under a gradient scaler, which needs a GPU
    leave-out-first COUNT    so many updates of the first epoch are not made, in the same way
    most-skipped COUNT   so many updates of an epoch may be skipped
    leave-out ID      updates with this sample are not made: their batches are read, nothing else happens
    kill RANK UPDATE  this rank kills itself (SIGKILL) after that update
    term RANK UPDATE  this rank is told to stop (SIGTERM) there
    hold UPDATE FILE  every rank touches FILE.RANK after that update and waits for ever
    kill-write BYTES UPDATE   the process kills itself when so many bytes of that update's state.pt are written
    kill-rename UPDATE        the process kills itself when that checkpoint's files are whole, before they have its name
    kill-after WHERE          the process kills itself when WHERE (module:function) has been called
    kill-between-models       the process kills itself when RUN/model is set aside and the new one has no name
    oom WHERE ROWS    passes of over ROWS rows fail as CUDA's allocator does; WHERE: training, validation
    memory MIB        the process gets so much more address space than it has, and the system refuses the rest
    full WHERE FOLDER the disk of FOLDER is full from the call of WHERE (module:function) on
    hub RANK          weights of timm's hub are this machine's own random ones, and this rank's are others
    read ERRNO RANK FROM TIMES NAME   this rank's reads of the file NAME fail with this error (EIO, ...; "end": its end;
                      "short": a part comes) from its read number FROM (from 0) on, so many times or "always"
    gate FILE         wait for FILE before anything else, everything loaded
"""

from __future__ import annotations

import os
import pkgutil
import signal
import sys
import threading
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
    from toolkit.cli import main as cli

    cli.PRINT_DELAY = 0.1  # no launcher waits to end the others
    install(fault, rank)
    cli.run(argv)


def install(fault: str, rank: int) -> None:
    """Make this process misbehave."""
    for one in filter(None, fault.split(";")):
        name, *arguments = one.split()
        FAULTS[name](rank, *arguments)


def _nan(rank: int, sample_id: str) -> None:
    from toolkit.training.train_step import TrainStep

    losses = TrainStep.losses

    def poisoned(self: Any, model: nn.Module, batch: Any, epoch: int) -> Any:
        ids = [self.setup.train.sample_id(i) for i in batch.micro_batch.indices]
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

    TrainStep.losses = poisoned  # type: ignore[method-assign]


def _nan_gradient(rank: int, number: str, victim: str) -> None:
    from toolkit.training.train_step import TrainStep

    call = TrainStep.__call__

    def spoiling(self: Any, batches: Iterator[Any], epoch: int, step: int, updates: int, lr: float) -> Any:
        if (number != "all" and (epoch, step) != (0, int(number))) or rank != int(victim):
            return call(self, batches, epoch, step, updates, lr)
        weight = next(p for p in self.plain_model.parameters() if p.requires_grad)

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            spoilt = gradient.clone()
            spoilt[(0,) * spoilt.dim()] = float("nan")
            return spoilt

        handle = weight.register_hook(spoil)
        try:
            return call(self, batches, epoch, step, updates, lr)
        finally:
            handle.remove()

    TrainStep.__call__ = spoiling  # type: ignore[method-assign]


def _fp16(rank: int, scale: str) -> None:
    import toolkit.training.run

    make = toolkit.training.run.make_accelerator

    def scaled(*arguments: Any, **options: Any) -> Any:
        accelerator = make(*arguments, **options)
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=float(scale))
        return accelerator

    toolkit.training.run.make_accelerator = scaled


def _blind(rank: int) -> None:
    import toolkit.training.nonfinite

    toolkit.training.nonfinite._norm = lambda tensors, device: torch.zeros((), device=device)


def _leave_out(rank: int, sample_id: str) -> None:
    def chosen(train_step: Any, epoch: int, step: int) -> bool:
        indices = train_step.plan.keys(epoch, step)
        return sample_id in [train_step.setup.train.sample_id(i) for i in indices]

    _not_made(chosen)


def _leave_out_first(rank: int, count: str) -> None:
    _not_made(lambda _, epoch, step: epoch == 0 and step < int(count))


def _most_skipped(rank: int, count: str) -> None:
    import toolkit.training.nonfinite

    toolkit.training.nonfinite.MAX_SKIPPED = int(count)


def _not_made(chosen: Callable[[Any, int, int], bool]) -> None:
    from toolkit.training.train_step import TrainStep

    call = TrainStep.__call__

    def without(self: Any, batches: Iterator[Any], epoch: int, step: int, updates: int, lr: float) -> Any:
        if not chosen(self, epoch, step):
            return call(self, batches, epoch, step, updates, lr)
        for _ in range(self.accumulation):
            next(batches)
        return torch.zeros(2), 0

    TrainStep.__call__ = without  # type: ignore[method-assign]


def _after_update(number: str, do: Callable[[], object]) -> None:
    from toolkit.training.trainer import Trainer

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
    import toolkit.training.checkpoints.checkpoint

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

    toolkit.training.checkpoints.checkpoint.torch.save = saving  # type: ignore[assignment]


def _kill_rename(rank: int, number: str) -> None:
    import toolkit.training.checkpoints.checkpoint

    replace = os.replace

    def renaming(source: Any, target: Any) -> None:
        if Path(target).name == f"step-{int(number):08d}":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    toolkit.training.checkpoints.checkpoint.os.replace = renaming  # type: ignore[assignment]


def _kill_after(rank: int, where: str) -> None:
    path, _, name = where.replace(":", ".").rpartition(".")
    owner = pkgutil.resolve_name(path)
    real = getattr(owner, name)

    def last(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, last)


def _kill_between_models(rank: int) -> None:
    import toolkit.model_folder.folder

    replace = os.replace

    def renaming(source: Any, target: Any) -> None:
        replace(source, target)
        if Path(target).name == "model.old":
            os.kill(os.getpid(), signal.SIGKILL)

    toolkit.model_folder.folder.os.replace = renaming  # type: ignore[assignment]


def _oom(rank: int, where: str, rows: str) -> None:
    import toolkit.training.setup

    build = toolkit.training.setup.build_model

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

    toolkit.training.setup.build_model = limited


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
    import toolkit.training.setup

    build = toolkit.training.setup.build_model

    def from_hub(*arguments: Any, pretrained: bool, **options: Any) -> nn.Module:
        model = build(*arguments, pretrained=False, **options)
        if pretrained and rank == int(other):
            with torch.no_grad():
                next(model.parameters()).add_(1)
        return model

    toolkit.training.setup.build_model = from_hub  # type: ignore[assignment]


def _read(rank: int, error: str, victim: str, first: str, times: str, name: str) -> None:
    import errno

    import shards.storage.retry

    if rank != int(victim):
        return
    shards.storage.retry.LONGEST = 1.0
    read, counts, lock = os.preadv, [0, 0], threading.Lock()

    def failing(file: int, buffers: Any, offset: int) -> int:
        if os.path.basename(os.readlink(f"/proc/self/fd/{file}")) == name:
            with lock:
                counts[0] += 1
                fails = counts[0] > int(first) and (times == "always" or counts[1] < int(times))
                counts[1] += fails
            if fails and error == "end":
                return 0
            if fails and error == "short":
                return read(file, [buffers[0][: max(1, len(buffers[0]) // 3)]], offset)
            if fails:
                raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))
        return read(file, buffers, offset)

    os.preadv = failing  # type: ignore[assignment]


def _gate(rank: int, file: str) -> None:
    import toolkit.training.run  # noqa: F401 (so that nothing is left to be loaded)

    Path(f"{file}.{os.getpid()}").touch()
    while not Path(file).exists():
        time.sleep(0.001)


FAULTS: dict[str, Callable[..., None]] = {
    "nan": _nan,
    "nan-gradient": _nan_gradient,
    "fp16": _fp16,
    "blind": _blind,
    "leave-out": _leave_out,
    "most-skipped": _most_skipped,
    "leave-out-first": _leave_out_first,
    "kill": _kill,
    "term": _term,
    "hold": _hold,
    "kill-write": _kill_write,
    "kill-rename": _kill_rename,
    "kill-after": _kill_after,
    "kill-between-models": _kill_between_models,
    "oom": _oom,
    "memory": _memory,
    "full": _full,
    "hub": _hub,
    "read": _read,
    "gate": _gate,
}
