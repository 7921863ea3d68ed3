"""``posters predict`` on a shard set or on the same posters as files, from the folder to the last written row.

The variant "shards profile" adds to each epoch's answer where its time went.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from protocol import Stack, Task, serve
from sampling import Sampler

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
    forward = Forward(
        model, folder.preprocessing, autocast_dtype(accelerator), ForwardOptions(compile=task.compile), task.batch
    )
    told: dict[str, Any] = {}

    def epoch(number: int) -> Iterator[int]:
        out = Path(task.cache) / "out"
        shutil.rmtree(out, ignore_errors=True)
        if task.variant.startswith("shards"):
            root = Path(task.shards)
            chunks = shard_chunks(LocalShards(root), Manifest.read(root), None)
        else:
            chunks = folder_chunks(Path(task.files), list_images(Path(task.files)))
        job = Job(chunks, folder, forward, out, batch_size=task.batch)
        with Sampler() if task.variant.endswith("profile") else contextlib.nullcontext() as sampler:
            if predict_chunks(job, accelerator):
                raise RuntimeError("nothing could be predicted")
        if sampler is not None:
            told["profile"] = sampler.shares()
        yield sum(chunk.count for chunk in chunks)

    return Stack(epoch, "Parquet, calibrated, genres named", ("torch",), told)


if __name__ == "__main__":
    serve(prepare)
