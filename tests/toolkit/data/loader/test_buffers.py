"""A slot's memory: as much as asked for, the same again, never an inference tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toolkit.data.loader.buffers import PinnedBuffer

CPU = torch.device("cpu")


def test_memory_grows_and_is_kept():
    buffer = PinnedBuffer(CPU)
    first = buffer.reserve(100)
    first[:] = 7
    assert len(first) == 100 and buffer.reserve(90).ctypes.data == first.ctypes.data
    grown = buffer.reserve(1000)
    grown[:] = np.arange(1000) % 256
    buffer.start_copy(1000, None)
    assert buffer.on_device(1000).tolist() == grown.tolist()
    assert buffer.release() == 0.0
    assert buffer.reserve(1000).ctypes.data == grown.ctypes.data


def test_memory_made_during_inference_serves_training():
    buffer = PinnedBuffer(CPU)
    with torch.inference_mode():
        buffer.reserve(10)
    assert not buffer.host.is_inference() and not buffer.device_memory.is_inference()


@pytest.mark.gpu
def test_a_gpu_sees_what_was_written_in_every_round():
    device = torch.device("cuda")
    buffer, stream = PinnedBuffer(device), torch.cuda.Stream()
    for number in range(20):
        buffer.reserve(1_000_000)[:] = number
        buffer.start_copy(1_000_000, stream)
        on_device = buffer.on_device(1_000_000)
        total = on_device.long().sum()  # queued before the slot is freed
        buffer.release()
        assert int(total) == number * 1_000_000
