"""What suits a device where nobody says: rows of a forward pass, threads, number formats."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator

from shards.executors.local import available_cores

#: Images per forward pass where nobody says. On a CPU more than 32 gain little once freed memory is kept
#: (allocator.py), and are a third slower where it is not; a GPU wants many.
CPU_ROWS, GPU_ROWS = 32, 128


def rows_for(wanted: int, device: torch.device) -> int:
    """``wanted``, or what suits the device if that is 0."""
    return wanted or (CPU_ROWS if device.type == "cpu" else GPU_ROWS)


def no_room(wanted: int, device: torch.device, option: str) -> str:
    """What to say of a forward pass that did not fit, of as many images as ``option`` was told."""
    rows = rows_for(wanted, device)
    if rows == 1:
        return "not even one image at a time fits: a smaller model, or more memory, is needed"
    return f"a forward pass of {rows} images does not fit: set {option} {rows // 2}"


def ahead_for(device: torch.device) -> int:
    """A Loader's ``prefetch`` where its batches go through a forward pass alone.

    On a CPU none is decoded under that pass: the cores would lack there, and a layer is as slow as its slowest thread.
    """
    return 1 if device.type == "cpu" else 4


#: The thread that queues work for a GPU gives Python's lock away at every operation and must get it back from those
#: that decode. ResNet50 on an H200 kept 0.95 of its speed beside 6 of them, 0.84 beside 8, 0.78 beside 16 (posters of
#: 182x268, of which 6 threads decode some 11,000 a second; tests/bench/train_step.py --threads).
GPU_THREADS = 6


def decode_threads(configured: int, device: torch.device | None = None) -> int:
    """Threads for this process: as configured, or the cores of the machine divided by its processes.

    For a GPU no more than GPU_THREADS of them, unless configured.
    """
    if configured:
        return configured
    return min(own_cores(), GPU_THREADS) if device is not None and device.type == "cuda" else own_cores()


def own_cores() -> int:
    """This process's part of the machine's cores."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def best_device() -> torch.device:
    """The accelerator where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


#: Names of precisions → what autocast lets matrix products and convolutions take.
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_dtype(accelerator: Accelerator) -> torch.dtype:
    """What the model's convolutions will take: normalised images may as well be made of it."""
    return DTYPES.get(accelerator.mixed_precision, torch.float32)
