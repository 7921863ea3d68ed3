"""Fetching ahead: in the order in which the plan reads, not too far, and nobody waits for what went wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from failing import fails
from hypothesis import given
from hypothesis import strategies as st

from shards.dataset.cache_options import CacheOptions, NoRoom
from shards.dataset.manifest import Shard
from shards.dataset.store import RemoteShards
from shards.errors import UserError
from toolkit.data.sampling.repeat_factor import RepeatOrder
from toolkit.data.sampling.shuffle import DRAW_STRIDE, GlobalOrder, WindowOrder
from toolkit.data.sources.prefetch import Prefetcher, check_room, pass_of


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 3), st.data())
def test_the_order_of_need_is_the_plans(sizes: list[int], window: int, epoch: int, data: st.DataObject) -> None:
    """From any position on, samples are of one window of the pass after the other, and of nothing else."""
    order = WindowOrder(sizes, window, seed=3)
    start = data.draw(st.integers(0, len(order) - 1))
    due = pass_of(order, len(sizes), epoch, start)
    ends = np.cumsum(sizes)
    read = np.searchsorted(ends, order.keys(epoch, start, len(order)) % DRAW_STRIDE, side="right").tolist()
    assert len(set(due)) == len(due) and (start or len(due) == len(sizes))
    groups = [due.index(shard) // window for shard in read]
    assert groups == sorted(groups) and groups[0] == 0
    assert set(due[window:]) <= set(read)  # all but the window under way is read whole


def test_with_repeats_and_without_windows() -> None:
    factors = np.linspace(1, 3, 40)
    windowed = RepeatOrder(factors, 1, [10] * 4, 2)
    due = pass_of(windowed, 4, 0, 0)
    assert sorted(due) == [0, 1, 2, 3]
    assert set((windowed.keys(0, 0, 10) % DRAW_STRIDE // 10).tolist()) <= set(due[:2])
    for order in (RepeatOrder(factors, 1), GlobalOrder(40, 1)):
        assert pass_of(order, 4, 5, 7) == [0, 1, 2, 3]


class Store:
    """A store that notes what it is asked for, and answers as a test wants."""

    def __init__(self, answer: Callable[[int], None] = lambda number: None) -> None:
        self.asked: list[int] = []
        self.answer = answer

    def prefetch(self, shard: Shard, stop: threading.Event) -> None:
        number = int(shard.name)
        self.asked.append(number)
        self.answer(number)


def shards(count: int, size: int = 100) -> list[Shard]:
    return [Shard(str(number), "train", 1, size, "", 1, 1, [1]) for number in range(count)]


def make(store: Store, numbers: list[int], ahead: int, threads: int = 2) -> Prefetcher:
    """A prefetcher whose readers begin a pass over these shards."""
    fetcher = Prefetcher(cast(RemoteShards, store), shards(max(numbers) + 1), threads)
    fetcher.begin(numbers, (), ahead)
    return fetcher


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("second", [[4, 2, 0, 3, 1], [1, 4, 2, 0, 3], [1, 3, 0, 2, 4]])
def test_never_more_than_ahead_of_the_readers(second: list[int]) -> None:
    """Also where two passes meet and a shard is within reach twice: readers are in the pass that began last."""
    first, ahead = [4, 2, 0, 3, 1], 2
    store = Store()
    fetcher = Prefetcher(cast(RemoteShards, store), shards(5), threads=2)
    for numbers, following in ((first, second), (second, [])):
        fetcher.begin(numbers, following, ahead)
        begun = len(store.asked) if numbers is second else 0  # the first of the second pass are asked for again
        visits = numbers + following[:ahead]
        for place, number in enumerate(numbers):
            due = min(place + ahead, len(visits))
            until(lambda due=due, begun=begun: len(store.asked) >= begun + due)  # type: ignore[misc]
            time.sleep(0.02)
            assert sorted(store.asked[begun:]) == sorted(visits[:due])
            for _ in range(3):
                fetcher.reached(number)
        until(lambda begun=begun, visits=visits: len(store.asked) == begun + len(visits))  # type: ignore[misc]
    fetcher.close()


def test_closing_lets_go_of_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.data.sources.prefetch.CLOSE_SECONDS", 0.05)
    never = threading.Event()

    def answer(number: int) -> None:
        never.wait(60)

    fetcher = make(Store(answer), [0, 1], ahead=2)
    began = time.monotonic()
    fetcher.close()
    assert time.monotonic() - began < 30
    never.set()


def test_what_finds_no_room_is_tried_until_its_readers_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.data.sources.prefetch.RETRY", 0.01)
    full = threading.Event()
    full.set()

    def answer(number: int) -> None:
        if number == 1 and full.is_set():
            raise NoRoom("1")

    store = Store(answer)
    fetcher = make(store, [0, 1, 2], ahead=2, threads=1)
    until(lambda: store.asked.count(1) > 3)
    assert 2 not in store.asked
    full.clear()
    fetcher.reached(0)
    until(lambda: 2 in store.asked)
    fetcher.close()

    full.set()
    store = Store(answer)
    fetcher = make(store, [0, 1, 2], ahead=2, threads=1)
    until(lambda: store.asked.count(1) > 3)
    fetcher.reached(1)  # whoever reads it fetches it
    until(lambda: 2 in store.asked)
    fetcher.close()


def test_an_error_is_told_and_is_the_readers_to_raise(caplog: pytest.LogCaptureFixture) -> None:
    def answer(number: int) -> None:
        if number == 0:
            raise UserError("set-missing", "shard 0 is gone")

    store = Store(answer)
    fetcher = make(store, [0, 1], ahead=2, threads=1)
    until(lambda: len(store.asked) == 2)
    fetcher.close()
    assert store.asked == [0, 1]  # it goes on with the next, and does not try again
    assert [record.getMessage() for record in caplog.records] == ["a shard could not be prefetched: shard 0 is gone"]


def test_closing_ends_it_while_it_waits() -> None:
    def answer(number: int) -> None:
        raise NoRoom("")

    fetcher = make(Store(answer), [0, 1], ahead=1)
    fetcher.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch-") and t in fetcher._threads]


@pytest.mark.parametrize(
    ("limit", "window", "lead", "word"),
    [
        (0, 2, 0, ""),
        (399, 2, 0, "2 windows of 2 shards"),
        (400, 2, 0, ""),
        (400, 2, 1, ""),
        (400, 2, 2, "3 windows of 2 shards"),  # a window is two samples
        (600, 2, 3, ""),
        (999, None, 0, "data.order window"),
        (1000, None, 9, ""),
    ],
)
def test_a_limit_under_which_training_would_fetch_again_and_again(
    limit: int, window: int | None, lead: int, word: str
) -> None:
    class Kept:
        class cache:
            options = CacheOptions(limit=limit)

    store: Any = Kept
    if not word:
        check_room(store, shards(10), window, lead)
        return
    with fails("option-conflict", word, "--cache-limit"):
        check_room(store, shards(10), window, lead)
