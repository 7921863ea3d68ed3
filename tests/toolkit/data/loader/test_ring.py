"""A slot's memory: as much as asked for, the same again, never an inference tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toolkit.data.loader.buffers import PinnedBuffer

CPU = torch.device("cpu")


def test_memory_grows_and_is_kept():
    slot = PinnedBuffer(CPU)
    first = slot.reserve(100)
    first[:] = 7
    assert len(first) == 100 and slot.reserve(90).ctypes.data == first.ctypes.data
    grown = slot.reserve(1000)
    grown[:] = np.arange(1000) % 256
    slot.start_copy(1000, None)
    assert slot.on_device(1000).tolist() == grown.tolist()
    assert slot.release() == 0.0
    assert slot.reserve(1000).ctypes.data == grown.ctypes.data


def test_memory_made_during_inference_serves_training():
    slot = PinnedBuffer(CPU)
    with torch.inference_mode():
        slot.reserve(10)
    assert not slot.host.is_inference() and not slot.twin.is_inference()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_sees_what_was_written_in_every_round():
    device = torch.device("cuda")
    slot, stream = PinnedBuffer(device), torch.cuda.Stream()
    for number in range(20):
        slot.reserve(1_000_000)[:] = number
        slot.start_copy(1_000_000, stream)
        on_device = slot.on_device(1_000_000)
        total = on_device.long().sum()  # queued before the slot is freed
        slot.release()
        assert int(total) == number * 1_000_000
