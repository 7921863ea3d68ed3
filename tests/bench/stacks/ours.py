"""poster-toolkit's ShardLoader. ``cpu``, ``float``: its batches. ``device``: without the part that the device does.

``engine`` gives the batches of ``float`` without the class: the threads, then the normalisation, as a training does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from protocol import Stack, Task, serve

import toolkit
from toolkit.data.loader.loader import targets_of
from toolkit.data.transforms.batch_transform import train_transforms
from toolkit.data.transforms.preprocessing import Preprocessing

WORK = {
    "device": "uint8 decoded up to the crop's last row, packed; crop, resize and flip left to the device",
    "cpu": "uint8, antialiased; rows below the crop are not decoded",
    "float": "as cpu, normalised to float32, with targets",
    "engine": "as float, but without the class ShardLoader",
}


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepare(task: Task) -> Stack:
    """Open the shards and start the decoding threads."""
    normal = task.variant == "float"
    transform = toolkit.TrainTransform(
        mean=MEAN if normal else None,
        std=STD if normal else None,
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

    def engine(number: int) -> Iterator[torch.Tensor]:
        transforms = train_transforms(loader.reader, transform, task.seed, number, torch.device("cpu"))
        micro_batches = loader.plan.rest_of_epoch(number, 0, 1)
        with contextlib.closing(loader.engine.batches(micro_batches, transforms, number)) as found:
            for batch in found:
                targets_of(batch.micro_batch, loader.reader)
                yield preprocessing.normalize(batch.images)

    preprocessing = Preprocessing(task.size, 1.0, MEAN, STD)
    epoch = {"device": packed, "engine": engine}.get(task.variant, batches)
    return Stack(epoch, WORK[task.variant], ("simplejpeg", "torch"))


if __name__ == "__main__":
    serve(prepare)
