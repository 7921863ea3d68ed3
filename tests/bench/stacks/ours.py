"""poster-toolkit's loader. ``device``: up to the packed ring, geometry is the device's work; ``cpu``: whole batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from protocol import Stack, Task, serve

from toolkit.config.schema import DataConfig
from toolkit.data.loader.loader import Loader
from toolkit.data.sampling.plan import TrainPlan
from toolkit.data.sampling.shuffle import GlobalOrder
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import train_transforms

WORK = {
    "device": "uint8 decoded up to the crop's last row, packed; crop, resize and flip left to the device",
    "cpu": "uint8, antialiased; rows below the crop are not decoded",
}


def prepare(task: Task) -> Stack:
    """Open the shards and start the decoding threads."""
    reader = ShardReader.of_split(Path(task.shards), "train")
    config = DataConfig(
        image_size=task.size,
        crop_scale=task.scale,
        crop_ratio=task.ratio,
        flip=task.flip,
        geometry="device" if task.variant == "device" else "cpu",
    )
    plan = TrainPlan(GlobalOrder(len(reader), task.seed), task.batch)
    loader = Loader(reader, task.cores, config.prefetch)

    def epoch(number: int) -> Iterator[torch.Tensor | int]:
        transforms = train_transforms(reader, config, task.seed, number, torch.device("cpu"))
        with contextlib.closing(loader.decoded(plan.rest_of_epoch(number, 0, 1), transforms, number)) as works:
            for work in works:
                slot = work.buffer.on_device(work.transform.size)
                yield len(work.indices) if task.variant == "device" else work.transform.images(slot)

    return Stack(epoch, WORK[task.variant], ("simplejpeg", "torch"))


if __name__ == "__main__":
    serve(prepare)
