"""A slot's memory: as much as asked for, the same again, never an inference tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toolkit.data.loader.buffers import Slot

CPU = torch.device("cpu")


def test_memory_grows_and_is_kept():
    slot = Slot(CPU)
    first = slot.room(100)
    first[:] = 7
    assert len(first) == 100 and slot.room(90).ctypes.data == first.ctypes.data
    grown = slot.room(1000)
    grown[:] = np.arange(1000) % 256
    slot.send(1000, None)
    assert slot.on_device(1000).tolist() == grown.tolist()
    assert slot.free() == 0.0
    assert slot.room(1000).ctypes.data == grown.ctypes.data


def test_memory_made_during_inference_serves_training():
    slot = Slot(CPU)
    with torch.inference_mode():
        slot.room(10)
    assert not slot.host.is_inference() and not slot.twin.is_inference()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_sees_what_was_written_in_every_round():
    device = torch.device("cuda")
    slot, stream = Slot(device), torch.cuda.Stream()
    for number in range(20):
        slot.room(1_000_000)[:] = number
        slot.send(1_000_000, stream)
        on_device = slot.on_device(1_000_000)
        total = on_device.long().sum()  # queued before the slot is freed
        slot.free()
        assert int(total) == number * 1_000_000
