"""The limit: threads that decode each whole JPEG into a buffer that is there already, and nothing else."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import simplejpeg
from protocol import Stack, Task, serve

from shards.dataset.index import read_index


def prepare(task: Task) -> Stack:
    """Map the tars into memory and start a thread per core."""
    places: list[memoryview] = []  # every sample's bytes, without a copy
    largest = 0
    for tar in task.tars:
        with open(tar, "rb") as stream:
            view = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        table, _ = read_index(Path(tar))
        ranges = zip(table["image_offset"].to_pylist(), table["image_size"].to_pylist(), strict=True)
        places += [view[offset : offset + size] for offset, size in ranges]
        pixels = np.multiply(table["height"].to_numpy(), table["width"].to_numpy(), dtype=np.int64)
        largest = max(largest, int(pixels.max()))
    todo: SimpleQueue[list[int]] = SimpleQueue()
    done: SimpleQueue[int] = SimpleQueue()

    def work() -> None:
        buffer = np.empty(largest * 3, dtype=np.uint8)
        while True:
            batch = todo.get()
            for sample in batch:
                simplejpeg.decode_jpeg(places[sample], colorspace="RGB", buffer=buffer)
            done.put(len(batch))

    for _ in range(task.cores):
        threading.Thread(target=work, daemon=True).start()

    def epoch(number: int) -> Iterator[int]:
        order = np.random.default_rng([task.seed, number]).permutation(len(places)).tolist()
        # A batch is cut over the threads, so that the first one is there as early as a loader could have it.
        part = -(-task.batch // task.cores)
        parts = [order[start : start + part] for start in range(0, len(order), part)]
        for samples in parts:
            todo.put(samples)
        for _ in parts:
            yield done.get()

    return Stack(epoch, "decoding only, whole image, no crop, resize or batch", ("simplejpeg", "numpy"))


if __name__ == "__main__":
    serve(prepare)
