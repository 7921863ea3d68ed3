"""The bottleneck of an epoch names what limited it and the remedy."""

from __future__ import annotations

import threading

import pytest

from toolkit.data.loader.timing import LoaderTimer, Times, bottleneck


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (Times(waited=1.3, decode=60, decode_cpu=59), ["data takes 1.3% of the time", "the GPU is the limit"]),
        (Times(waited=40, decode=1550, decode_cpu=1500), ["40%", "decoding is the limit", "15.0 of 16 cores"]),
        (Times(waited=40, decode=1550, decode_cpu=300, bytes_read=9 * 10**9), ["reading", "90 MB/s", "order window"]),
        (Times(waited=30, decode=400, decode_cpu=390), ["threads are idle", "--data.prefetch"]),
        (Times(waited=30, decode=400, decode_cpu=390, copied=80), ["copy to the device is the limit", "80%"]),
        (Times(), ["data takes 0.0%"]),
    ],
)  # fmt: skip
def test_bottlenecks(times: Times, words: list[str]):
    line = bottleneck(times, 100.0, threads=16, cores=16, accelerator="GPU").line
    assert "\n" not in line
    for word in words:
        assert word in line, line


def test_fewer_threads_than_cores_is_the_first_remedy():
    line = bottleneck(Times(waited=50, decode=395, decode_cpu=390), 100.0, 4, 16, "GPU").line
    assert "--data.workers 16" in line
    line = bottleneck(Times(waited=50, decode=395, decode_cpu=390), 100.0, 4, 4, "GPU").line
    assert "more cores" in line


def test_threads_lose_no_count():
    timer = LoaderTimer()

    def add() -> None:
        for _ in range(5000):
            timer.add(samples=1, decode=0.5)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = timer.snapshot()
    assert before.samples == 20_000 and before.decode == 10_000.0
    timer.add(waited=2.0)
    assert (timer.snapshot() - before) == Times(waited=2.0)
