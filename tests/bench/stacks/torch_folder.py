"""JPEG files under torch's DataLoader with a worker per core, torchvision's tensor transforms, three decoders.

https://docs.pytorch.org/vision/0.29/transforms.html recommends tensors, uint8 and v2;
https://meta-pytorch.org/torchcodec/stable/ is where the deprecated decoders of torchvision.io send their users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

import torch
from protocol import Stack, Task, jpeg_files, serve
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

Decode = Callable[[str], torch.Tensor]


def decoder(variant: str) -> Decode:
    """The function from a path to (3, height, width) uint8."""
    if variant == "torchcodec":
        return import_module("torchcodec.decoders").decode_jpeg
    io = import_module("torchvision.io")
    if variant == "decode_image":
        return lambda path: io.decode_image(path, mode="RGB")
    return lambda path: io.decode_jpeg(io.read_file(path), mode="RGB")


class Posters(Dataset):
    """The files, decoded and augmented in the workers."""

    def __init__(self, task: Task) -> None:
        crop = v2.RandomResizedCrop(task.size, scale=task.scale, ratio=task.ratio, antialias=True)
        self.transform = v2.Compose([crop, v2.RandomHorizontalFlip(task.flip)])
        self.files = [str(path) for path in jpeg_files(task)]
        self.decode = decoder(task.variant)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.decode(self.files[index]))


def prepare(task: Task) -> Stack:
    """A DataLoader whose workers stay alive."""
    loader = DataLoader(
        Posters(task), batch_size=task.batch, shuffle=True, num_workers=task.cores, persistent_workers=True
    )

    def epoch(number: int) -> Iterator[torch.Tensor]:
        yield from loader

    libraries = ("torchcodec",) if task.variant == "torchcodec" else ()
    return Stack(epoch, "uint8, antialiased", (*libraries, "torchvision", "torch"))


if __name__ == "__main__":
    serve(prepare)
