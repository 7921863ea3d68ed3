"""SPDL: a pipeline of threads whose stages demux, decode and filter with FFmpeg, without Python's lock.

As https://facebookresearch.github.io/spdl/latest/generated/examples/image_dataloading.html: paths, batches of them,
spdl.io in as many threads as cores. Crop, resize and flip are a filter graph for each image, as
https://facebookresearch.github.io/spdl/latest/io/filtering.html has them. Needs FFmpeg's libraries (version 4 to 9).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import spdl.io
import torch
from protocol import Stack, Task, jpeg_files, serve
from spdl.io.utils import get_ffmpeg_versions
from spdl.pipeline import PipelineBuilder


def crop_of(width: int, height: int, task: Task, chance: random.Random) -> str:
    """RandomResizedCrop's rectangle as a filter: of ten tries the first that fits, or the whole image."""
    for _ in range(10):
        area = width * height * chance.uniform(*task.scale)
        ratio = math.exp(chance.uniform(math.log(task.ratio[0]), math.log(task.ratio[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return f"crop={w}:{h}:{chance.randint(0, width - w)}:{chance.randint(0, height - h)}:exact=1"
    return "null"


def prepare(task: Task) -> Stack:
    """A new pipeline for each epoch; its threads start in under a millisecond."""
    filters = ".".join(map(str, get_ffmpeg_versions()["libavfilter"]))  # fails here if there is no FFmpeg
    files = [str(path) for path in jpeg_files(task)]
    chance = random.Random(task.seed)

    def decode(path: str) -> spdl.io.ImageFrames:
        packets = spdl.io.demux_image(path)
        flip = ",hflip" if chance.random() < task.flip else ""
        crop = crop_of(packets.width, packets.height, task, chance)
        scale = f"scale={task.size}:{task.size}:flags=bilinear"
        return spdl.io.decode_packets(packets, filter_desc=f"{crop}{flip},{scale},format=rgb24")

    def load(paths: list[str]) -> torch.Tensor:
        buffer = spdl.io.convert_frames([decode(path) for path in paths])
        return spdl.io.to_torch(buffer).permute(0, 3, 1, 2)

    def epoch(number: int) -> Iterator[torch.Tensor]:
        order = random.Random(f"{task.seed} {number}").sample(files, len(files))
        pipeline = (
            PipelineBuilder()
            .add_source(order)
            .aggregate(task.batch)
            .pipe(load, concurrency=task.cores)
            .add_sink(2)
            .build(num_threads=task.cores)
        )
        with pipeline.auto_stop():
            yield from pipeline.get_iterator()

    return Stack(epoch, f"uint8, channels last, bilinear, libavfilter {filters}", ("spdl", "torch"))


if __name__ == "__main__":
    serve(prepare)
