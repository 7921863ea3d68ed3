"""A few open files of many: whatever threads do, each reads its own file, and no descriptor is lost or closed twice."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from toolkit.data.sources.file_handles import Handles


class Counted:
    """Opens files 0, 1, ... of a folder and counts."""

    def __init__(self, folder: Path, count: int) -> None:
        self.paths = [folder / str(number) for number in range(count)]
        for number, path in enumerate(self.paths):
            path.write_bytes(bytes([number]))
        self.opened: list[int] = []

    def __call__(self, number: int) -> int:
        self.opened.append(number)
        return os.open(self.paths[number], os.O_RDONLY)


def open_now(folder: Path) -> int:
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum(os.path.islink(link) and os.readlink(link).startswith(str(folder)) for link in links)


def test_the_one_used_longest_ago_is_closed(tmp_path: Path) -> None:
    files = Counted(tmp_path, 4)
    handles = Handles(files, 2)
    for number in (0, 1, 0, 2, 0, 1):
        with handles.use(number) as descriptor:
            assert os.pread(descriptor, 9, 0) == bytes([number])
    assert files.opened == [0, 1, 2, 1] and open_now(tmp_path) == 2
    handles.close_idle()
    assert open_now(tmp_path) == 0


def test_what_is_in_use_stays_open(tmp_path: Path) -> None:
    files = Counted(tmp_path, 4)
    handles = Handles(files, 1)
    with handles.use(0) as first:
        for number in (1, 2, 3):
            with handles.use(number):
                pass
        handles.close_idle()
        assert os.pread(first, 9, 0) == b"\0" and files.opened == [0, 1, 2, 3]
    assert open_now(tmp_path) <= 1


def test_many_threads(tmp_path: Path) -> None:
    handles = Handles(Counted(tmp_path, 20), 3)

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(500):
            number = draw.randrange(20)
            with handles.use(number) as descriptor:
                assert os.pread(descriptor, 9, 0) == bytes([number])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert open_now(tmp_path) <= 3


def test_descriptors_go_with_their_owner(tmp_path: Path) -> None:
    handles = Handles(Counted(tmp_path, 3), 3)
    with handles.use(1), handles.use(2):
        assert open_now(tmp_path) == 2
    del handles
    assert open_now(tmp_path) == 0


def test_two_threads_that_open_one_file_at_once_share_it(tmp_path: Path) -> None:
    files, barrier = Counted(tmp_path, 1), threading.Barrier(2)

    def slow(number: int) -> int:
        barrier.wait(10)
        return files(number)

    handles = Handles(slow, 3)

    def read(_: int) -> bytes:
        with handles.use(0) as descriptor:
            return os.pread(descriptor, 9, 0)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(read, range(2))) == [b"\0"] * 2
    assert files.opened == [0, 0] and open_now(tmp_path) == 1


def test_a_file_that_does_not_open_leaves_nothing(tmp_path: Path) -> None:
    files = Counted(tmp_path, 1)
    files.paths[0].unlink()
    handles = Handles(files, 3)
    with pytest.raises(FileNotFoundError), handles.use(0):
        pass
    files.paths[0].write_bytes(b"x")
    with handles.use(0) as descriptor:
        assert os.pread(descriptor, 9, 0) == b"x"


def test_what_failed_is_opened_anew_and_closed_once_unused(tmp_path: Path) -> None:
    files = Counted(tmp_path, 2)
    handles = Handles(files, 2)
    first = handles.take(0)
    second = handles.take(0)
    assert first is second
    handles.forget(0)
    third = handles.take(0)
    assert third.descriptor != first.descriptor and files.opened == [0, 0]
    handles.give_back(first)
    assert os.pread(second.descriptor, 9, 0) == b"\0"  # still in use by the other
    handles.give_back(second)
    assert open_now(tmp_path) == 1
    handles.give_back(third)
    handles.forget(0)
    handles.forget(0)
    assert open_now(tmp_path) == 0
