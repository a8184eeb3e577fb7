"""Whether the engine is busy: it wants a processor most of the time."""

import time

from common.engine import pressure
from common.engine.pressure import CALM_MS, Pressure

MS = 1_000_000


def asked(*wanted_ms: int) -> list[bool]:
    """What is said, ten times a second, to one that wanted so much of each tenth."""
    told = iter([sum(wanted_ms[:count]) * MS for count in range(len(wanted_ms) + 1)])
    watched = Pressure(lambda: next(told))
    return [watched.is_high(100 * tick) for tick in range(len(wanted_ms) + 1)][1:]


def test_who_wants_a_processor_most_of_the_time_is_busy() -> None:
    assert asked(0, 50, 74, 75, 100) == [False, False, False, True, True]


def test_it_is_busy_until_it_has_been_calm_for_a_second() -> None:
    assert asked(100, *[10] * 12) == [True, *[True] * (CALM_MS // 100 - 1), False, False, False]


def test_a_clock_that_stands_still_is_no_matter() -> None:
    watched = Pressure(iter([0, 5 * MS, 6 * MS]).__next__)

    assert [watched.is_high(now_ms) for now_ms in (7, 7, 107)] == [False, False, False]


def test_the_kernel_tells_what_a_thread_wanted() -> None:
    before = pressure._wanted_ns()

    until = time.thread_time_ns() + 50 * MS
    while time.thread_time_ns() < until:
        pass

    assert pressure._wanted_ns() - before >= 30 * MS


def test_without_the_kernels_word_the_time_that_it_ran_counts(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(pressure, "_SCHEDULE", tmp_path / "none")
    before = time.thread_time_ns()

    assert before <= pressure._wanted_ns() <= time.thread_time_ns()
