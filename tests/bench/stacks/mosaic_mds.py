"""MosaicML Streaming: JPEG bytes in MDS shards, StreamingDataset under torch's DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from protocol import Stack, Task, jpeg_files, own_format, serve
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch_decode import LIBRARIES, WORK, Decoder


def write(task: Task, folder: Path) -> None:
    """The files as MDS."""
    with MDSWriter(out=str(folder / "mds"), columns={"image": "bytes", "label": "int"}) as writer:
        for path in jpeg_files(task):
            writer.write({"image": path.read_bytes(), "label": 0})


class Posters(StreamingDataset):
    """The shards, decoded and augmented in the workers."""

    def __init__(self, folder: Path, task: Task) -> None:
        local = str(folder / "mds")
        super().__init__(local=local, shuffle=True, shuffle_seed=task.seed, batch_size=task.batch)
        self.decode = Decoder(task)

    def __getitem__(self, at: Any) -> torch.Tensor:
        return self.decode(super().__getitem__(at)["image"])


def prepare(task: Task) -> Stack:
    """MDS on disk, and a loader with a worker per core."""
    folder = own_format(task, lambda folder: write(task, folder))
    clean_stale_shared_memory()  # of runs that were killed
    loader: torch.utils.data.DataLoader[torch.Tensor] = torch.utils.data.DataLoader(
        Posters(folder, task), batch_size=task.batch, num_workers=task.cores, persistent_workers=True
    )

    def epoch(number: int) -> Iterator[torch.Tensor]:
        yield from loader

    return Stack(epoch, WORK, ("mosaicml-streaming", *LIBRARIES))


if __name__ == "__main__":
    serve(prepare)
