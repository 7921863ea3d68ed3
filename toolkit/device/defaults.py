"""Defaults for a device: images per forward pass, threads, number formats."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator

from shards.executors.local import available_cores

#: Default number of images per forward pass. On a CPU, more than 32 gain little if freed memory is kept (allocator.py),
#: and are a third slower if it is not. A GPU needs more.
CPU_ROWS, GPU_ROWS = 32, 128


def rows_for(wanted: int, device: torch.device) -> int:
    """Return ``wanted``, or the default of the device if it is 0."""
    return wanted or (CPU_ROWS if device.type == "cpu" else GPU_ROWS)


def no_room(wanted: int, device: torch.device, option: str) -> str:
    """Return the message for a forward pass that does not fit in memory; ``option`` sets its number of images."""
    rows = rows_for(wanted, device)
    if rows == 1:
        return "a forward pass of one image does not fit: use a smaller model, or a machine with more memory"
    return f"a forward pass of {rows} images does not fit: set {option} {rows // 2}"


def ahead_for(device: torch.device) -> int:
    """Return the ``prefetch`` of a Loader for forward passes without training.

    On a CPU it is 1, so that no batch is decoded during a forward pass: the pass needs all cores, and a layer is as
    slow as its slowest thread.
    """
    return 1 if device.type == "cpu" else 4


#: Default limit of decoding threads for a GPU. The thread that queues GPU work competes with them for Python's lock.
#: ResNet50 on an H200 kept 0.95 of its speed with 6 decoding threads, 0.84 with 8, 0.78 with 16 (posters of 182x268;
#: 6 threads decode about 11,000 per second; tests/bench/train_step.py --threads).
GPU_THREADS = 6


def decode_threads(configured: int, device: torch.device | None = None) -> int:
    """Return the decoding threads of this process: ``configured``, or if 0 its cores (at most 6 for a GPU)."""
    if configured:
        return configured
    return min(own_cores(), GPU_THREADS) if device is not None and device.type == "cuda" else own_cores()


def own_cores() -> int:
    """Return the cores of the machine divided by its processes, at least 1."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


#: Precision → dtype of matrix products and convolutions under autocast.
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_dtype(accelerator: Accelerator) -> torch.dtype:
    """Return the dtype of the model's convolutions, so that images can be normalised to it directly."""
    return DTYPES.get(accelerator.mixed_precision, torch.float32)
