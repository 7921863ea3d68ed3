"""The model's forward pass alone: the same normalised batch, resident on the device, again and again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from protocol import Stack, Task, serve

from toolkit.device.defaults import autocast_dtype
from toolkit.distributed.collectives import make_accelerator
from toolkit.model_folder.folder import load_model_folder


def prepare(task: Task) -> Stack:
    """As many passes as the posters make, the last one shorter."""
    accelerator = make_accelerator(task.precision)
    folder = load_model_folder(Path(task.model))
    model = folder.model.to(accelerator.device).to(memory_format=torch.channels_last)
    dtype = autocast_dtype(accelerator)
    batch = torch.rand(task.batch, 3, task.size, task.size, device=accelerator.device, dtype=dtype)
    batch = batch.contiguous(memory_format=torch.channels_last)
    network = torch.compile(model) if task.compile else model

    @torch.inference_mode()
    def epoch(number: int) -> Iterator[int]:
        for start in range(0, task.samples, task.batch):
            rows = min(task.batch, task.samples - start)
            with accelerator.autocast():
                network(batch if task.compile else batch[:rows])  # each shape would be compiled anew
            if start + rows == task.samples and accelerator.device.type == "cuda":
                torch.cuda.synchronize()
            yield rows

    return Stack(epoch, "nothing but the passes", ("torch",))


if __name__ == "__main__":
    serve(prepare)
