"""LitData: JPEG bytes optimised into local chunks, StreamingDataset and StreamingDataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize
from protocol import Stack, Task, jpeg_files, own_format, serve
from torch_decode import LIBRARIES, WORK, Decoder


def read_sample(path: str) -> dict[str, Any]:
    """One sample as LitData stores it."""
    return {"image": Path(path).read_bytes(), "label": 0}


def write(task: Task, folder: Path) -> None:
    """Optimise the files into chunks, in enough of them for every worker."""
    paths = [str(path) for path in jpeg_files(task)]
    optimize(
        fn=read_sample,
        inputs=paths,
        output_dir=str(folder / "chunks"),
        chunk_size=max(1, -(-len(paths) // (4 * task.cores))),
        num_workers=1,
    )


class Posters(StreamingDataset):
    """The chunks, decoded and augmented in the workers."""

    def __init__(self, folder: Path, task: Task) -> None:
        super().__init__(str(folder / "chunks"), shuffle=True, drop_last=False, seed=task.seed)
        self.decode = Decoder(task)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.decode(super().__getitem__(index)["image"])


def prepare(task: Task) -> Stack:
    """Chunks on disk, and a loader with a worker per core."""
    folder = own_format(task, lambda folder: write(task, folder))
    loader = StreamingDataLoader(
        Posters(folder, task), batch_size=task.batch, num_workers=task.cores, persistent_workers=True
    )

    def epoch(number: int) -> Iterator[torch.Tensor]:
        yield from loader

    return Stack(epoch, WORK, ("litdata", *LIBRARIES))


if __name__ == "__main__":
    serve(prepare)
