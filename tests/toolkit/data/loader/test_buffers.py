"""A slot's memory: as much as asked for, the same again, never an inference tensor."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest
import torch

from toolkit.data.loader.buffers import PinnedBuffer, SharedBuffer

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
@pytest.mark.parametrize("shared", [False, True])
def test_a_gpu_sees_what_was_written_in_every_round(shared: bool):
    device = torch.device("cuda")
    buffer = SharedBuffer(device, 0, lambda *_: None) if shared else PinnedBuffer(device)
    stream = torch.cuda.Stream()
    for number in range(20):
        size = 1_000_000 * (1 + number // 5)  # memory that is too small is unpinned and freed
        buffer.reserve(size)[:] = number
        assert buffer.host.is_pinned()
        buffer.start_copy(size, stream)
        on_device = buffer.on_device(size)
        total = on_device.long().sum()  # queued before the slot is freed
        buffer.release()
        assert int(total) == number * size


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no Linux")
def test_shared_memory_is_what_another_mapping_of_its_file_wrote():
    maps: list[mmap.mmap] = []
    buffer = SharedBuffer(CPU, 7, lambda number, file, size: maps.append(mmap.mmap(file, size)))
    for size in (100, 90, 1000):
        memory = buffer.reserve(size)
        maps[-1][:size] = bytes(k % 251 for k in range(size))
        assert memory.tobytes() == maps[-1][:size] and buffer.on_device(size).numpy().tobytes() == maps[-1][:size]
        del memory
    assert len(maps) == 2  # 90 bytes fit
