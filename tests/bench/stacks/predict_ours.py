"""``posters predict`` on a shard set or on the same posters as files, from the folder to the last written row."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from protocol import Stack, Task, serve

from shards.dataset.manifest import Manifest
from shards.dataset.store import LocalShards
from toolkit.config.options import ForwardOptions
from toolkit.data.sources.image_files import list_images
from toolkit.device.defaults import autocast_dtype
from toolkit.distributed.collectives import make_accelerator
from toolkit.inference.forward import Forward
from toolkit.model_folder.folder import load_model_folder
from toolkit.prediction.batch import Job, predict_chunks
from toolkit.prediction.chunks import folder_chunks, shard_chunks


def prepare(task: Task) -> Stack:
    """The model is loaded once; every epoch predicts everything anew."""
    accelerator = make_accelerator(task.precision)
    accelerator.end_training = lambda: None  # there are more epochs to come
    folder = load_model_folder(Path(task.model))
    model = folder.model.to(accelerator.device).to(memory_format=torch.channels_last)
    forward = Forward(model, folder.preprocessing, autocast_dtype(accelerator), ForwardOptions())

    def epoch(number: int) -> Iterator[int]:
        out = Path(task.cache) / "out"
        shutil.rmtree(out, ignore_errors=True)
        if task.variant == "shards":
            root = Path(task.shards)
            chunks = shard_chunks(LocalShards(root), Manifest.read(root), None)
        else:
            chunks = folder_chunks(Path(task.files), list_images(Path(task.files)))
        if predict_chunks(Job(chunks, folder, forward, out, batch_size=task.batch), accelerator):
            raise RuntimeError("nothing could be predicted")
        yield sum(chunk.count for chunk in chunks)

    return Stack(epoch, "Parquet, calibrated, genres named", ("torch",))


if __name__ == "__main__":
    serve(prepare)
