"""The choice of decoding threads or processes: by arithmetic, so it can be checked at its limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toolkit.device.decode_choice import CLEARLY, CrewChoice, DecodeTimes, choose_crew, rate_of, threads_for

SECONDS = st.floats(1e-6, 5e-3)
#: An image of 182x268 pixels, decoded by a thread that holds the lock for a part of the time.
POSTER = DecodeTimes(decode=250e-6, lock=45e-6, consumer=1 / 25_000, launch=12e-6)


def test_threads_are_the_choice_where_cores_or_the_gpu_are_the_limit():
    for cores in (1, 2):
        assert choose_crew(POSTER, cores).processes == 0
    training = POSTER._replace(consumer=1 / 2_000, launch=100e-6)
    assert choose_crew(training, 16) == CrewChoice(threads_for(training, 16), 0)
    assert choose_crew(POSTER._replace(lock=1e-6), 16).processes == 0


def test_processes_are_the_choice_where_the_lock_is_the_limit():
    choice = choose_crew(POSTER, 16)
    assert choice.threads == 0 and 5 <= choice.processes <= 16
    assert rate_of(POSTER, 0, choice.processes, 16) > CLEARLY * rate_of(POSTER, 16, 0, 16)


@given(SECONDS, st.floats(0, 1), SECONDS, st.floats(0, 1), st.integers(1, 64))
def test_no_choice_exceeds_a_limit_and_none_is_clearly_slower_than_another(
    decode: float, lock: float, consumer: float, launch: float, cores: int
):
    times = DecodeTimes(decode, lock * decode, consumer, launch * consumer)
    choice = choose_crew(times, cores)
    assert min(choice) == 0 < max(choice) <= cores
    rate = rate_of(times, *choice, cores)
    assert rate <= min(1 / consumer, cores / decode) * 1.001
    if choice.threads:
        assert rate * (times.lock + times.launch) <= 1.001
    others = [rate_of(times, count, 0, cores) for count in range(1, cores + 1)]
    others += [rate_of(times, 0, count, cores) / CLEARLY for count in range(1, cores + 1)]
    assert rate >= 0.98 * max(others)
