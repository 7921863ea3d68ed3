"""Default settings for a device: images per forward pass, decoding threads and data types."""

from __future__ import annotations

import math
import os

import torch
from accelerate import Accelerator

from shards.errors import UserError, one_line
from shards.executors.local import available_cores

#: Default number of images per forward pass, on a CPU and on a GPU. On a CPU, more than 32 images hardly increase the
#: speed if allocator.py keeps freed memory. If it does not, larger batches are a third slower.
CPU_ROWS, GPU_ROWS = 32, 128


def rows_for(wanted: int, device: torch.device) -> int:
    """Return the number of images per forward pass: ``wanted``, or the default of ``device`` if ``wanted`` is 0."""
    return wanted or (CPU_ROWS if device.type == "cpu" else GPU_ROWS)


def no_room(wanted: int, device: torch.device, option: str) -> str:
    """Return the message for a forward pass that needs too much memory. ``option`` sets the number of images."""
    rows = rows_for(wanted, device)
    if rows == 1:
        return "a forward pass of one image does not fit: use a smaller model, or a machine with more memory"
    return f"a forward pass of {rows} images does not fit: set {option} {rows // 2}"


def ahead_for(device: torch.device) -> int:
    """Return the ``prefetch`` of a Loader for inference: the number of batches that it decodes ahead.

    On a CPU the number is 1, so that no batch is decoded during a forward pass, which needs all cores.
    """
    return 1 if device.type == "cpu" else 4


#: Largest default number of decoding threads for a GPU, if no measurement chooses it. The threads share Python's
#: global lock with the thread that starts GPU kernels. ResNet50 on an H200 kept 95% of its speed with 6 decoding
#: threads, 84% with 8 and 78% with 16. The posters had 182x268 pixels, and 6 threads decoded about 11,000 per second
#: (tests/bench/train_step.py --threads).
GPU_THREADS = 6


def decode_threads(configured: int, device: torch.device | None = None) -> int:
    """Return the number of decoding threads: ``configured``, or a default if it is 0 (on GPUs at most GPU_THREADS)."""
    if configured:
        return configured
    return min(own_cores(), GPU_THREADS) if device is not None and device.type == "cuda" else own_cores()


#: Decoding threads above what one thread's speed requires. Threads that decode at the same time are slower than one
#: alone, because they share the memory and Python's global lock.
SPARE = 1.25


def feeding_threads(decode: float, forward: float, cores: int) -> int:
    """Return the smallest number of threads that decode images as fast as the forward pass needs them, with a reserve.

    More threads would only slow down the thread that starts GPU kernels. ``decode``: seconds in which one thread
    decodes an image. ``forward``: seconds of the forward pass per image. ``cores``: largest number of threads.

    >>> feeding_threads(0.0005, 0.0001, 16), feeding_threads(0.0005, 0.001, 16), feeding_threads(0.005, 0.0001, 16)
    (7, 1, 16)
    """
    return max(1, min(math.ceil(SPARE * decode / forward), cores))


def own_cores() -> int:
    """Return the number of available CPU cores for each process on this machine. It is at least 1."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usable_device(device: torch.device | str | None) -> torch.device:
    """Return ``device``, with the number of a GPU: cuda is the current GPU. None is the best device.

    Raises UserError if the device cannot be used.
    """
    try:
        return torch.empty(0, device=device or best_device()).device
    except Exception as error:  # every backend of torch has its own exceptions
        what = f"device {device!r} cannot be used ({one_line(error)[:200]})"
        raise UserError("device", f"{what}; use cpu or cuda") from None


#: Precision → dtype of matrix products and convolutions under autocast.
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_dtype(accelerator: Accelerator) -> torch.dtype:
    """Return the dtype of convolutions under autocast. Normalised images are created with this dtype."""
    return DTYPES.get(accelerator.mixed_precision, torch.float32)
