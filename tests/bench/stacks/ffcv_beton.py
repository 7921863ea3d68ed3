"""FFCV: a .beton file of JPEG bytes or of raw pixels, compiled pipelines on a thread per core."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, ToTensor
from ffcv.writer import DatasetWriter
from PIL import Image
from protocol import Stack, Task, jpeg_files, own_format, serve


class Files(torch.utils.data.Dataset):
    """(pixels, label) of every file, as FFCV's writer wants them."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        with Image.open(self.paths[index]) as image:
            return image.convert("RGB"), 0


def write(task: Task, folder: Path) -> None:
    """Encode all posters anew: FFCV's writer takes pixels, not files. Quality 90 is its default."""
    paths = jpeg_files(task)
    field = RGBImageField(write_mode="raw" if task.variant == "raw" else "jpg", jpeg_quality=90)
    fields = {"image": field, "label": IntField()}
    # A page must hold the largest poster, or the writer waits for ever for its worker, which has died.
    page = max(1 << 23, 1 << (3 * max(map(pixels, paths))).bit_length())
    writer = DatasetWriter(str(folder / "posters.beton"), fields, page_size=page, num_workers=1)
    writer.from_indexed_dataset(Files(paths))


def pixels(path: Path) -> int:
    """Pixels of a poster, by its header."""
    with Image.open(path) as image:
        return image.width * image.height


def prepare(task: Task) -> Stack:
    """The file on disk, and FFCV's loader."""
    folder = own_format(task, lambda folder: write(task, folder))
    crop = RandomResizedCropRGBImageDecoder((task.size, task.size), scale=task.scale, ratio=task.ratio)
    loader = Loader(
        str(folder / "posters.beton"),
        batch_size=task.batch,
        num_workers=task.cores,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=False,
        seed=task.seed,
        pipelines={"image": [crop, RandomHorizontalFlip(task.flip), ToTensor()], "label": None},
    )

    def epoch(number: int) -> Iterator[torch.Tensor]:
        for (images,) in loader:
            yield images

    return Stack(epoch, "uint8, area filter", ("ffcv", "numba", "numpy", "torch"))


if __name__ == "__main__":
    serve(prepare)
