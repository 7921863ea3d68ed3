"""Choices of a large batch prediction that a short measurement at its start makes: decoding threads and torch.compile.

The choices do not change which rows are written. torch.compile changes numbers by rounding errors only. A process
chooses once, before its first file, so that all rows of a file are from the same choice. A resumed run chooses again.
Predictions of fewer than LARGE images per process measure nothing.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Sequence

import numpy as np
import torch

from shards.errors import one_line
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sources.errors import Undecodable
from toolkit.device.defaults import feeding_threads, own_cores
from toolkit.inference.forward import Forward
from toolkit.prediction.chunks import OpenChunk

log = logging.getLogger(__name__)

#: Smallest number of images per process for a measurement. ResNet50 predicts them in 2 s on an H200, and in 3 minutes
#: on two cores. The measurement takes 0.2 s on a GPU, and a second on a CPU.
LARGE = 16_384
#: Images that one thread decodes for the measurement.
DECODED = 64
#: Passes to warm up, and passes that are timed.
PASSES = 2, 4
#: torch.compile is tried if it would pay for itself this number of times with the largest gain that we expect. The gain
#: is a share of the time of the forward pass. The compilation of ResNet50 takes about a minute.
TIMES, GAIN, COMPILE_SECONDS = 5, 0.3, 60.0
#: Smallest share of the time that a compiled network must save.
SAVED = 0.05
#: Largest accepted difference of compiled outputs, relative to 1 + the largest output: with float32, with fp16 or bf16.
CLOSE, CLOSE_REDUCED = 1e-3, 5e-2


def decode_seconds(chunk: OpenChunk, count: int) -> float:
    """Return the time in which one thread reads and decodes an image: the mean over the first images of a chunk.

    ``count``: the number of images of the chunk. The result is infinite if none of them can be decoded.
    """
    rows = min(count, DECODED)
    transform = chunk.transforms(MicroBatch(np.arange(rows), np.ones(rows, dtype=bool)))
    memory = np.empty(transform.size, dtype=np.uint8)
    started, decoded = time.perf_counter(), 0
    for row in range(rows):
        with contextlib.suppress(Undecodable):  # the row of this image will have the error
            transform.row(row, chunk.source.read(row), memory)
            decoded += 1  # damaged images take no time, and would make decoding seem fast
    return (time.perf_counter() - started) / decoded if decoded else math.inf


def forward_seconds(forward: Forward, pixels: torch.Tensor) -> float:
    """Return the time of the forward pass per image. ``pixels``: a batch of (n, S, S, 3) uint8 on the device."""
    for passes in PASSES:
        started = time.perf_counter()
        outputs = [forward.on_device(pixels.clone()) for _ in range(passes)]
        [values.cpu() for values in outputs[-1]]  # waits for all passes
    return (time.perf_counter() - started) / (passes * len(pixels))


def some_pixels(rows: int, side: int, device: torch.device) -> torch.Tensor:
    """Return a batch of random images, the same in each run."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, side, side, 3), dtype=torch.uint8, generator=generator).to(device)


def choose_threads(chunk: OpenChunk, count: int, forward: float) -> int:
    """Return the number of decoding threads for a GPU. ``forward``: seconds of the forward pass per image.

    The result is 0, the default, if no image at the start of the chunk can be decoded.
    """
    decode, cores = decode_seconds(chunk, count), own_cores()
    if decode == math.inf:
        log.info("decoding threads: the default, because the first %d images cannot be decoded", min(count, DECODED))
        return 0
    threads = feeding_threads(decode, forward, cores)
    log.info(
        "decoding threads: %d of at most %d; one decodes %.0f images/s, and the forward pass takes %.0f images/s",
        threads, cores, 1 / decode, 1 / forward,
    )  # fmt: skip
    return threads


def worth_compiling(images: int, forward: float) -> bool:
    """Return whether torch.compile could pay for itself several times. ``forward``: seconds per image without it."""
    return images * forward * GAIN >= TIMES * COMPILE_SECONDS


def compiled_if_faster(forward: Forward, pixels: torch.Tensor, seconds: float, padding: float) -> Forward:
    """Return ``forward`` with torch.compile if this is faster and gives the same outputs except for rounding.

    If the compiler is missing or fails, log the reason and return ``forward``. ``seconds``: time per image without
    torch.compile. ``padding``: rows with padding per row without, since compiled batches are padded to a fixed size.
    """
    try:
        compiled = forward.compiled(len(pixels))
        difference = largest_difference(forward.on_device(pixels.clone()), compiled.on_device(pixels.clone()))
        ours = forward_seconds(compiled, pixels) * padding
    except Exception as error:  # the compilers of torch have many types of exceptions
        reason = str(error).partition("\n\n")[0]  # advice for developers of torch follows
        log.warning("torch.compile is not used, because it failed: %s", one_line(reason)[:200])
        return forward
    if not difference <= (CLOSE_REDUCED if forward.reduced else CLOSE):  # also NaN
        log.warning("torch.compile is not used, because its outputs differ by %.2g", difference)
        return forward
    used = ours <= (1 - SAVED) * seconds
    word = "used" if used else "not used"
    log.info("torch.compile is %s: %.0f images/s with it, %.0f without", word, 1 / ours, 1 / seconds)
    return compiled if used else forward


def largest_difference(outputs: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    """Return the largest difference of the outputs of two forward passes, relative to 1 + the largest output."""
    pairs = list(zip(outputs, others, strict=True))
    return max(float((one - other).abs().max() / (1 + one.abs().max())) for one, other in pairs)
