"""No part of an update waits for the device, or for a copy to it: seen on a device that answers nothing.

Torch's "meta" device has shapes and no values. Asking it for one raises, where a GPU would have its host wait; and what
is copied to it from the host is seen as on a GPU. Where there is a GPU, its own watch is set too.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode
from train_tools import TINY_VIT, drawn_batches, make_updater, tiny_config

from shards.dataset.manifest import Manifest
from toolkit.data.loader.loader import Batch
from toolkit.data.sampling.plan import TrainPlan
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.distributed.collectives import make_accelerator
from toolkit.training.nonfinite import Guard
from toolkit.training.optim import build_optimizer
from toolkit.training.setup import build_setup
from toolkit.training.train_step import TrainStep
from toolkit.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

ELSEWHERE = torch.device("meta")
#: As much of a step at once as goes together.
RECIPE = [
    "--model.head=ensemble", "--model.members=3", "--augment.randaugment=2", "--augment.erase=0.5",
    "--augment.brightness=0.3", "--augment.contrast=0.3", "--augment.saturation=0.3", "--augment.mixup=0.5",
    "--augment.cutmix=0.5", "--loss.name=balanced", "--train.ema=0.9", "--optim.clip_norm=1", "--optim.name=adamw",
]  # fmt: skip
#: Without a GPU no memory is pinned.
ELSEWHERE_HAS_NONE = not torch.cuda.is_available()
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Copies(TorchDispatchMode):
    """Notes where memory of the host is copied to a device by other means than transfer.to_device, which pins it."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self.proper = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in COPIES:
            source = args[0] if func is COPIES[0] else args[1]
            if source.device.type == "cpu" and result.device.type != "cpu":
                self._note(source)
        return result

    def _note(self, source: torch.Tensor) -> None:
        frame: FrameType | None = sys._getframe(2)
        own = []
        while frame is not None:
            own.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}:{frame.f_lineno}")
            frame = frame.f_back
        pinned = source.is_pinned() or ELSEWHERE_HAS_NONE
        if pinned and any(place.startswith(("transfer.py:to_device", "buffers.py:start_copy")) for place in own):
            self.proper += 1
        else:
            self.places.append(" < ".join(own[:4]))


class There:
    """An accelerator on the device that answers nothing."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator, self.device = accelerator, ELSEWHERE

    def __getattr__(self, name: str) -> Any:
        return getattr(self.accelerator, name)


def moved(train_step: TrainStep) -> TrainStep:
    """``updater`` with all it works on there, and a guard."""
    setup = train_step.setup
    train_step.accelerator = There(train_step.accelerator)
    setup.model = setup.model.to(ELSEWHERE)
    setup.criterion = setup.criterion.to(ELSEWHERE)
    setup.optimizer = AcceleratedOptimizer(build_optimizer(setup.model, setup.config.optim))
    if setup.ema is not None:
        setup.ema.module.to(ELSEWHERE)
    train_step.guard = Guard(train_step.accelerator, "stop", setup.train.sample_id)
    return train_step


def batches_there(train_step: TrainStep, plan: TrainPlan, step: int) -> Iterator[Batch]:
    for batch in drawn_batches(train_step, plan, 0, step):
        yield Batch(batch.images.to(ELSEWHERE), batch.micro_batch, {})


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast knows nothing of that device, and is there to be left alone."""
    real = torch.autocast

    def autocast(device: str, *arguments: Any, **options: Any) -> Any:
        return contextlib.nullcontext() if device == ELSEWHERE.type else real(device, *arguments, **options)

    monkeypatch.setattr(torch, "autocast", autocast)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    "options",
    [
        [],  # BatchNorm, dropout, a head of three layers
        [*TINY_VIT, "--model.head=levels"],
        ["--model.head=ensemble", "--model.members=3", "--model.hidden=[8]"],
        [*TINY_VIT, "--augment.brightness=0.5", "--augment.contrast=0.5", "--augment.saturation=0.5"],
        [*TINY_VIT, "--augment.randaugment=9", "--augment.erase=1"],
        [*TINY_VIT, "--augment.mixup=0.5", "--augment.cutmix=0.5"],
        [*TINY_VIT, "--model.drop_path=0.5", "--train.ema=0.9", "--optim.clip_norm=1", "--train.precision=bf16"],
        *([*TINY_VIT, f"--loss.name={name}"] for name in ("weighted", "focal", "asl", "balanced")),
        *([*TINY_VIT, f"--optim.name={name}"] for name in ("adamw", "momentum", "lamb")),
    ],
    ids=lambda options: " ".join(word.split(".")[-1] for word in options) or "resnet",
)  # fmt: skip
def test_an_update_asks_the_device_for_nothing(options: list[str], shard_set: Path, tmp_path: Path):
    train_step, plan = make_updater(shard_set, tmp_path, *options, accumulation=2)
    train_step = moved(train_step)
    batches = [list(batches_there(train_step, plan, step)) for step in range(3)]
    train_step(iter(batches[0]), 0, 0, 1, 0.01)  # what stays on the device comes there once
    with Copies() as seen:
        for step in (1, 2):
            loss, count = train_step(iter(batches[step]), 0, step, step + 1, 0.01)
    assert count and loss.device == ELSEWHERE
    assert not seen.places, seen.places
    assert seen.proper >= 2 * 2  # targets with valid rows, of each micro-batch


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_on_a_gpu_waits_nowhere(precision: str, shard_set: Path, tmp_path: Path):
    """From the loader to the moving average; but for fp16's own look at overflows."""
    options = [*RECIPE, f"--train.precision={precision}", "--train.epochs=3", "--train.log_steps=99"]
    config = tiny_config(*options)
    manifest = Manifest.read(shard_set)
    readers = [ShardReader.of_split(shard_set, split, manifest) for split in ("train", "val")]
    AcceleratorState._reset_state(reset_partial_state=True)  # other tests' were on the CPU
    accelerator = make_accelerator(precision)
    setup = build_setup(accelerator, config, manifest, readers, tmp_path, None)
    setup.accumulation = 2
    trainer = Trainer(setup)
    trainer.setup.freezing.training_mode(trainer.setup.model, 0)
    try:
        for epoch in range(2):  # in the first, kernels are chosen, memory and constants are found
            trainer.state.epoch, trainer.state.step = epoch, 0
            with contextlib.closing(trainer.feed.batches(epoch, 0)) as batches:
                for _ in range(trainer.plan.steps_per_epoch):
                    strict = epoch == 1 and precision != "fp16"
                    torch.cuda.set_sync_debug_mode("error" if strict else "default")
                    with Copies() as seen:
                        trainer._update(batches)
                    assert epoch == 0 or not seen.places, seen.places
    finally:
        torch.cuda.set_sync_debug_mode("default")
        trainer.feed.close()
        trainer.stop.restore()
        AcceleratorState._reset_state(reset_partial_state=True)
