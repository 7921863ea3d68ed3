"""Several trainings one after the other in the processes of one launch, each seen by a spy; see ``Run``.

accelerate launch ... probe_fsdp.py SHARDS PLAN.json

Each rank leaves a line of OUT/rank<R>.jsonl per run: exit status or error, the samples of each update, and the bytes
that it holds of weights and of the optimiser's state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch.nn.parallel import DistributedDataParallel
from train_tools import tiny_config

import toolkit.training.run as entry
from shards.errors import UserError
from toolkit.distributed.fsdp import local, shard_model
from toolkit.distributed.launch import leave
from toolkit.models import wrapping
from toolkit.training import setup as setup
from toolkit.training.nonfinite import Guard
from toolkit.training.trainer import Trainer


@dataclasses.dataclass
class Run:
    """One training of a plan."""

    out: str
    options: list[str]
    port: int
    """Where the processes meet: one of its own for each run."""
    resume: bool = False
    term: int = 0
    """Update after which rank 0 sends itself SIGTERM, and both stop after the next one; 0 none."""
    bad_loss: int = 0
    """Update in which a loss of rank 1 is not finite; 0 none."""
    bad_gradient: int = 0
    """Update in which an element of rank 1's own part of the gradient is not finite; 0 none."""
    stray: bool = False
    """Whether rank 1 starts with other weights, as from another file."""
    contiguous: bool = False
    """Whether whole weights lie in memory as spread ones do: another layout rounds otherwise."""
    backend: str = ""
    """What stands in for the compiler of train.compile, whose own takes a minute; all else of torch.compile is real."""
    plain_ddp: bool = False
    """Whether DDP is made with torch's own settings."""


class PlainDDP(DistributedDataParallel):
    """DDP that takes no settings."""

    def __init__(self, module: torch.nn.Module, **settings: Any) -> None:
        super().__init__(module)


def spied(run: Run) -> tuple[type[Trainer], dict[str, Any]]:
    """A Trainer that does what ``run`` asks, and what it will have seen."""
    seen: dict[str, Any] = {"samples": {}}

    class SpiedTrainer(Trainer):
        def _update(self, batches: Any) -> Any:
            rank, number = self.accelerator.process_index, self.state.updates + 1
            used: list[str] = []

            def watched() -> Any:
                for batch in batches:
                    used.extend(self.setup.train.key(i) for i in batch.micro_batch.indices[batch.micro_batch.valid])
                    yield batch

            with contextlib.ExitStack() as spoilt:
                if rank == 1 and number == run.bad_loss:
                    hook = self.train_step.plain_model.register_forward_pre_hook(_spoil_pixels)
                    spoilt.callback(hook.remove)
                if rank == 1 and number == run.bad_gradient:
                    spoilt.enter_context(_spoilt_gradient(self.guard))
                result = super()._update(watched())
            seen["samples"][number] = used
            wrapper = self.setup.model
            if isinstance(wrapper, DistributedDataParallel):
                seen["ddp"] = {name: getattr(wrapper, name) for name in ("gradient_as_bucket_view", "static_graph")}
            seen["parameters"] = sum(_bytes(p) for p in self.setup.model.parameters())
            states = self.setup.optimizer.state.values()
            seen["optimizer"] = sum(_bytes(t) for state in states for t in state.values() if t.dim())
            if number == run.term and rank == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return result

    return SpiedTrainer, seen


def _stray(run: Run, accelerator: Accelerator, model: torch.nn.Module) -> None:
    if run.stray and accelerator.process_index == 1:
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(1)
    shard_model(accelerator, model)


def _spoil_pixels(module: Any, inputs: Any) -> Any:
    pixels = inputs[0].clone()
    pixels[0] = torch.nan
    return (pixels,)


@contextlib.contextmanager
def _spoilt_gradient(guard: Guard) -> Iterator[None]:
    """An element of this rank's own part of the gradient is not finite when the guard looks."""
    allow = guard.allow

    def spoil(parameters: Sequence[torch.nn.Parameter]) -> bool:
        own = (local(p.grad) for p in parameters if p.grad is not None)
        next(part for part in own if part.numel()).view(-1)[0] = torch.inf
        return allow(parameters)

    guard.allow = spoil  # type: ignore[method-assign]
    yield
    guard.allow = allow  # type: ignore[method-assign]


def _bytes(tensor: torch.Tensor) -> int:
    return local(tensor).numel() * tensor.element_size()


def main() -> None:
    shards, plan = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    # Each run meets at a store of its own; the launcher's has the names of those before.
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    torch.set_num_threads(1)
    compiler = torch.compile
    for run in [Run(**facts) for facts in plan]:
        os.environ["MASTER_PORT"] = str(run.port)
        torch.compile = partial(compiler, backend=run.backend) if run.backend else compiler
        wrapping.DistributedDataParallel = PlainDDP if run.plain_ddp else DistributedDataParallel  # type: ignore[assignment, misc]
        setup.LAYOUT = torch.contiguous_format if run.contiguous else torch.channels_last
        setup.shard_model = partial(_stray, run)
        entry.Trainer, seen = spied(run)  # type: ignore[misc]
        out = Path(run.out)
        try:
            seen["status"] = entry.train(tiny_config(*run.options), shards, out, resume=run.resume)
        except UserError as error:
            seen["status"] = f"error: {error}"
            leave()
        out.mkdir(parents=True, exist_ok=True)
        with open(out / f"rank{os.environ['RANK']}.jsonl", "a") as stream:
            stream.write(json.dumps(seen) + "\n")
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


if __name__ == "__main__":
    main()
