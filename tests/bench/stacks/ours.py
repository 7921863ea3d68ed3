"""poster-toolkit's ShardLoader. ``cpu``: its batches; ``device``: what it leaves to the device is not done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from protocol import Stack, Task, serve

import toolkit
from toolkit.data.transforms.batch_transform import train_transforms

WORK = {
    "device": "uint8 decoded up to the crop's last row, packed; crop, resize and flip left to the device",
    "cpu": "uint8, antialiased; rows below the crop are not decoded",
}


def prepare(task: Task) -> Stack:
    """Open the shards and start the decoding threads."""
    transform = toolkit.TrainTransform(
        image_size=task.size,
        crop_scale=task.scale,
        crop_ratio=task.ratio,
        flip=task.flip,
        geometry="device" if task.variant == "device" else "cpu",
    )
    loader = toolkit.ShardLoader(
        task.shards, split="train", batch_size=task.batch, seed=task.seed, transform=transform, threads=task.cores
    )

    def batches(number: int) -> Iterator[torch.Tensor]:
        loader.set_epoch(number)
        for batch in loader:
            yield batch.images

    def packed(number: int) -> Iterator[int]:
        # Without a device, an iteration of the loader would crop and resize here; its engine ends at the packed buffer.
        transforms = train_transforms(loader.reader, transform, task.seed, number, torch.device("cpu"))
        micro_batches = loader.plan.rest_of_epoch(number, 0, 1)
        with contextlib.closing(loader.engine.decoded(micro_batches, transforms, number)) as works:
            for work in works:
                work.buffer.on_device(work.transform.size)
                yield len(work.indices)

    epoch = packed if task.variant == "device" else batches
    return Stack(epoch, WORK[task.variant], ("simplejpeg", "torch"))


if __name__ == "__main__":
    serve(prepare)
