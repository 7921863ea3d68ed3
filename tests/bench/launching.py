"""A consumer that launches like one of a GPU, and decoders that sleep, for decode_processes.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from timm.models.resnet import Bottleneck, ResNet
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.transforms import jpeg
from toolkit.data.transforms.batch_transform import BatchTransform, Transforms


class Counted(TorchDispatchMode):
    """Count operations."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def operations(model: torch.nn.Module) -> int:
    """Number of operations of a forward pass."""
    with torch.inference_mode(), Counted() as counted:
        model.eval()(torch.zeros(1, 3, 32, 32))
    return counted.count


def consumer() -> Callable[[], None]:
    """The launches of a forward pass."""
    model = ResNet(Bottleneck, (3, 4, 6, 3), num_classes=19, channels=(4, 4, 4, 4), stem_width=4)  # type: ignore[arg-type] # a class
    count, real = operations(model), operations(timm.create_model("resnet50"))
    if count != real:
        raise RuntimeError(f"the consumer has {count} operations, but a ResNet50 has {real}")
    image = torch.zeros(1, 3, 32, 32)

    def launch() -> None:
        with torch.inference_mode():
            model(image)

    return launch


@dataclass(frozen=True)
class Sleeping:
    """Transforms of threads whose decoder sleeps, so that only what holds the lock needs a core."""

    inner: Transforms
    seconds: float

    def __call__(self, micro_batch: MicroBatch) -> BatchTransform:
        setattr(jpeg, "simplejpeg", self)  # noqa: B010 # the module calls this object's decode_jpeg
        return self.inner(micro_batch)

    def decode_jpeg(self, data: Any, colours: str, *, min_height: int, min_width: int, buffer: Any, **_: Any) -> Any:
        """A decoder without pixels."""
        time.sleep(self.seconds)
        return buffer.reshape(min_height, min_width, -1)


class Nothing:
    """A source of empty files, for processes that sleep."""

    def __len__(self) -> int:
        return 1 << 20

    def read(self, index: int) -> memoryview:
        return memoryview(b"")

    def where(self, index: int) -> str:
        return str(index)


@dataclass(frozen=True)
class Asleep:
    """Transforms of processes: the first row of a task takes the time of all its rows."""

    seconds: float
    count: int = 0
    size: int = 1

    def __call__(self, micro_batch: MicroBatch) -> Any:
        return Asleep(self.seconds, len(micro_batch.indices))

    def start(self, row: int) -> int:
        return 0

    def row(self, row: int, data: memoryview, buffer: np.ndarray) -> None:
        if row == 0:
            time.sleep(self.seconds * self.count)
