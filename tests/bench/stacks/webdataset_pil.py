"""webdataset as its documentation has it: tars, a shuffle buffer, Pillow, torchvision, torch's DataLoader."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torchvision.transforms as T
import webdataset as wds
from protocol import Stack, Task, serve

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepare(task: Task) -> Stack:
    """A WebLoader with a worker per core."""
    if task.variant == "float":
        tail, work = [T.ToTensor(), T.Normalize(MEAN, STD)], "float32 normalised, antialiased"
    else:
        tail, work = [T.PILToTensor()], "uint8, antialiased"
    crop = T.RandomResizedCrop(task.size, scale=task.scale, ratio=task.ratio)
    transform = T.Compose([crop, T.RandomHorizontalFlip(task.flip), *tail])
    dataset = (
        wds.WebDataset(task.tars, shardshuffle=len(task.tars), workersplitter=wds.split_by_worker, seed=task.seed)
        .shuffle(500)
        .decode("pil")
        .to_tuple("jpg")
        .map_tuple(transform)
        .batched(task.batch, partial=True)
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=task.cores, persistent_workers=True, prefetch_factor=4
    )

    def epoch(number: int) -> Iterator[torch.Tensor]:
        for (images,) in loader:
            yield images

    return Stack(epoch, work, ("webdataset", "torch", "torchvision", "pillow"))


if __name__ == "__main__":
    serve(prepare)
