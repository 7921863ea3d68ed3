"""Measure the speed of the forward pass and the size of each model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from toolkit.device.defaults import autocast_dtype, rows_for
from toolkit.inference.forward import Forward
from toolkit.model_folder.folder import WEIGHTS, ModelFolder

#: Number of batches that are timed for each model, after one batch that is not timed. The median is used.
BATCHES = 5


@dataclass(frozen=True)
class Cost:
    """Speed and size of a model."""

    images_per_s: float
    """Images per second of the forward pass: the number of images of a batch, divided by the median time of a batch."""
    parameters: int
    megabytes: float
    """Size of the file of weights in MB (10^6 bytes)."""


def measure_costs(accelerator: Accelerator, folders: Sequence[ModelFolder], batch_size: int) -> list[Cost]:
    """Return speed and size of each model. Decoding is not measured, because the images are noise in memory.

    The models take turns, so that other work of the machine slows all of them alike.
    """
    device, rows = accelerator.device, rows_for(batch_size, accelerator.device)
    generator = torch.Generator().manual_seed(0)
    forwards, seconds = [], [list[float]() for _ in folders]
    for folder in folders:
        preprocessing = folder.preprocessing
        shape = rows, preprocessing.image_size, preprocessing.image_size, 3
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
        forwards.append((Forward(folder.model.to(device), preprocessing, autocast_dtype(accelerator)), images))
    for turn in range(BATCHES + 1):
        for (forward, images), times in zip(forwards, seconds, strict=True):
            batch = images.clone()  # the forward pass can overwrite its images
            started = time.perf_counter()
            forward(batch).arrays()
            if turn:
                times.append(time.perf_counter() - started)
    return [_cost(folder, rows / statistics.median(times)) for folder, times in zip(folders, seconds, strict=True)]


def _cost(folder: ModelFolder, images_per_s: float) -> Cost:
    parameters = sum(parameter.numel() for parameter in folder.model.parameters())
    return Cost(images_per_s, parameters, (folder.path / WEIGHTS).stat().st_size / 1e6)


def measured_on(accelerator: Accelerator, batch_size: int) -> dict[str, Any]:
    """Return where and how `measure_costs` measures, for the page."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {
        "device": name,
        "precision": accelerator.mixed_precision,
        "batch_size": rows_for(batch_size, device),
        "batches": BATCHES,
    }
