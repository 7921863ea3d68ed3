"""NVIDIA DALI without a GPU: its WebDataset reader, decoder, resize and flip on a thread per core."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from protocol import Stack, Task, serve

DEPTH = 2  # batches in flight, DALI's default


def prepare(task: Task) -> Stack:
    """The pipeline, built; it runs only what an epoch asks for."""

    @pipeline_def(
        batch_size=task.batch, num_threads=task.cores, device_id=None, seed=task.seed, prefetch_queue_depth=DEPTH
    )
    def posters():
        jpegs = fn.readers.webdataset(
            paths=task.tars, ext=["jpg"], random_shuffle=True, initial_fill=512, name="reader"
        )
        images = fn.decoders.image_random_crop(
            jpegs, device="cpu", random_area=list(task.scale), random_aspect_ratio=list(task.ratio)
        )
        images = fn.resize(images, size=[task.size, task.size], interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip(probability=task.flip))

    pipeline = posters()
    pipeline.build()
    pipeline.schedule_run()  # the first call runs DEPTH batches, whatever is asked for
    for _ in range(DEPTH):
        pipeline.share_outputs()
        pipeline.release_outputs()

    def epoch(number: int) -> Iterator[np.ndarray]:
        # Scheduled by hand: run() would decode the next epoch's first batches before anybody starts the clock.
        total = -(-task.samples // task.batch)
        scheduled = 0
        for batch in range(total):
            while scheduled < min(batch + DEPTH, total):
                pipeline.schedule_run()
                scheduled += 1
            (images,) = pipeline.share_outputs()
            yield np.asarray(images.as_tensor())
            pipeline.release_outputs()

    return Stack(epoch, "uint8, antialiased (triangular)", ("nvidia-dali-cuda120", "numpy"))


if __name__ == "__main__":
    serve(prepare)
